//! Command ids in WAL (`neon_rmgr`; L033–L035, L108, L109), on servers with local files.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use postgres::Client;
use system_tests::StockServer;
use system_tests::cluster::{install_from_env, single_value, wait_until};

const PRELOAD: (&str, &str) = ("shared_preload_libraries", "neon_rmgr");

fn folder() -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755))?;
    Ok(dir)
}

/// Every kind of record that carries command ids, in one transaction that is left open.
fn touch_everything(client: &mut Client) -> Result<()> {
    client.batch_execute("CREATE TABLE t(a int, b text)")?;
    client.batch_execute(
        "BEGIN;
         INSERT INTO t VALUES (0, 'first');
         INSERT INTO t SELECT g, repeat('x', 50) FROM generate_series(1, 400) g;",
    )?;
    let mut copy = client.copy_in("COPY t FROM STDIN")?;
    for row in 401..600 {
        use std::io::Write;
        writeln!(copy, "{row}\tcopied")?;
    }
    copy.finish()?;
    client.batch_execute(
        "DELETE FROM t WHERE a % 7 = 3;
         UPDATE t SET b = 'short' WHERE a % 7 = 4;
         UPDATE t SET b = repeat('y', 900) WHERE a % 7 = 5;
         SELECT count(*) FROM (SELECT * FROM t WHERE a % 7 = 6 FOR UPDATE) AS locked;
         SAVEPOINT s;
         UPDATE t SET a = a + 10000 WHERE a % 11 = 1;
         ROLLBACK TO s;
         UPDATE t SET b = 'again' WHERE a % 13 = 2;",
    )?;
    Ok(())
}

/// Line pointers, command ids and their combo bits of all tuples of `t`, whoever may see them.
const CIDS: &str = "SELECT string_agg(format('%s.%s:%s%s', block, lp, t_field3, \
        CASE WHEN t_infomask & 32 <> 0 THEN 'c' END), ' ' ORDER BY block, lp) \
    FROM generate_series(0, pg_relation_size('t') / 8192 - 1) AS block, \
        heap_page_items(get_raw_page('t', block::int)) WHERE t_field3 IS NOT NULL";

#[test]
fn command_ids_survive_a_crash() -> Result<()> {
    let install = install_from_env("NEON_PG_INSTALL")?;
    let dir = folder()?;
    // Without page images recovery has to use the records.
    let settings = [PRELOAD, ("full_page_writes", "off"), ("autovacuum", "off"), ("fsync", "off")];
    let mut server = StockServer::start(install.clone(), &dir.path().join("run"), &settings)?;
    let mut client = server.connect("postgres")?;
    let manager = "SELECT rm_name FROM pg_get_wal_resource_managers() WHERE rm_id = 134";
    ensure!(single_value(&mut client, manager)? == "neon");
    client.batch_execute(
        "CREATE EXTENSION pageinspect; CREATE EXTENSION pg_walinspect; CHECKPOINT;
         CREATE TABLE start AS SELECT pg_current_wal_insert_lsn() AS lsn",
    )?;
    touch_everything(&mut client)?;
    let before = single_value(&mut client, CIDS)?;
    ensure!(before.contains("c ") && before.contains(":5 "), "no variety in {before}");

    let mut other = server.connect("postgres")?;
    other.batch_execute("CREATE TABLE later AS SELECT 1 AS flushes_wal")?;
    let kinds = single_value(
        &mut other,
        "SELECT string_agg(DISTINCT replace(record_type, '+INIT', ''), ' ' ORDER BY replace(record_type, '+INIT', '')) \
         FROM start, pg_get_wal_records_info(lsn, pg_current_wal_flush_lsn()) WHERE resource_manager = 'neon'",
    )?;
    ensure!(kinds == "DELETE HOT_UPDATE INSERT LOCK MULTI_INSERT UPDATE", "{kinds}");

    server.crash()?;
    let server = StockServer::start_on(install, &dir.path().join("run"), &settings)?;
    let log = fs::read_to_string(server.pgdata().with_extension("log"))?;
    ensure!(log.contains("redo starts"), "{log}");
    let after = single_value(&mut server.connect("postgres")?, CIDS)?;
    ensure!(after == before, "before: {before}\nafter: {after}");
    Ok(())
}

#[test]
fn a_standby_has_the_same_pages() -> Result<()> {
    let install = install_from_env("NEON_PG_INSTALL")?;
    let dir = folder()?;
    let settings = [
        PRELOAD,
        // `all` leaves custom resource managers out unless one is named.
        ("wal_consistency_checking", "all,neon"),
        ("autovacuum", "off"),
        ("fsync", "off"),
    ];
    let primary = StockServer::start(install.clone(), &dir.path().join("run"), &settings)?;
    let standby_dir = dir.path().join("standby");
    fs::create_dir(&standby_dir)?;
    let user = pg_launch::ensure_system_user()?;
    if let Some(user) = &user {
        user.give(&standby_dir)?;
    }
    let output = install
        .command("pg_basebackup", user.as_ref())
        .args([
            "-h",
            "127.0.0.1",
            "-U",
            system_tests::cluster::SUPERUSER,
            "-R",
            "--checkpoint=fast",
        ])
        .arg("-p")
        .arg(primary.port().to_string())
        .arg("-D")
        .arg(standby_dir.join("pgdata"))
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let standby = StockServer::start_on(install, &standby_dir, &settings)?;

    let mut client = primary.connect("postgres")?;
    client.batch_execute("CREATE EXTENSION pageinspect")?;
    touch_everything(&mut client)?;
    client.batch_execute("COMMIT")?;
    let before = single_value(&mut client, CIDS)?;
    let lsn = single_value(&mut client, "SELECT pg_current_wal_flush_lsn()::text")?;
    let replayed = format!("SELECT (pg_last_wal_replay_lsn() >= '{lsn}')::text");
    // A difference is fatal for the standby: it would not answer.
    wait_until("the standby has replayed", || {
        Ok(single_value(&mut standby.connect("postgres")?, &replayed)? == "true")
    })?;
    let after = single_value(&mut standby.connect("postgres")?, CIDS)?;
    ensure!(after == before, "primary: {before}\nstandby: {after}");
    let log = fs::read_to_string(standby.pgdata().with_extension("log"))?;
    ensure!(!log.contains("inconsistent"), "{log}");
    Ok(())
}

#[test]
fn changes_are_decoded_as_without() -> Result<()> {
    let install = install_from_env("NEON_PG_INSTALL")?;
    let dir = folder()?;
    let mut decoded = Vec::new();
    for (run, preload) in ["", "neon_rmgr"].into_iter().enumerate() {
        let settings =
            [("shared_preload_libraries", preload), ("wal_level", "logical"), ("fsync", "off")];
        let server =
            StockServer::start(install.clone(), &dir.path().join(format!("run{run}")), &settings)?;
        let mut client = server.connect("postgres")?;
        client.batch_execute(
            "CREATE TABLE old(a int, b text);
             ALTER TABLE old REPLICA IDENTITY FULL;",
        )?;
        client.batch_execute("SELECT pg_create_logical_replication_slot('s', 'test_decoding')")?;
        touch_everything(&mut client)?;
        client.batch_execute(
            "INSERT INTO old SELECT * FROM t;
             UPDATE old SET b = 'new' WHERE a < 300;
             DELETE FROM old WHERE a < 200;
             COMMIT",
        )?;
        let changes = client.query(
            "SELECT data FROM pg_logical_slot_get_changes('s', NULL, NULL, 'include-xids', '0')",
            &[],
        )?;
        decoded.push(changes.iter().map(|row| row.get(0)).collect::<Vec<String>>());
    }
    ensure!(decoded[0].len() > 1500, "{} changes", decoded[0].len());
    ensure!(decoded[0].iter().any(|change| change.contains("old-key: a[integer]:")));
    ensure!(decoded[0] == decoded[1], "changes differ");
    Ok(())
}

#[test]
fn a_record_that_needs_no_command_ids_stays_stock() -> Result<()> {
    let install = install_from_env("NEON_PG_INSTALL")?;
    let dir = folder()?;
    let settings = [PRELOAD, ("autovacuum", "off"), ("fsync", "off")];
    let server = StockServer::start(install, &dir.path().join("run"), &settings)?;
    let mut client = server.connect("postgres")?;
    client.batch_execute("CREATE EXTENSION pg_walinspect; CREATE TABLE t(a int)")?;
    let start = single_value(&mut client, "SELECT pg_current_wal_insert_lsn()::text")?;
    // Each its own transaction: the first command of each has the command id that stock redo gives.
    for sql in ["INSERT INTO t VALUES (1)", "UPDATE t SET a = 2", "DELETE FROM t"] {
        client.batch_execute(sql)?;
    }
    let managers = format!(
        "SELECT string_agg(DISTINCT resource_manager, ' ') FROM \
         pg_get_wal_records_info('{start}', pg_current_wal_flush_lsn()) \
         WHERE resource_manager IN ('Heap', 'neon')"
    );
    let managers = single_value(&mut client, &managers)?;
    ensure!(managers == "Heap", "{managers}");
    Ok(())
}
