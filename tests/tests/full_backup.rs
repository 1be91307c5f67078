//! A full backup boots on an unpatched PostgreSQL 17.

use std::process::Command;

use anyhow::{Result, ensure};
use system_tests::cluster::{SUPERUSER, install_from_env, open_tempdir};
use system_tests::stock::StockServer;
use system_tests::{Cluster, Place};

const ROWS: &str =
    "SELECT count(*) || ' ' || sum(id) || ' ' || md5(string_agg(t, ',' ORDER BY id)) FROM data";

#[test]
fn a_full_backup_boots_on_stock_postgres() -> Result<()> {
    let cluster = Cluster::start(Place::from_env()?)?;
    let endpoint = cluster.endpoint("main", "main", &[])?;
    endpoint.connect("postgres")?.batch_execute(
        "CREATE TABLE data (id int PRIMARY KEY, t text);
         INSERT INTO data SELECT i, md5(i::text) FROM generate_series(1, 20000) i;
         DELETE FROM data WHERE id % 5 = 0;",
    )?;
    endpoint.connect("postgres")?.batch_execute("VACUUM data")?;
    let expected = endpoint.value(ROWS)?;
    let lsn = endpoint.value("SELECT pg_current_wal_flush_lsn()")?;

    let temp = open_tempdir("neon-backup-")?;
    let tar = temp.path().join("backup.tar");
    cluster.neon(&[
        "timeline",
        "backup",
        "main",
        "--lsn",
        &lsn,
        "--output",
        &tar.to_string_lossy(),
    ])?;
    let pgdata = temp.path().join("stock/pgdata");
    std::fs::create_dir_all(&pgdata)?;
    let untar = Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(&pgdata).status()?;
    ensure!(untar.success(), "tar could not read the backup");
    let install = install_from_env("NEON_PG_STOCK")?;
    let server = StockServer::start_on(install, &temp.path().join("stock"), &[])?;
    let mut client = postgres::Config::new()
        .host("127.0.0.1")
        .port(server.port())
        .user(SUPERUSER)
        .dbname("postgres")
        .connect(postgres::NoTls)?;
    let rows = system_tests::cluster::single_value(&mut client, ROWS)?;
    ensure!(rows == expected, "stock PostgreSQL has {rows}, the compute had {expected}");
    client.batch_execute("INSERT INTO data VALUES (1000000, 'on stock')")?;
    Ok(())
}
