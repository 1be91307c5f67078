//! A compute can be thrown away: every committed row is found by the next one (L004, L298).

use anyhow::{Result, ensure};
use system_tests::{Cluster, Place};

const ROWS: &str =
    "SELECT count(*) || ' ' || sum(id) || ' ' || md5(string_agg(t, ',' ORDER BY id)) FROM data";

#[test]
fn a_killed_compute_loses_nothing() -> Result<()> {
    let cluster = Cluster::start(Place::from_env()?)?;
    let endpoint = cluster.endpoint("main", "main", &[("shared_buffers", "1MB")])?;
    endpoint.connect("postgres")?.batch_execute(
        "CREATE TABLE data (id int PRIMARY KEY, t text);
         INSERT INTO data SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 20000) i;
         UPDATE data SET t = 'changed ' || id WHERE id % 3 = 0;
         DELETE FROM data WHERE id % 7 = 0;
         CREATE INDEX ON data (t);",
    )?;
    let before = endpoint.value(ROWS)?;

    cluster.kill("endpoints/main/compute.pid")?;
    std::fs::remove_dir_all(cluster.endpoint_dir(&endpoint).join("pgdata"))?;
    cluster.start_endpoint(&endpoint)?;
    ensure!(endpoint.value(ROWS)? == before, "rows differ after the compute was thrown away");

    // And it can write, and go through a clean stop.
    endpoint.connect("postgres")?.batch_execute("INSERT INTO data VALUES (100001, 'new')")?;
    let before = endpoint.value(ROWS)?;
    cluster.stop_endpoint(&endpoint, "fast")?;
    cluster.start_endpoint(&endpoint)?;
    ensure!(endpoint.value(ROWS)? == before, "rows differ after a clean stop");
    Ok(())
}

#[test]
fn everything_comes_back_after_all_processes_were_killed() -> Result<()> {
    let cluster = Cluster::start(Place::from_env()?)?;
    let endpoint = cluster.endpoint("main", "main", &[])?;
    endpoint.connect("postgres")?.batch_execute(
        "CREATE TABLE data (id int PRIMARY KEY, t text);
         INSERT INTO data SELECT i, md5(i::text) FROM generate_series(1, 5000) i;",
    )?;
    let before = endpoint.value(ROWS)?;
    // As after a power cut: nothing is told to stop.
    for pid_file in
        ["endpoints/main/compute.pid", "pageserver/pageserver.pid", "safekeeper-1/safekeeper.pid"]
    {
        cluster.kill(pid_file)?;
    }
    cluster.neon(&["start"])?;
    cluster.start_endpoint(&endpoint)?;
    ensure!(endpoint.value(ROWS)? == before, "rows differ");
    Ok(())
}

#[test]
fn temporary_and_unlogged_tables_are_local() -> Result<()> {
    let cluster = Cluster::start(Place::from_env()?)?;
    let endpoint = cluster.endpoint("main", "main", &[("shared_buffers", "1MB")])?;
    let mut client = endpoint.connect("postgres")?;
    client.batch_execute(
        "CREATE UNLOGGED TABLE u (id int PRIMARY KEY, t text);
         INSERT INTO u SELECT i, repeat('x', 500) FROM generate_series(1, 10000) i;
         CREATE TEMP TABLE t AS SELECT * FROM u;",
    )?;
    ensure!(
        client.query_one("SELECT count(*) FROM t JOIN u USING (id)", &[])?.get::<_, i64>(0)
            == 10000
    );
    drop(client);
    cluster.stop_endpoint(&endpoint, "fast")?;
    cluster.start_endpoint(&endpoint)?;
    // L024: the table is there and empty, and it works, index and all.
    ensure!(endpoint.value("SELECT count(*) FROM u")? == "0", "an unlogged table kept rows");
    let mut client = endpoint.connect("postgres")?;
    client.batch_execute("INSERT INTO u SELECT i, 'y' FROM generate_series(1, 1000) i")?;
    ensure!(endpoint.value("SELECT t FROM u WHERE id = 500")? == "y");
    Ok(())
}

/// L031: which pages the local file cache held is carried from one data directory to the next, also over a kill.
#[test]
fn the_local_file_cache_is_filled_again() -> Result<()> {
    let cluster = Cluster::start(Place::from_env()?)?;
    let endpoint = cluster.endpoint("main", "main", &[("shared_buffers", "1MB")])?;
    endpoint.connect("postgres")?.batch_execute(
        "CREATE EXTENSION IF NOT EXISTS neon; CREATE TABLE pages (t text);
         INSERT INTO pages SELECT repeat('x', 1000) FROM generate_series(1, 4000);
         SELECT count(*) FROM pages",
    )?;
    for mode in ["fast", "immediate"] {
        cluster.stop_endpoint(&endpoint, mode)?;
        cluster.start_endpoint(&endpoint)?;
        system_tests::cluster::wait_until("the cache is filled", || {
            let done = "SELECT prewarmed > 400 AND active_workers = 0 FROM get_prewarm_info()";
            Ok(endpoint.value(done)? == "t")
        })?;
    }
    Ok(())
}
