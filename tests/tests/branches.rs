//! Branches: a copy at a position of the past or at the newest one, independent from then on.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use system_tests::{Cluster, Place};

#[test]
fn a_branch_sees_its_past_and_goes_its_own_way() -> Result<()> {
    let cluster = Cluster::start(Place::from_env()?)?;
    let main = cluster.endpoint("main", "main", &[])?;
    let mut client = main.connect("postgres")?;
    client.batch_execute(
        "CREATE TABLE data (id int PRIMARY KEY);
         INSERT INTO data SELECT generate_series(1, 1000);",
    )?;
    let then = main.value("SELECT pg_current_wal_flush_lsn()")?;
    client.batch_execute("DELETE FROM data WHERE id <= 500; CREATE TABLE later (id int);")?;

    cluster.neon(&["timeline", "branch", "past", "--lsn", &then])?;
    cluster.neon(&["timeline", "branch", "now"])?;
    let past = cluster.endpoint("past", "past", &[])?;
    let now = cluster.endpoint("now", "now", &[])?;
    ensure!(past.value("SELECT count(*) FROM data")? == "1000");
    ensure!(past.value("SELECT to_regclass('later') IS NULL")? == "t");
    ensure!(now.value("SELECT count(*) FROM data")? == "500");

    past.connect("postgres")?.batch_execute("INSERT INTO data VALUES (5000)")?;
    now.connect("postgres")?.batch_execute("TRUNCATE data")?;
    ensure!(main.value("SELECT count(*) FROM data")? == "500");
    for endpoint in [&past, &now] {
        cluster.stop_endpoint(endpoint, "immediate")?;
        cluster.start_endpoint(endpoint)?;
    }
    ensure!(past.value("SELECT count(*) FROM data")? == "1001");
    ensure!(now.value("SELECT count(*) FROM data")? == "0");
    ensure!(main.value("SELECT count(*) FROM data")? == "500");

    let refused = cluster.try_neon(&["timeline", "branch", "never", "--lsn", "0/1"])?;
    ensure!(!refused.status.success(), "a branch before the beginning was made");
    ensure!(!cluster.neon(&["timeline", "list"])?.contains("never"));
    Ok(())
}

/// What was acknowledged an instant before the compute was killed, when the safekeepers may not know yet that it is
/// committed, is in the branch. One of three safekeepers is down meanwhile.
#[test]
fn a_branch_has_the_last_commit_of_a_killed_compute() -> Result<()> {
    let cluster = Cluster::start_with(Place::from_env()?, &["--safekeepers", "3"])?;
    let main = cluster.endpoint("main", "main", &[])?;
    main.connect("postgres")?.batch_execute("CREATE TABLE data (id int)")?;
    for round in 1..=3 {
        let mut client = main.connect("postgres")?;
        client.batch_execute(&format!("INSERT INTO data VALUES ({round})"))?;
        cluster.kill("endpoints/main/compute.pid")?;
        let name = format!("branch-{round}");
        cluster.neon(&["timeline", "branch", &name])?;
        let branch = cluster.endpoint(&name, &name, &[])?;
        ensure!(branch.value("SELECT max(id) FROM data")? == round.to_string());
        cluster.start_endpoint(&main)?;
    }
    let backup = std::env::temp_dir().join(format!("neon-branches-{}.tar", std::process::id()));
    cluster.kill("safekeeper-2/safekeeper.pid")?;
    main.connect("postgres")?.batch_execute("INSERT INTO data VALUES (4)")?;
    cluster.kill("endpoints/main/compute.pid")?;
    let backed_up =
        cluster.neon(&["timeline", "backup", "main", "--output", &backup.to_string_lossy()]);
    std::fs::remove_file(&backup).ok();
    backed_up.map(drop)
}

/// Under load a safekeeper nearly always has WAL that it does not know to be committed yet; nobody waits for that to end.
#[test]
fn a_branch_is_made_while_its_parent_is_written() -> Result<()> {
    let cluster = Cluster::start(Place::from_env()?)?;
    let main = cluster.endpoint("main", "main", &[])?;
    main.connect("postgres")?.batch_execute("CREATE TABLE bulk (t text)")?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| -> Result<()> {
            let mut client = main.connect("postgres")?;
            while !stop.load(Ordering::Relaxed) {
                client.batch_execute(
                    "INSERT INTO bulk SELECT repeat('x', 1000) FROM generate_series(1, 20000)",
                )?;
            }
            Ok(())
        });
        let made = (1..=3).try_for_each(|number| {
            cluster.neon(&["timeline", "branch", &format!("branch-{number}")]).map(drop)
        });
        stop.store(true, Ordering::Relaxed);
        load.join().expect("the load")?;
        made
    })
}
