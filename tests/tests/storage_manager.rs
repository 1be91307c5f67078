//! What the storage manager of the compute must not lose: pages of builds that are not logged, copied and moved
//! databases, flags that are logged without an LSN. Each with few buffers, so that pages leave memory all the time, and
//! with the audit of evicted pages.

use anyhow::{Result, ensure};
use system_tests::{Cluster, Endpoint, Place};

const SETTINGS: &[(&str, &str)] = &[
    ("shared_buffers", "1MB"),
    ("neon.audit_pages", "on"),
    ("max_parallel_maintenance_workers", "2"),
    ("min_parallel_table_scan_size", "0"),
];

fn restart(cluster: &Cluster, endpoint: &Endpoint) -> Result<()> {
    cluster.stop_endpoint(endpoint, "fast")?;
    cluster.start_endpoint(endpoint)
}

fn value_in(endpoint: &Endpoint, database: &str, sql: &str) -> Result<String> {
    let mut client = endpoint.connect(database)?;
    system_tests::cluster::single_value(&mut client, sql)
}

/// L111 to L115 without the patches of the access methods.
#[test]
fn indexes_bigger_than_the_buffers_are_complete_on_a_new_compute() -> Result<()> {
    let cluster = Cluster::start(Place::from_env()?)?;
    let endpoint = cluster.endpoint("main", "main", SETTINGS)?;
    endpoint.connect("postgres")?.batch_execute(
        "CREATE EXTENSION amcheck;
         CREATE TABLE g (id int, v tsvector, p point, s text);
         INSERT INTO g SELECT i, to_tsvector('simple', md5(i::text) || ' w' || i % 100), point(i, i % 77), md5(i::text)
             FROM generate_series(1, 30000) i;
         SET maintenance_work_mem = '1MB';
         CREATE INDEX ON g USING gin (v);
         CREATE INDEX ON g USING gist (p) WITH (buffering = on);
         CREATE INDEX ON g USING spgist (p);
         CREATE INDEX ON g USING spgist (s);
         CREATE INDEX ON g USING hash (s);
         CREATE INDEX ON g USING brin (id);
         CREATE INDEX g_s ON g (s);",
    )?;
    let spilled = endpoint.value(
        "SELECT value::bigint::text FROM neon_perf_counters WHERE metric = 'spill_writes_total'",
    )?;
    ensure!(spilled.parse::<u64>()? > 1000, "only {spilled} pages were spilled: nothing is tested");
    restart(&cluster, &endpoint)?;
    let directory = cluster.endpoint_dir(&endpoint).join("pgdata/neon_spill");
    ensure!(std::fs::read_dir(directory)?.next().is_none(), "spill files survived a restart");
    for condition in [
        "v @@ 'w7'::tsquery",
        "p <@ box '((0,0),(1000,50))'",
        "s = md5('777')",
        "s ^@ 'aa'",
        "id BETWEEN 5000 AND 5100",
    ] {
        let count = format!("SELECT count(*)::text FROM g WHERE {condition}");
        let mut client = endpoint.connect("postgres")?;
        client.batch_execute("SET enable_indexscan = off; SET enable_bitmapscan = off")?;
        let scanned = system_tests::cluster::single_value(&mut client, &count)?;
        client.batch_execute("RESET ALL; SET enable_seqscan = off")?;
        let found = system_tests::cluster::single_value(&mut client, &count)?;
        ensure!(
            scanned == found,
            "{condition}: {found} rows by index, {scanned} rows in the table"
        );
        ensure!(found != "0", "{condition} finds nothing");
    }
    endpoint.value("SELECT bt_index_check('g_s', true)::text")?;
    Ok(())
}

/// L117, L119.
#[test]
fn databases_are_copied_by_both_strategies_and_moved() -> Result<()> {
    let cluster = Cluster::start(Place::from_env()?)?;
    let endpoint = cluster.endpoint("main", "main", SETTINGS)?;
    let mut client = endpoint.connect("postgres")?;
    for statement in [
        "CREATE DATABASE original",
        "SET allow_in_place_tablespaces = on",
        "CREATE TABLESPACE elsewhere LOCATION ''",
    ] {
        client.batch_execute(statement)?;
    }
    endpoint.connect("original")?.batch_execute(
        "CREATE TABLE a (i int PRIMARY KEY, t text);
         INSERT INTO a SELECT g, repeat('a', 100) FROM generate_series(1, 20000) g;
         CREATE UNLOGGED TABLE u AS SELECT 1;",
    )?;
    client.batch_execute("CREATE DATABASE by_file TEMPLATE original STRATEGY file_copy")?;
    client.batch_execute("CREATE DATABASE by_wal TEMPLATE original STRATEGY wal_log")?;
    client.batch_execute("ALTER DATABASE original SET TABLESPACE elsewhere")?;
    let sums = "SELECT count(*) || ' ' || sum(i) || ' ' || sum(length(t)) FROM a";
    for database in ["original", "by_file", "by_wal"] {
        let seen = value_in(&endpoint, database, sums)?;
        ensure!(seen == "20000 200010000 2000000", "{database}: {seen}");
    }
    endpoint.connect("original")?.batch_execute(
        "INSERT INTO a SELECT g, repeat('b', 100) FROM generate_series(20001, 40000) g;
         UPDATE a SET t = 'c' WHERE i % 2 = 0;",
    )?;
    // Back to where older versions of its pages, and fewer of them, are remembered.
    client.batch_execute("ALTER DATABASE original SET TABLESPACE pg_default")?;
    client.batch_execute("DROP TABLESPACE elsewhere")?;
    let moved = "40000 800020000 2020000";
    ensure!(value_in(&endpoint, "original", sums)? == moved);
    restart(&cluster, &endpoint)?;
    ensure!(value_in(&endpoint, "original", sums)? == moved);
    for database in ["by_file", "by_wal"] {
        let seen = value_in(&endpoint, database, sums)?;
        ensure!(seen == "20000 200010000 2000000", "{database}: {seen}");
        ensure!(value_in(&endpoint, database, "SELECT count(*)::text FROM u")? == "0");
    }
    Ok(())
}

/// `PD_ALL_VISIBLE` is logged without an LSN in the heap page; bits of the map are cleared by truncation likewise.
#[test]
fn visibility_survives_eviction() -> Result<()> {
    let cluster = Cluster::start(Place::from_env()?)?;
    let endpoint = cluster.endpoint("main", "main", SETTINGS)?;
    let mut client = endpoint.connect("postgres")?;
    client.batch_execute(
        "CREATE EXTENSION pg_visibility;
         CREATE TABLE v (i int, t text) WITH (autovacuum_enabled = off)",
    )?;
    for round in 0..5 {
        client.batch_execute(&format!(
            "INSERT INTO v SELECT g, repeat('x', 200) FROM generate_series(1, 20000) g;
             DELETE FROM v WHERE i % 50 = {round};"
        ))?;
        client.batch_execute("VACUUM (TRUNCATE) v")?;
        client.batch_execute("DELETE FROM v WHERE ctid >= '(400,0)'::tid")?;
        client.batch_execute("VACUUM (TRUNCATE, FREEZE) v")?;
        // The tail of the map was cleared; these pages are made again and hold rows that nobody may see yet.
        let mut other = endpoint.connect("postgres")?;
        other.batch_execute(
            "BEGIN; INSERT INTO v SELECT g, 'new' FROM generate_series(1, 30000) g",
        )?;
        for check in ["pg_check_visible", "pg_check_frozen"] {
            let wrong = endpoint.value(&format!("SELECT count(*)::text FROM {check}('v')"))?;
            ensure!(wrong == "0", "{check} finds {wrong} rows in round {round}");
        }
        other.batch_execute("ROLLBACK")?;
    }
    Ok(())
}
