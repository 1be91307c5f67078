//! Safekeepers that come and go while a compute writes: nothing is lost, and nobody has to stop.

use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use system_tests::cluster::{kill_and_wait, wait_until};
use system_tests::load::Meter;
use system_tests::{Cluster, Endpoint, Place, bank};

/// Transfers that must be acknowledged after each step.
const TRANSFERS_BETWEEN: u64 = 20;

fn cluster(safekeepers: &str) -> Result<Cluster> {
    Cluster::start_with(Place::from_env()?, &["--safekeepers", safekeepers])
}

fn wait_for_transfers(cluster: &Cluster, load: &Meter, step: &str) -> Result<()> {
    let before = load.acknowledged();
    wait_until("transfers are acknowledged", || {
        Ok(load.acknowledged() >= before + TRANSFERS_BETWEEN)
    })
    .inspect_err(|_| {
        eprintln!("{:?}", parts(cluster));
        cluster.print_logs();
    })
    .with_context(|| step.to_owned())
}

fn kill_safekeeper(cluster: &Cluster, id: u16) -> Result<()> {
    cluster.kill(&format!("safekeeper-{id}/safekeeper.pid"))
}

/// What `neon safekeeper status` says.
fn parts(cluster: &Cluster) -> Result<Vec<serde_json::Value>> {
    Ok(serde_json::from_str(&cluster.neon(&["--json", "safekeeper", "status"])?)?)
}

/// Numbers of the safekeepers that have a branch, by what each says its members are.
fn members(cluster: &Cluster) -> Result<Vec<(u64, Vec<u64>)>> {
    let rows = parts(cluster)?;
    let ids = |row: &serde_json::Value| -> Vec<u64> {
        let members = row["members"]["members"].as_array().cloned().unwrap_or_default();
        members.iter().filter_map(|member| member["id"].as_u64()).collect()
    };
    Ok(rows.iter().map(|row| (row["safekeeper"].as_u64().unwrap_or(0), ids(row))).collect())
}

/// A compute with an empty buffer pool has everything that was acknowledged.
fn check_on_a_new_compute(
    cluster: &Cluster,
    endpoint: &Endpoint,
    acknowledged: &std::collections::BTreeSet<i64>,
) -> Result<()> {
    bank::check(&mut endpoint.connect("postgres")?, acknowledged)?;
    cluster.stop_endpoint(endpoint, "immediate")?;
    cluster.start_endpoint(endpoint)?;
    bank::check(&mut endpoint.connect("postgres")?, acknowledged)
}

#[test]
fn all_safekeepers_are_replaced_under_load() -> Result<()> {
    let cluster = cluster("1")?;
    let endpoint = cluster.endpoint("main", "main", &[])?;
    bank::create(&mut endpoint.connect("postgres")?)?;
    let meter = Arc::default();
    let load = bank::Load::start(&endpoint, 4, &meter);
    wait_for_transfers(&cluster, &meter, "at first")?;
    cluster.neon(&["safekeeper", "add", "--count", "2"])?;
    wait_for_transfers(&cluster, &meter, "with three")?;
    ensure!(members(&cluster)?.iter().all(|(_, members)| *members == [1, 2, 3]));
    // Any one of them may be down now, the first one as well, and be removed for good.
    kill_safekeeper(&cluster, 1)?;
    wait_for_transfers(&cluster, &meter, "without the first")?;
    cluster.neon(&["safekeeper", "remove", "1"])?;
    ensure!(!cluster.dir().join("safekeeper-1").exists());
    cluster.neon(&["safekeeper", "add"])?;
    wait_for_transfers(&cluster, &meter, "with a fourth")?;
    kill_safekeeper(&cluster, 2)?;
    wait_for_transfers(&cluster, &meter, "without the second")?;
    cluster.neon(&["start"])?;
    cluster.neon(&["safekeeper", "remove", "2"])?;
    cluster.neon(&["safekeeper", "add"])?;
    ensure!(members(&cluster)?.iter().all(|(_, members)| *members == [3, 4, 5]));
    // Nobody that the walproposer was started with is there any more.
    let supervisor = cluster.pid("endpoints/main/compute.pid")?;
    let walproposer = system_tests::cluster::child_named(supervisor, "walproposer")?;
    kill_and_wait(walproposer.context("no walproposer runs")?)?;
    wait_for_transfers(&cluster, &meter, "with a new walproposer")?;
    // A new branch begins on the new ones, and has what was acknowledged before it was asked for.
    let before = meter.acknowledged();
    cluster.neon(&["timeline", "branch", "copy"])?;
    let acknowledged = load.finish()?;
    check_on_a_new_compute(&cluster, &endpoint, &acknowledged)?;
    let copy = cluster.endpoint("copy", "copy", &[])?;
    let mut client = copy.connect("postgres")?;
    let rows: i64 = client.query_one("SELECT count(*) FROM ledger", &[])?.get(0);
    ensure!(before <= u64::try_from(rows)?, "{rows} rows in the branch, {before} before it");
    bank::check(&mut client, &std::collections::BTreeSet::new())
}

#[test]
fn a_change_that_was_killed_half_way_is_finished() -> Result<()> {
    let cluster = cluster("3")?;
    let endpoint = cluster.endpoint("main", "main", &[])?;
    bank::create(&mut endpoint.connect("postgres")?)?;
    let meter = Arc::default();
    let load = bank::Load::start(&endpoint, 2, &meter);
    wait_for_transfers(&cluster, &meter, "at first")?;
    // Without a majority of the old ones it cannot go on.
    kill_safekeeper(&cluster, 2)?;
    kill_safekeeper(&cluster, 3)?;
    let mut adding = Command::new(&cluster.place().neon)
        .arg("--dir")
        .arg(cluster.dir())
        .args(["safekeeper", "add", "--count", "2"])
        .stderr(Stdio::null())
        .spawn()?;
    wait_until("the joint configuration is written down", || {
        Ok(std::fs::read_to_string(cluster.dir().join("neon.toml"))?.contains("new_members"))
    })?;
    adding.kill()?;
    adding.wait()?;
    cluster.neon(&["start"])?;
    let members = members(&cluster)?;
    ensure!(members.len() == 5, "{members:?}");
    ensure!(members.iter().all(|(_, members)| *members == [1, 2, 3, 4, 5]), "{members:?}");
    wait_for_transfers(&cluster, &meter, "with five")?;
    // Two of five may be down.
    kill_safekeeper(&cluster, 1)?;
    kill_safekeeper(&cluster, 4)?;
    wait_for_transfers(&cluster, &meter, "with three of five")?;
    let acknowledged = load.finish()?;
    check_on_a_new_compute(&cluster, &endpoint, &acknowledged)
}

#[test]
fn members_change_without_a_compute_and_refusals_are_clear() -> Result<()> {
    let cluster = cluster("1")?;
    let endpoint = cluster.endpoint("main", "main", &[])?;
    endpoint.connect("postgres")?.batch_execute("CREATE TABLE t AS SELECT 42 AS answer")?;
    let refused = |args: &[&str], code: i32, text: &str| -> Result<()> {
        let output = cluster.try_neon(args)?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(code) && words.contains(text), "{args:?}: {words}");
        Ok(())
    };
    refused(&["safekeeper", "remove", "1"], 4, "is the last one")?;
    refused(&["safekeeper", "remove", "9"], 3, "there is no safekeeper 9")?;
    refused(&["safekeeper", "add", "--count", "0"], 2, "0 is not in 1..=8")?;
    cluster.stop_endpoint(&endpoint, "immediate")?;
    cluster.neon(&["safekeeper", "add", "--count", "2"])?;
    cluster.neon(&["safekeeper", "remove", "1"])?;
    cluster.neon(&["timeline", "create", "empty"])?;
    cluster.start_endpoint(&endpoint)?;
    let answer: i32 = endpoint.connect("postgres")?.query_one("SELECT answer FROM t", &[])?.get(0);
    ensure!(answer == 42);
    Ok(())
}

/// Number of the safekeeper that the page server reads the only branch from.
fn streamed_from(cluster: &Cluster) -> Result<Option<u64>> {
    let read_by_it = |row: &&serde_json::Value| {
        let readers = row["readers"].as_array().cloned().unwrap_or_default();
        readers.iter().any(|reader| reader == "pageserver")
    };
    Ok(parts(cluster)?.iter().find(read_by_it).and_then(|row| row["safekeeper"].as_u64()))
}

#[test]
fn a_page_server_leaves_a_safekeeper_that_has_stopped() -> Result<()> {
    let cluster = cluster("3")?;
    // Without this, silence would end the stream before long.
    let settings = "walreceiver_timeout = \"1h\"\nwait_lsn_timeout = \"1h\"\n";
    cluster.neon(&["stop"])?;
    std::fs::write(cluster.dir().join("pageserver/pageserver.override.toml"), settings)?;
    cluster.neon(&["start"])?;
    let no_cache = [
        ("shared_buffers", "1MB"),
        ("neon.max_file_cache_size", "0"),
        ("neon.file_cache_size_limit", "0"),
    ];
    let endpoint = cluster.endpoint("main", "main", &no_cache)?;
    let mut client = endpoint.connect("postgres")?;
    client.batch_execute("SET statement_timeout = '120s'; CREATE TABLE t (i int, filler text)")?;
    let mut stopped = None;
    wait_until("the page server reads from somebody", || {
        stopped = streamed_from(&cluster)?;
        Ok(stopped.is_some())
    })?;
    let pid = cluster.pid(&format!("safekeeper-{}/safekeeper.pid", stopped.unwrap_or(1)))?;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid)?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP)?;
    // More than the buffers hold, so that reading it back needs the page server to have it.
    client.batch_execute(
        "INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(1, 40000) i",
    )?;
    let rows: i64 = client.query_one("SELECT count(*) FROM t", &[])?.get(0);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT)?;
    ensure!(rows == 40_000);
    Ok(())
}

#[test]
fn a_stopped_minority_gets_its_branches_later() -> Result<()> {
    let cluster = cluster("3")?;
    let restart_the_page_server = || -> Result<()> {
        cluster.kill("pageserver/pageserver.pid")?;
        cluster.neon(&["start"]).map(drop)
    };
    let pid =
        nix::unistd::Pid::from_raw(i32::try_from(cluster.pid("safekeeper-3/safekeeper.pid")?)?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP)?;
    restart_the_page_server()?;
    cluster.neon(&["timeline", "create", "second"])?;
    let states: Vec<String> = parts(&cluster)?
        .iter()
        .map(|row| row["state"].as_str().unwrap_or_default().into())
        .collect();
    ensure!(states == ["idle", "idle", "down", "idle", "idle", "down"], "{states:?}");
    let endpoint = cluster.endpoint("second", "second", &[])?;
    endpoint.connect("postgres")?.batch_execute("CREATE TABLE t AS SELECT 42 AS answer")?;
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT)?;
    restart_the_page_server()?;
    let members = members(&cluster)?;
    ensure!(members.len() == 6 && members.iter().all(|(_, ids)| *ids == [1, 2, 3]), "{members:?}");
    // It is as good as the others now.
    kill_safekeeper(&cluster, 1)?;
    endpoint.connect("postgres")?.batch_execute("INSERT INTO t VALUES (43)")?;
    cluster.stop_endpoint(&endpoint, "immediate")?;
    cluster.start_endpoint(&endpoint)?;
    let rows: i64 = endpoint.connect("postgres")?.query_one("SELECT count(*) FROM t", &[])?.get(0);
    ensure!(rows == 2, "{rows} rows");
    Ok(())
}
