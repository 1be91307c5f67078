//! `cargo xtask bench`: our figures beside a reference measured in the same run.
//!
//! Each bench writes `target/bench/NAME.json`:
//! `{"bench", "calibration": {"tcp_rtt_us", "fdatasync_us", "loadavg"}, "rows": [{"case", "ours", "reference",
//! "reference_is", "ratio", "unit", "better"}]}`; a ratio above 1 always means that ours is better.

mod calibration;
mod pgbench;

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::build::{self, Built, target_dir};
use crate::run::{capture, cargo, check, step};
use calibration::Calibration;

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bench {
    /// One page through WAL redo.
    Redo,
    /// WAL into layers.
    Ingest,
    /// Pages over the wire.
    Getpage,
    /// pgbench beside a stock PostgreSQL on the same disk.
    Pgbench,
}

/// Options of the command.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Which benches (default: all).
    #[arg(value_enum)]
    benches: Vec<Bench>,
    /// Seconds of each round of pgbench.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Rounds of pgbench, alternating between ours and stock.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
}

/// One line of a result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    pub case: String,
    pub ours: f64,
    #[serde(default)]
    pub reference: Option<f64>,
    #[serde(default)]
    pub reference_is: Option<String>,
    #[serde(default)]
    pub ratio: Option<f64>,
    pub unit: String,
    pub better: Better,
}

/// Which direction is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    Higher,
    Lower,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    bench: &'a str,
    calibration: Calibration,
    rows: Vec<Row>,
}

impl Row {
    /// Sets the reference and the ratio.
    pub fn against(mut self, reference: f64, reference_is: &str) -> Row {
        self.ratio = match self.better {
            Better::Higher if reference > 0.0 => Some(self.ours / reference),
            Better::Lower if self.ours > 0.0 => Some(reference / self.ours),
            _ => None,
        };
        self.reference = Some(reference);
        self.reference_is = Some(reference_is.to_owned());
        self
    }
}

/// Runs the chosen benches.
pub fn run(options: &Options) -> Result<()> {
    let built = build::everything()?;
    let all = [Bench::Redo, Bench::Ingest, Bench::Getpage, Bench::Pgbench];
    let benches = if options.benches.is_empty() { &all[..] } else { &options.benches[..] };
    for bench in benches {
        let name = bench.to_possible_value().map(|value| value.get_name().to_owned());
        let name = name.context("a bench without a name")?;
        let rows = step(&format!("bench {name}"), || match bench {
            Bench::Redo => program(&built, "walredo_sidecar", "bench_redo"),
            Bench::Ingest => program(&built, "pageserver", "bench_ingest"),
            Bench::Getpage => program(&built, "pageserver", "bench_getpage"),
            Bench::Pgbench => pgbench::run(&built, options.seconds, options.rounds),
        })?;
        report(&name, rows)?;
    }
    Ok(())
}

/// Runs a bench program, which prints its rows as a JSON array, pinned to one CPU.
fn program(built: &Built, package: &str, binary: &str) -> Result<Vec<Row>> {
    check(&mut cargo(&["build", "--release", "--package", package, "--bin", binary]))?;
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(target_dir().join("release").join(binary));
    command.env("NEON_PG_INSTALL", built.compute.root());
    command.env("NEON_PG_STOCK", built.stock.root());
    let text = capture(&mut command)?;
    let mut rows = parse_rows(&text).with_context(|| format!("{binary} printed: {text}"))?;
    for row in &mut rows {
        if let (Some(reference), Some(what), None) =
            (row.reference, row.reference_is.clone(), row.ratio)
        {
            *row = row.clone().against(reference, &what);
        }
    }
    ensure!(!rows.is_empty(), "{binary} measured nothing");
    Ok(rows)
}

/// Rows as one JSON array, or one row after the other.
fn parse_rows(text: &str) -> serde_json::Result<Vec<Row>> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Printed {
        Row(Row),
        Rows(Vec<Row>),
    }
    let mut all = Vec::new();
    for printed in serde_json::Deserializer::from_str(text).into_iter() {
        match printed? {
            Printed::Row(row) => all.push(row),
            Printed::Rows(rows) => all.extend(rows),
        }
    }
    Ok(all)
}

fn report(name: &str, rows: Vec<Row>) -> Result<()> {
    println!("{name}");
    println!(
        "  {:<24} {:>12} {:>12} {:>8}  {:<10} reference",
        "case", "ours", "reference", "ratio", "unit"
    );
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
    for row in &rows {
        println!(
            "  {:<24} {:>12.2} {:>12} {:>8}  {:<10} {}",
            row.case,
            row.ours,
            number(row.reference),
            number(row.ratio),
            row.unit,
            row.reference_is.as_deref().unwrap_or("-")
        );
    }
    let report = Report { bench: name, calibration: Calibration::measure()?, rows };
    let dir = target_dir().join("bench");
    fs::create_dir_all(&dir)?;
    let path = dir.join(format!("{name}.json"));
    fs::write(&path, serde_json::to_string_pretty(&report)?)?;
    println!("  written to {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_as_an_array_or_one_by_one() {
        let row = r#"{"case":"a","ours":2.0,"unit":"us","better":"lower"}"#;
        assert_eq!(parse_rows(&format!("[{row},{row}]")).unwrap().len(), 2);
        let rows = parse_rows(&format!("{row}\n{row}\n")).unwrap();
        assert_eq!(rows.len(), 2);
        let ratio = rows[0].clone().against(4.0, "twice as slow").ratio;
        assert_eq!(ratio, Some(2.0));
        assert!(parse_rows("{}").is_err());
    }
}
