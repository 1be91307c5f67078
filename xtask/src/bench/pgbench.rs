//! pgbench on a compute and on a stock server with fsync on, same source, same disk.
//!
//! Rounds alternate between the two, clients are pinned to one CPU and the servers share both, so that both
//! sides meet the same neighbours; the figure is the median of the rounds.

use std::process::Command;

use anyhow::{Context, Result};
use pg_launch::PgInstall;
use system_tests::cluster::{SUPERUSER, open_tempdir};
use system_tests::{Cluster, Place, StockServer};

use super::{Better, Row};
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
pub fn run(built: &Built, seconds: u32, rounds: u32) -> Result<Vec<Row>> {
    let place = Place { neon: built.neon.clone(), install: built.compute.clone() };
    let cluster = Cluster::start(place)?;
    let ours = cluster.endpoint("bench", "main", &[("shared_buffers", SHARED_BUFFERS)])?;
    let temp = open_tempdir("neon-bench-")?;
    let settings = [("shared_buffers", SHARED_BUFFERS), ("fsync", "on")];
    let stock = StockServer::start(built.stock.clone(), &temp.path().join("stock"), &settings)?;
    for port in [ours.port, stock.port()] {
        pgbench(&built.stock, port, &["-i", "-q", "-s", SCALE])?;
    }
    let seconds = seconds.to_string();
    let mut rows = Vec::new();
    for (case, clients, extra) in CASES {
        let mut args = vec!["-M", "prepared", "-T", seconds.as_str(), "-c", clients, "-j", "2"];
        args.extend_from_slice(extra);
        let (mut mine, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            mine.push(tps(&pgbench(&built.stock, ours.port, &args)?)?);
            theirs.push(tps(&pgbench(&built.stock, stock.port(), &args)?)?);
        }
        let row = Row {
            case: (*case).to_owned(),
            ours: median(mine),
            reference: None,
            reference_is: None,
            ratio: None,
            unit: "tps".to_owned(),
            better: Better::Higher,
        };
        rows.push(row.against(median(theirs), "stock PostgreSQL, fsync on"));
    }
    Ok(rows)
}

fn pgbench(install: &PgInstall, port: u16, args: &[&str]) -> Result<String> {
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(install.program("pgbench"));
    command.env("LD_LIBRARY_PATH", install.lib_dir());
    command.args(["-h", "127.0.0.1", "-U", SUPERUSER, "-p"]).arg(port.to_string());
    capture(command.args(args).arg("postgres"))
}

fn tps(output: &str) -> Result<f64> {
    output
        .lines()
        .find_map(|line| line.strip_prefix("tps = ")?.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("pgbench printed no tps: {output}"))
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(0.0)
}
