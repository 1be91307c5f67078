//! Branches: a copy at a position of the past or at the newest one, independent from then on.

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
