//! Patches of PostgreSQL, each seen from a small library (`tests/modules`).

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use pg_launch::PgInstall;
use postgres::Client;
use system_tests::cluster::{install_from_env, single_value};
use system_tests::{StockServer, pg_module};

/// A temporary folder that the server's user may enter.
fn folder() -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755))?;
    Ok(dir)
}

fn compile(name: &str, install: &PgInstall, dir: &Path, folder: &str) -> Result<PathBuf> {
    let dir = dir.join(folder);
    std::fs::create_dir(&dir)?;
    pg_module::compile(name, install, &dir)
}

fn function(client: &mut Client, library: &Path, signature: &str) -> Result<()> {
    let name = signature.split('(').next().unwrap_or_default();
    let sql =
        format!("CREATE FUNCTION {signature} AS '{}', '{name}' LANGUAGE C", library.display());
    client.batch_execute(&sql).with_context(|| sql.clone())
}

#[test]
fn a_library_for_stock_postgres_works_in_the_patched_server() -> Result<()> {
    let (patched, stock) =
        (install_from_env("NEON_PG_INSTALL")?, install_from_env("NEON_PG_STOCK")?);
    let dir = folder()?;
    let for_stock = compile("abi_probe", &stock, dir.path(), "stock")?;
    let for_patched = compile("abi_probe", &patched, dir.path(), "patched")?;

    let mut layouts = Vec::new();
    let runs = [(&stock, &for_stock), (&patched, &for_stock), (&patched, &for_patched)];
    for (run, (install, library)) in runs.into_iter().enumerate() {
        let server =
            StockServer::start(install.clone(), &dir.path().join(format!("run{run}")), &[])?;
        let mut client = server.connect("postgres")?;
        function(&mut client, library, "abi_layout() RETURNS text")?;
        function(&mut client, library, "abi_walk(regclass) RETURNS bigint")?;
        client.batch_execute("CREATE TABLE t AS SELECT generate_series(1, 10000) AS a")?;
        ensure!(single_value(&mut client, "SELECT abi_walk('t')::text")? == "10000");
        layouts.push(single_value(&mut client, "SELECT abi_layout()")?);
    }
    ensure!(layouts[0].lines().count() > 15, "{}", layouts[0]);
    ensure!(layouts[0] == layouts[1], "the same library answered differently");
    ensure!(layouts[0] == layouts[2], "stock:\n{}\npatched:\n{}", layouts[0], layouts[2]);
    Ok(())
}

#[test]
fn a_storage_manager_of_a_library_takes_permanent_relations() -> Result<()> {
    let install = install_from_env("NEON_PG_INSTALL")?;
    let dir = folder()?;
    let library = compile("smgr_probe", &install, dir.path(), "module")?;
    let preload = library.display().to_string();
    let settings = [("shared_preload_libraries", preload.as_str())];
    let server = StockServer::start(install, &dir.path().join("run"), &settings)?;
    let mut client = server.connect("postgres")?;
    for signature in [
        "smgr_probe_which(regclass) RETURNS int",
        "smgr_probe_nblocks_calls() RETURNS bigint",
        "smgr_probe_late() RETURNS int",
    ] {
        function(&mut client, &library, signature)?;
    }
    client.batch_execute(
        "CREATE TABLE before(a int);
         SET smgr_probe.take = on;
         CREATE TABLE permanent(a int);
         CREATE UNLOGGED TABLE unlogged(a int);
         CREATE TEMP TABLE temporary(a int);
         SET smgr_probe.take = off;
         INSERT INTO permanent SELECT generate_series(1, 10000);
         INSERT INTO before SELECT generate_series(1, 10000);",
    )?;
    client.batch_execute("VACUUM permanent, before")?;
    let mut ask = |sql: &str| single_value(&mut client, sql);
    for (table, which) in
        [("before", "0"), ("permanent", "1"), ("unlogged", "0"), ("temporary", "0")]
    {
        ensure!(ask(&format!("SELECT smgr_probe_which('{table}')::text"))? == which, "{table}");
    }
    ensure!(ask("SELECT count(*)::text FROM permanent")? == "10000");

    // Sizes are asked from the storage manager, fork by fork, and are those of the files.
    for fork in ["main", "fsm", "vm", "init"] {
        let calls = ask("SELECT smgr_probe_nblocks_calls()::text")?;
        let ours = ask(&format!("SELECT pg_relation_size('permanent', '{fork}')::text"))?;
        let asked = ask("SELECT smgr_probe_nblocks_calls()::text")? != calls;
        ensure!(asked == (fork != "init"), "{fork}: asked {asked}");
        ensure!(
            ours == ask(&format!("SELECT pg_relation_size('before', '{fork}')::text"))?,
            "{fork}"
        );
    }
    ensure!(ask("SELECT (pg_relation_size('permanent') > 8192 * 40)::text")? == "true");
    ensure!(
        ask("SELECT (pg_database_size(oid) - oid::bigint)::text FROM pg_database LIMIT 1")?
            == "1000000"
    );
    ensure!(ask("SELECT pg_relation_size('pg_tables')::text")? == "0", "a view has no storage");

    // Processes would disagree on the numbers: the session ends.
    ensure!(server.connect("postgres")?.batch_execute("SELECT smgr_probe_late()").is_err());
    let log = std::fs::read_to_string(server.pgdata().with_extension("log"))?;
    ensure!(
        log.contains("storage managers can be registered by preloaded libraries only"),
        "{log}"
    );
    Ok(())
}

#[test]
fn hooks_see_wal_records_and_interrupts() -> Result<()> {
    let install = install_from_env("NEON_PG_INSTALL")?;
    let dir = folder()?;
    let library = compile("hook_probe", &install, dir.path(), "module")?;
    let preload = library.display().to_string();
    let settings = [("shared_preload_libraries", preload.as_str()), ("autovacuum", "off")];
    let server = StockServer::start(install, &dir.path().join("run"), &settings)?;
    let mut client = server.connect("postgres")?;
    function(&mut client, &library, "hook_probe_records() RETURNS text")?;
    function(&mut client, &library, "hook_probe_interrupts(int, bool) RETURNS int")?;

    client.batch_execute("CREATE TABLE t(a int); SELECT hook_probe_records()")?;
    client.batch_execute("INSERT INTO t SELECT generate_series(1, 500)")?;
    // xl_heap_insert has 3 bytes; all rows are on pages.
    ensure!(single_value(&mut client, "SELECT hook_probe_records()")? == "500 500 1500");

    for restarts in [0, 1, 5] {
        let calls: i32 =
            client.query_one("SELECT hook_probe_interrupts($1, false)", &[&restarts])?.get(0);
        ensure!(calls == restarts + 1, "{restarts} restarts, {calls} calls");
    }
    // A cancel that comes while the hook waits is obeyed when it returns.
    let error = client.query_one("SELECT hook_probe_interrupts(1, true)", &[]).unwrap_err();
    ensure!(error.code() == Some(&postgres::error::SqlState::QUERY_CANCELED), "{error:?}");
    Ok(())
}

#[test]
fn wal_redo_mode_gives_way_to_a_library_before_a_database_is_opened() -> Result<()> {
    let install = install_from_env("NEON_PG_INSTALL")?;
    let dir = folder()?;
    let library = compile("hook_probe", &install, dir.path(), "module")?;
    let mut server = StockServer::start(install.clone(), &dir.path().join("run"), &[])?;
    server.stop()?;
    let control = server.pgdata().join("global/pg_control");
    let before = std::fs::read(&control)?;

    let user = pg_launch::ensure_system_user()?;
    let run = || {
        let mut command = install.command("postgres", user.as_ref());
        command.arg("--wal-redo").env("PGDATA", server.pgdata()).current_dir("/").output()
    };
    let output = run()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success());
    ensure!(errors.contains("no preloaded library took over for --wal-redo"), "{errors}");

    let settings = format!("shared_preload_libraries = '{}'\n", library.display());
    std::fs::write(server.pgdata().join("postgresql.conf"), settings)?;
    let output = run()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(said == "took over, wal redo 1, database opened 0\n", "{said}{output:?}");
    ensure!(std::fs::read(&control)? == before, "the data directory was started");
    Ok(())
}

#[test]
fn wal_holds_each_state_of_a_sequence() -> Result<()> {
    let install = install_from_env("NEON_PG_INSTALL")?;
    let dir = folder()?;
    let settings = [("autovacuum", "off")];
    let mut server = StockServer::start(install.clone(), &dir.path().join("run"), &settings)?;
    let mut client = server.connect("postgres")?;
    client.batch_execute(
        "CREATE EXTENSION pg_walinspect;
         CREATE SEQUENCE s; SELECT nextval('s');
         CREATE TABLE start AS SELECT pg_current_wal_insert_lsn() AS lsn;
         SELECT nextval('s') FROM generate_series(1, 9)",
    )?;
    let records = "SELECT count(*)::text FROM start, \
                   pg_get_wal_records_info(lsn, pg_current_wal_lsn()) WHERE resource_manager = 'Sequence'";
    ensure!(single_value(&mut client, records)? == "9");
    // A crash makes the page from WAL, as an eviction does here: no value is lost, none comes twice.
    server.crash()?;
    let server = StockServer::start_on(install, &dir.path().join("run"), &settings)?;
    let mut client = server.connect("postgres")?;
    ensure!(single_value(&mut client, "SELECT nextval('s')::text")? == "11");
    Ok(())
}
