//! The walproposer inside a walsender: whatever befalls that process or the one that asked for it, commits go on and none is
//! lost; and Postgres can do with the process what it does with all of its own.

use std::fs::{self, File};
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use postgres::Client;
use system_tests::cluster::{child_named, has_ended, signal_and_wait, single_value, wait_until};
use system_tests::{Cluster, Endpoint, Place};

const COMPUTE: &str = "endpoints/main/compute.pid";
/// Who makes the slot at the start of a session has the same name, and does not stream.
const WALSENDER: &str = "SELECT pid::text FROM pg_stat_replication \
     WHERE application_name = 'walproposer' AND state = 'streaming'";

fn insert(client: &mut Client, id: i32) -> Result<()> {
    client.execute("INSERT INTO t VALUES ($1)", &[&id])?;
    Ok(())
}

fn walsender(client: &mut Client) -> Result<Option<u32>> {
    let rows = client.simple_query(WALSENDER)?;
    let pid = rows.iter().find_map(|message| match message {
        postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    Ok(pid.map(|pid| pid.parse()).transpose()?)
}

/// Waits until another walsender has taken over from `before`, and commits work.
fn wait_for_another(client: &mut Client, before: u32, id: i32) -> Result<u32> {
    let mut found = None;
    wait_until("another walproposer", || {
        found = walsender(client)?.filter(|pid| *pid != before);
        Ok(found.is_some())
    })?;
    insert(client, id)?;
    found.context("a walsender")
}

/// One of the extension's counters.
fn counter(client: &mut Client, name: &str) -> Result<u64> {
    let sql = format!("SELECT value::bigint::text FROM neon_perf_counters WHERE metric = '{name}'");
    Ok(single_value(client, &sql)?.parse()?)
}

/// One system at a time: this file has no use for several.
static ALONE: Mutex<()> = Mutex::new(());

fn with_endpoint(test: impl FnOnce(&Cluster, &Endpoint, &mut Client) -> Result<()>) -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut cluster = Cluster::start(Place::from_env()?)?;
    let endpoint = cluster.endpoint("main", "main", &[])?;
    let mut client = endpoint.connect("postgres")?;
    client.batch_execute("CREATE EXTENSION IF NOT EXISTS neon; CREATE TABLE t (id int)")?;
    let result = test(&cluster, &endpoint, &mut client);
    if result.is_err() {
        cluster.print_logs();
        cluster.keep();
    }
    result
}

#[test]
fn commits_go_on_when_it_is_ended() -> Result<()> {
    with_endpoint(|cluster, _, client| {
        insert(client, 1)?;
        let first = walsender(client)?.context("a walsender")?;
        let status = "SELECT state || ' ' || sync_state FROM pg_stat_replication";
        ensure!(single_value(client, status)? == "streaming sync");
        ensure!(single_value(client, "SHOW neon.safekeeper_proto_version")? == "3");
        client.execute("SELECT pg_terminate_backend($1)", &[&i32::try_from(first)?])?;
        let second = wait_for_another(client, first, 2)?;
        let keeper = child_named(cluster.pid(COMPUTE)?, "walproposer")?.context("a keeper")?;
        signal_and_wait(keeper, Signal::SIGKILL)?;
        let third = wait_for_another(client, second, 3)?;
        wait_until("the end of those before", || Ok(has_ended(first) && has_ended(second)))?;
        ensure!(!has_ended(third));
        ensure!(single_value(client, "SELECT sum(id)::text FROM t")? == "6");
        Ok(())
    })
}

/// Commits wait for company where many transactions are under way, and these never commit (`compute_core::group_commit`).
#[test]
fn commits_go_on_beside_transactions_that_stay_open() -> Result<()> {
    with_endpoint(|_, endpoint, client| {
        let mut open = Vec::new();
        for id in 0..12 {
            let mut session = endpoint.connect("postgres")?;
            session.batch_execute(&format!("BEGIN; INSERT INTO t VALUES ({id})"))?;
            open.push(session);
        }
        (100..600).try_for_each(|id| insert(client, id))?;
        // After eight in a row one in 256 ms.
        let in_vain = counter(client, "commits_held_in_vain_total")?;
        ensure!((1..250).contains(&in_vain), "{in_vain} of 500 commits waited in vain");
        open.iter_mut().try_for_each(|session| session.batch_execute("COMMIT"))?;
        ensure!(single_value(client, "SELECT count(*)::text FROM t")? == "512");
        Ok(())
    })
}

/// Each of these transactions is under way for a while, so that whoever commits has company.
#[test]
fn commits_of_many_go_together() -> Result<()> {
    with_endpoint(|_, endpoint, client| {
        let write = |writer: i32| -> Result<()> {
            let mut session = endpoint.connect("postgres")?;
            (0..50).try_for_each(|id| {
                let insert = format!("INSERT INTO t VALUES ({})", 50 * writer + id);
                Ok(session.batch_execute(&format!("{insert}; SELECT pg_sleep(0.001)"))?)
            })
        };
        std::thread::scope(|scope| -> Result<()> {
            let writers: Vec<_> =
                (0..16).map(|writer| scope.spawn(move || write(writer))).collect();
            writers.into_iter().try_for_each(|writer| match writer.join() {
                Ok(result) => result,
                Err(_) => anyhow::bail!("a writer panicked"),
            })
        })?;
        ensure!(single_value(client, "SELECT count(DISTINCT id)::text FROM t")? == "800");
        let joined = counter(client, "commits_held_and_joined_total")?;
        ensure!(0 < joined, "no commit waited for another");
        Ok(())
    })
}

#[test]
fn it_serves_what_every_process_must() -> Result<()> {
    with_endpoint(|_, _, client| {
        insert(client, 1)?;
        let pid = walsender(client)?.context("a walsender")?;
        client.batch_execute("SET statement_timeout = '30s'")?;
        // Waits until every process has closed its files of the database (a procsignal barrier).
        client.batch_execute("CREATE DATABASE gone")?;
        client.batch_execute("DROP DATABASE gone")?;
        // Nobody holds the database that it is connected to: it is connected to none.
        client.batch_execute("CREATE DATABASE copy TEMPLATE template1")?;
        // It takes over what the configuration says of it.
        client.batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'somebody'")?;
        client.batch_execute("SELECT pg_reload_conf()")?;
        let state = "SELECT sync_state FROM pg_stat_replication";
        wait_until("a standby of no priority", || Ok(single_value(client, state)? == "async"))?;
        client.batch_execute("ALTER SYSTEM RESET synchronous_standby_names")?;
        client.batch_execute("SELECT pg_reload_conf()")?;
        wait_until("the priority", || Ok(single_value(client, state)? == "sync"))?;
        insert(client, 2)?;
        ensure!(walsender(client)? == Some(pid), "it has not ended meanwhile");
        // Memory contexts are logged by the process that is asked, at its next look at interrupts.
        client.execute("SELECT pg_log_backend_memory_contexts($1)", &[&i32::try_from(pid)?])?;
        Ok(())
    })
}

#[test]
fn a_stop_ends_it_last() -> Result<()> {
    with_endpoint(|cluster, endpoint, client| {
        for id in 1..=100 {
            insert(client, id)?;
        }
        let pid = walsender(client)?.context("a walsender")?;
        let end = single_value(client, "SELECT pg_current_wal_lsn()::text")?;
        cluster.stop_endpoint(endpoint, "fast")?;
        ensure!(has_ended(pid));
        let logged = fs::read_to_string(cluster.endpoint_dir(endpoint).join("postgres.log"))?;
        ensure!(logged.contains("neon: the walproposer has ended: ComputeStopped"), "{logged}");
        // What the server wrote while it stopped has arrived: the next one starts behind it.
        cluster.start_endpoint(endpoint)?;
        let mut client = endpoint.connect("postgres")?;
        let behind = format!("SELECT (pg_current_wal_lsn() > '{end}'::pg_lsn)::text");
        ensure!(single_value(&mut client, &behind)? == "true");
        ensure!(single_value(&mut client, "SELECT count(*)::text FROM t")? == "100");
        Ok(())
    })
}

#[test]
fn nobody_else_may_run_it() -> Result<()> {
    with_endpoint(|cluster, endpoint, client| {
        client.batch_execute("CREATE ROLE replicator LOGIN REPLICATION")?;
        let pgdata = cluster.endpoint_dir(endpoint).join("pgdata");
        let mut hba = File::options().append(true).open(pgdata.join("pg_hba.conf"))?;
        writeln!(hba, "host replication replicator 127.0.0.1/32 trust")?;
        client.batch_execute("SELECT pg_reload_conf()")?;
        let target = format!(
            "host=127.0.0.1 port={} user=replicator dbname=postgres replication=true",
            endpoint.port
        );
        // Until the file is read again it is that which refuses.
        wait_until("the refusal", || {
            let output = cluster
                .place()
                .install
                .command("psql", None)
                .args(["-X", "-v", "VERBOSITY=verbose", "-d", &target, "-c"])
                .arg("BASE_BACKUP (TARGET 'neon_walproposer', TARGET_DETAIL '/etc/passwd')")
                .output()?;
            ensure!(!output.status.success(), "it was allowed");
            Ok(String::from_utf8_lossy(&output.stderr).contains("42501"))
        })?;
        Ok(())
    })
}
