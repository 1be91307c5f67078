//! `bench commit`: what a commit costs that survives the loss of a machine.
//!
//! Ours commits when a quorum of safekeepers has synced, with one safekeeper or three. The reference is the answer of
//! stock PostgreSQL to the same promise: one synchronous standby. All of them are on one disk here.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use system_tests::StockServer;
use system_tests::cluster::{single_value, wait_until};

use super::pgbench::{pgbench, tps};
use super::sides::{Settings, Sides};
use super::stats::{median, percentile};
use super::{Better, Options, Row};
use crate::build::Built;

const SETTINGS: Settings<'_> = Settings { both: &[("shared_buffers", "128MB")], ours: &[] };
const STOCK: &str = "stock PostgreSQL with one synchronous standby";
const CLIENTS: [u32; 3] = [1, 8, 32];
/// A transaction that is little but its commit.
const SCRIPT: &str = "INSERT INTO commits VALUES (:client_id);\n";

/// Runs the cases of each number of safekeepers that `neon init` offers.
pub fn run(built: &Built, options: &Options) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for safekeepers in [1, 3] {
        if safekeepers > 1 && !Sides::can_have_safekeepers(built)? {
            eprintln!(
                "    this build has one safekeeper for each environment: no cases sk{safekeepers}"
            );
            continue;
        }
        rows.extend(with_safekeepers(built, options, safekeepers)?);
    }
    Ok(rows)
}

fn with_safekeepers(built: &Built, options: &Options, safekeepers: u32) -> Result<Vec<Row>> {
    let mut sides = Sides::with_safekeepers(built, &options.pins, safekeepers)?;
    sides.start(SETTINGS)?;
    let _standby = synchronous_standby(&sides)?;
    sides.both("CREATE TABLE commits (client int)")?;
    let script = sides.scratch().join("commit.sql");
    fs::write(&script, SCRIPT)?;
    let mut rows = Vec::new();
    for clients in CLIENTS {
        let (mut ours, mut stock) = (Rounds::default(), Rounds::default());
        for _ in 0..options.rounds {
            for (port, rounds) in
                [(sides.ours_port()?, &mut ours), (sides.stock_port()?, &mut stock)]
            {
                rounds.add(&sides, port, &script, clients, options.seconds)?;
            }
        }
        let case = format!("sk{safekeepers}/{clients}");
        let of_rounds = |case: &str, ours: &[f64], stock: &[f64], unit, better| {
            Row::of_rounds(case, ours, unit, better)?.against_rounds(stock, STOCK)
        };
        rows.push(of_rounds(&case, &ours.tps, &stock.tps, "tps", Better::Higher)?);
        let p50 = format!("{case}/p50");
        rows.push(of_rounds(&p50, &ours.p50, &stock.p50, "us", Better::Lower)?);
        let p99 = format!("{case}/p99");
        rows.push(of_rounds(&p99, &ours.p99, &stock.p99, "us", Better::Lower)?);
    }
    Ok(rows)
}

/// A standby that every commit of the stock server waits for.
fn synchronous_standby(sides: &Sides<'_>) -> Result<StockServer> {
    let dir = sides.scratch().join("standby");
    let standby = sides.standby(&dir, SETTINGS)?;
    let mut primary = sides.connect_stock()?;
    primary.batch_execute("ALTER SYSTEM SET synchronous_standby_names = '*'")?;
    primary.batch_execute("SELECT pg_reload_conf()")?;
    wait_until("the standby is synchronous", || {
        let sql = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        Ok(single_value(&mut primary, sql)? == "1")
    })?;
    Ok(standby)
}

/// Results of the rounds of one side: transactions per second, and microseconds.
#[derive(Debug, Default)]
struct Rounds {
    tps: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Rounds {
    fn add(
        &mut self,
        sides: &Sides<'_>,
        port: u16,
        script: &Path,
        clients: u32,
        seconds: u32,
    ) -> Result<()> {
        let logs = tempfile::tempdir()?;
        let prefix = logs.path().join("log").to_string_lossy().into_owned();
        let script = script.to_string_lossy();
        let (clients, seconds) = (clients.to_string(), seconds.to_string());
        let args = [
            "-n",
            "-M",
            "prepared",
            "-T",
            &seconds,
            "-c",
            &clients,
            "-j",
            "2",
            "-f",
            &script,
            "--log",
            "--log-prefix",
            &prefix,
        ];
        self.tps.push(tps(&pgbench(sides, port, &args)?)?);
        let mut latencies = Vec::new();
        for entry in fs::read_dir(logs.path())? {
            latencies.extend(latencies_in(&fs::read_to_string(entry?.path())?)?);
        }
        self.p50.push(median(&latencies).context("pgbench logged no transaction")?);
        self.p99.push(percentile(&latencies, 99).context("pgbench logged no transaction")?);
        Ok(())
    }
}

/// Microseconds of each transaction: the third field of each line of pgbench's log.
fn latencies_in(log: &str) -> Result<Vec<f64>> {
    let latency = |line: &str| -> Option<f64> { line.split_whitespace().nth(2)?.parse().ok() };
    log.lines()
        .map(|line| latency(line).with_context(|| format!("not a line of pgbench's log: {line}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_the_third_field() {
        let log = "0 1 2038 0 1767225600 10000\n1 1 1999 0 1767225600 10040\n";
        assert_eq!(latencies_in(log).unwrap(), [2038.0, 1999.0]);
        assert!(latencies_in("0 1\n").is_err());
        assert!(latencies_in("").unwrap().is_empty());
    }
}
