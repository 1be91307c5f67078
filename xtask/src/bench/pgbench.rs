//! pgbench on a compute and on a stock server with fsync on, same source, same disk.
//!
//! Rounds alternate between the two, and the servers of both, storage included, have the same processors, so that
//! both sides meet the same neighbours; the figure is the median of the rounds.

use std::process::Command;

use anyhow::{Context, Result};
use pg_launch::PgInstall;
use system_tests::cluster::{SUPERUSER, open_tempdir};
use system_tests::{Cluster, Place, StockServer};

use super::machine::pinned;
use super::{Better, Options, Pins, Row};
use crate::build::Built;
use crate::run::capture;

/// 100,000 accounts each.
const SCALE: &str = "10";
const SHARED_BUFFERS: &str = "256MB";

/// Cases: name, clients, further arguments.
const CASES: &[(&str, &str, &[&str])] = &[
    ("select/1", "1", &["-S"]),
    ("select/8", "8", &["-S"]),
    ("tpcb/1", "1", &[]),
    ("tpcb/8", "8", &[]),
];

/// Runs all cases.
pub fn run(built: &Built, options: &Options) -> Result<Vec<Row>> {
    let pins = &options.pins;
    let place = Place { neon: built.neon.clone(), install: built.compute.clone() };
    let temp = open_tempdir("neon-bench-")?;
    let (_cluster, ours, stock) = pinned(&pins.server_cpus, || {
        let cluster = Cluster::start(place)?;
        let ours = cluster.endpoint("bench", "main", &[("shared_buffers", SHARED_BUFFERS)])?;
        let settings = [("shared_buffers", SHARED_BUFFERS), ("fsync", "on")];
        let dir = temp.path().join("stock");
        let stock = StockServer::start(built.stock.clone(), &dir, &settings)?;
        Ok((cluster, ours, stock))
    })?;
    for port in [ours.port, stock.port()] {
        pgbench(&built.stock, pins, port, &["-i", "-q", "-s", SCALE])?;
    }
    let seconds = options.seconds.to_string();
    let mut rows = Vec::new();
    for (case, clients, extra) in CASES {
        let mut args = vec!["-M", "prepared", "-T", seconds.as_str(), "-c", clients, "-j", "2"];
        args.extend_from_slice(extra);
        let (mut mine, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds {
            mine.push(tps(&pgbench(&built.stock, pins, ours.port, &args)?)?);
            theirs.push(tps(&pgbench(&built.stock, pins, stock.port(), &args)?)?);
        }
        let row = Row::of_rounds(case, &mine, "tps", Better::Higher)?;
        rows.push(row.against_rounds(&theirs, "stock PostgreSQL, fsync on")?);
    }
    Ok(rows)
}

fn pgbench(install: &PgInstall, pins: &Pins, port: u16, args: &[&str]) -> Result<String> {
    let mut command = Command::new(install.program("pgbench"));
    command.env("LD_LIBRARY_PATH", install.lib_dir());
    command.args(["-h", "127.0.0.1", "-U", SUPERUSER, "-p"]).arg(port.to_string());
    command.args(args).arg("postgres");
    pinned(&pins.client_cpus, || capture(&mut command))
}

fn tps(output: &str) -> Result<f64> {
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
