//! pgbench on a compute and on a stock server with fsync on, same source, same disk.
//!
//! Rounds alternate between the two, and the servers of both, storage included, have the same processors, so that
//! both sides meet the same neighbours; the ratio is the median of the pairs.

use std::process::Command;

use anyhow::{Context, Result};
use system_tests::cluster::SUPERUSER;

use super::machine::pinned;
use super::sides::{Settings, Sides};
use super::{Options, Row};
use crate::build::Built;
use crate::run::capture;

/// What the reference of every row is.
const STOCK: &str = "stock PostgreSQL, fsync on";
/// Seconds of a turn. Machines are shared, and change from one second to the next.
const TURN_SECONDS: u32 = 2;
/// Room for all data of these benches in the local file cache.
pub const LOCAL_CACHE: &[(&str, &str)] =
    &[("neon.max_file_cache_size", "1GB"), ("neon.file_cache_size_limit", "1GB")];

/// `bench pgbench`: everything in shared buffers, one and eight clients.
pub fn run(built: &Built, options: &Options) -> Result<Vec<Row>> {
    let mut sides = Sides::new(built, &options.pins)?;
    sides.start(Settings { both: &[("shared_buffers", "256MB")], ours: &[] })?;
    initialise(&sides, 10)?;
    let select: &[&str] = &["-S"];
    let cases =
        [("select/1", 1, select), ("select/8", 8, select), ("tpcb/1", 1, &[]), ("tpcb/8", 8, &[])];
    cases
        .iter()
        .map(|(case, clients, args)| compare(&sides, options, case, *clients, args))
        .collect()
}

/// `bench pgbench-select`: eight times as much data as shared buffers, all of it in the local file cache here and in
/// the kernel's cache there; and all data in shared buffers.
pub fn select(built: &Built, options: &Options) -> Result<Vec<Row>> {
    let mut sides = Sides::new(built, &options.pins)?;
    let settings = |shared_buffers| [("shared_buffers", shared_buffers), ("autovacuum", "off")];
    let small = settings("32MB");
    let small = Settings { both: &small, ours: LOCAL_CACHE };
    sides.start(small)?;
    // 17 times 15 MB: eight times 32 MB.
    initialise(&sides, 17)?;
    read_all(&sides, "read")?;
    let mut rows = vec![compare(&sides, options, "lfc", 8, &["-S"])?];
    let big = settings("512MB");
    sides.start(Settings { both: &big, ours: LOCAL_CACHE })?;
    read_all(&sides, "buffer")?;
    rows.push(compare(&sides, options, "cached", 8, &["-S"])?);
    Ok(rows)
}

/// `bench pgbench-tpcb`: commits through a safekeeper that syncs, beside a server that syncs itself.
pub fn tpcb(built: &Built, options: &Options) -> Result<Vec<Row>> {
    let mut sides = Sides::new(built, &options.pins)?;
    let settings = Settings { both: &[("shared_buffers", "1GB")], ours: LOCAL_CACHE };
    sides.start(settings)?;
    initialise(&sides, 40)?;
    // A load leaves most of what it wrote outside shared buffers.
    read_all(&sides, "buffer")?;
    [("tpcb/1", 1), ("tpcb/8", 8), ("tpcb/32", 32)]
        .iter()
        .map(|(case, clients)| compare(&sides, options, case, *clients, &[]))
        .collect()
}

/// Makes and fills pgbench's tables; a unit of `scale` is 100,000 accounts, 15 MB.
fn initialise(sides: &Sides<'_>, scale: u32) -> Result<()> {
    for port in [sides.ours_port()?, sides.stock_port()?] {
        pgbench(sides, port, &["-i", "-q", "-s", &scale.to_string()])?;
    }
    Ok(())
}

/// Reads the big relations on both sides: into shared buffers (`buffer`), or only into what lies below them (`read`).
fn read_all(sides: &Sides<'_>, mode: &str) -> Result<()> {
    sides.both("CREATE EXTENSION IF NOT EXISTS pg_prewarm")?;
    ["pgbench_accounts", "pgbench_accounts_pkey"]
        .iter()
        .try_for_each(|name| sides.both(&format!("SELECT pg_prewarm('{name}', '{mode}')")))
}

/// Transactions per second of both sides: each round is a row of short turns, one side after the other.
fn compare(
    sides: &Sides<'_>,
    options: &Options,
    case: &str,
    clients: u32,
    extra: &[&str],
) -> Result<Row> {
    let turns = options.rounds * (options.seconds / TURN_SECONDS).max(1);
    let (seconds, clients) = (TURN_SECONDS.min(options.seconds).to_string(), clients.to_string());
    let mut args = vec!["-M", "prepared", "-T", &seconds, "-c", &clients, "-j", "2"];
    args.extend_from_slice(extra);
    let run = |port: u16| tps(&pgbench(sides, port, &args)?);
    let (ours, stock) = (sides.ours_port()?, sides.stock_port()?);
    let mut pairs = Vec::new();
    for turn in 0..turns {
        // Each leaves the kernel something to write: neither is always the one who comes after.
        pairs.push(if turn % 2 == 0 {
            (run(ours)?, run(stock)?)
        } else {
            let stock = run(stock)?;
            (run(ours)?, stock)
        });
    }
    Row::of_pairs(case, &pairs, "tps", STOCK)
}

/// Runs pgbench against a port, where clients run; its output.
pub fn pgbench(sides: &Sides<'_>, port: u16, args: &[&str]) -> Result<String> {
    let install = sides.stock_install();
    let mut command = Command::new(install.program("pgbench"));
    command.env("LD_LIBRARY_PATH", install.lib_dir());
    command.args(["-h", "127.0.0.1", "-U", SUPERUSER, "-p"]).arg(port.to_string());
    command.args(args).arg("postgres");
    pinned(sides.client_cpus(), || capture(&mut command))
}

/// Transactions per second in pgbench's output.
pub fn tps(output: &str) -> Result<f64> {
    output
        .lines()
        .find_map(|line| line.strip_prefix("tps = ")?.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("pgbench printed no tps: {output}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_per_second_are_found() {
        let output = "pgbench (17.11)\nlatency average = 0.5 ms\ntps = 1987.25 (without initial connection time)\n";
        assert_eq!(tps(output).unwrap(), 1987.25);
        assert!(tps("latency average = 0.5 ms").is_err());
    }
}
