//! Shared memory that is in use becomes huge pages, without any that were reserved, and is the same memory as before.

use std::fs;

use anyhow::{Context, Result, ensure};
use postgres::Client;
use system_tests::cluster::{child_named, single_value, wait_until};
use system_tests::{Cluster, Endpoint, Place};

const POSTMASTER: &str = "endpoints/main/pgdata/postmaster.pid";
const HUGE_PAGES: &str = "SELECT value::bigint::text FROM neon_perf_counters \
     WHERE metric = 'shared_memory_huge_pages_total'";
/// About 20 MB.
const FILL: &str = "INSERT INTO t SELECT g, repeat(md5(g::text), 6) \
     FROM generate_series((SELECT count(*) FROM t) + 1, (SELECT count(*) FROM t) + 80000) g";
const SUM: &str = "SELECT count(*) || ' ' || sum(hashtext(v)::bigint) FROM t";

fn start(cluster: &Cluster, settings: &[(&str, &str)]) -> Result<(Endpoint, Client)> {
    let mut all = vec![("shared_buffers", "48MB")];
    all.extend(settings);
    let endpoint = cluster.endpoint("main", "main", &all)?;
    let mut client = endpoint.connect("postgres")?;
    client.batch_execute("CREATE EXTENSION IF NOT EXISTS neon")?;
    Ok((endpoint, client))
}

fn number(client: &mut Client, sql: &str) -> Result<u64> {
    Ok(single_value(client, sql)?.parse()?)
}

/// Whether the worker runs. It has no session, so the views of PostgreSQL do not show it.
fn has_worker(cluster: &Cluster) -> Result<bool> {
    Ok(child_named(cluster.pid(POSTMASTER)?, "neon huge pages")?.is_some())
}

/// Whether this kernel has the call (Linux 6.1), and its administrator has not forbidden it.
fn kernel_can() -> Result<bool> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let mut part = || parts.next().context("a version of the kernel")?.context("a number");
    let version = (part()?, part()?);
    let setting = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    Ok((6, 1) <= version && setting.is_ok_and(|setting| !setting.contains("[deny]")))
}

/// Bytes of shared memory that a session has in huge pages when it has read the table: a process maps what it touches.
fn mapped_in_huge_pages(client: &mut Client) -> Result<u64> {
    single_value(client, SUM)?;
    let pid = number(client, "SELECT pg_backend_pid()::text")?;
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let kilobytes = text.lines().filter_map(|line| {
        line.strip_prefix("ShmemPmdMapped:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    Ok(kilobytes.sum::<u64>() * 1024)
}

#[test]
fn what_is_in_use_becomes_huge_pages_and_stays_the_same() -> Result<()> {
    let cluster = Cluster::start(Place::from_env()?)?;
    let (endpoint, mut client) = start(&cluster, &[])?;
    client.batch_execute("CREATE TABLE t (id bigint, v text)")?;
    if !kernel_can()? {
        client.batch_execute(FILL)?;
        wait_until("the worker has given up", || Ok(!has_worker(&cluster)?))?;
        ensure!(number(&mut client, HUGE_PAGES)? == 0);
        return Ok(());
    }
    client.batch_execute(FILL)?;
    let before = single_value(&mut client, SUM)?;
    wait_until("buffers in use are huge pages", || Ok(8 <= number(&mut client, HUGE_PAGES)?))?;
    ensure!(single_value(&mut client, SUM)? == before);
    let mut other = endpoint.connect("postgres")?;
    let mapped = mapped_in_huge_pages(&mut other)?;
    ensure!(8 * 2 * 1024 * 1024 <= mapped, "{mapped} bytes are mapped in huge pages");

    // The rest of shared memory is not touched yet, and stays as it is.
    let total = number(
        &mut client,
        "SELECT (setting::bigint / 2)::text FROM pg_settings WHERE name = 'shared_memory_size'",
    )?;
    ensure!(number(&mut client, HUGE_PAGES)? < total);
    ensure!(has_worker(&cluster)?, "the worker waits for it");

    // While everything is written and read.
    for _ in 0..3 {
        client.batch_execute(FILL)?;
        client.batch_execute("UPDATE t SET v = reverse(v) WHERE id % 3 = 0")?;
        ensure!(single_value(&mut client, SUM)? == single_value(&mut other, SUM)?);
    }
    let after = single_value(&mut client, SUM)?;
    drop((client, other));
    cluster.neon(&["endpoint", "stop", "main"])?;
    cluster.neon(&["endpoint", "start", "main"])?;
    ensure!(endpoint.value(SUM)? == after, "another compute reads what this one wrote");
    Ok(())
}

#[test]
fn nobody_has_to_have_them() -> Result<()> {
    let cluster = Cluster::start(Place::from_env()?)?;
    let (_endpoint, mut client) = start(&cluster, &[("neon.huge_pages", "off")])?;
    client.batch_execute("CREATE TABLE t (id bigint, v text)")?;
    client.batch_execute(FILL)?;
    ensure!(!has_worker(&cluster)?);
    ensure!(number(&mut client, HUGE_PAGES)? == 0);
    Ok(())
}
