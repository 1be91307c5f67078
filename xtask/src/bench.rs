//! `cargo xtask bench`: our figures beside a reference measured in the same run.
//!
//! Each bench writes `target/bench/NAME.json`:
//! `{"bench", "calibration": {"tcp_rtt_us", "fdatasync_us", "loadavg"}, "rows": [{"case", "ours", "reference",
//! "reference_is", "ratio", "unit", "better"}]}`; a ratio above 1 always means that ours is better. Beside these:
//! `calibration_before`, taken ahead of the bench, `load` and `busy` (see `machine`), `pinned`, and in rows that are
//! the median of rounds `ours_spread` and `reference_spread`. Where rounds are pairs of turns (pgbench), `ratio` is the median of
//! the pairs'.

mod bulk;
mod calibration;
mod commit;
mod machine;
mod pgbench;
mod plot;
mod proxy;
mod row;
mod seqscan;
mod sides;
mod start;
mod stats;
mod wal;

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::Serialize;

use crate::build::{self, Built, target_dir};
use crate::run::{capture, cargo, check, root, step};
use calibration::Calibration;
use row::{Better, Row};

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
    /// Reads out of the local file cache, and out of shared buffers.
    PgbenchSelect,
    /// Commits: 1, 8 and 32 clients.
    PgbenchTpcb,
    /// Scans of a big table, VACUUM and CREATE INDEX: warm, cold, and far from the page server.
    Seqscan,
    /// COPY, CREATE INDEX, INSERT ... SELECT.
    Bulk,
    /// From nothing to the first answer.
    Start,
    /// Commits that survive a machine, beside a synchronous standby.
    Commit,
    /// WAL through a safekeeper, and on into the page server.
    Wal,
}

/// Options of the command.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Which benches (default: all).
    #[arg(value_enum)]
    benches: Vec<Bench>,
    /// Measure nothing; draw the results there are into docs/performance/.
    #[arg(long)]
    plot: bool,
    /// Measure although the machine is busy with something else; the result says so.
    #[arg(long)]
    busy: bool,
    /// Seconds of each round of pgbench, in turns of 2 (of `commit`: in one).
    #[arg(long, default_value_t = 6)]
    seconds: u32,
    /// Rounds, alternating between ours and stock.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    #[command(flatten)]
    pins: Pins,
}

/// Which processors the two sides get, in benches that compare servers. Both sides get the same.
#[derive(Debug, Clone, Serialize, clap::Args)]
pub struct Pins {
    /// Processors of the clients (default: the first one, or the first two where loads and commits are measured).
    #[arg(long, value_delimiter = ',')]
    client_cpus: Vec<usize>,
    /// Processors of all servers (default: as for clients).
    #[arg(long, value_delimiter = ',')]
    server_cpus: Vec<usize>,
}

impl Pins {
    /// What was given, and for the rest what suits a bench.
    fn or_default(&self, bench: Bench) -> Pins {
        let default = bench.default_cpus();
        let or =
            |given: &Vec<usize>| if given.is_empty() { default.clone() } else { given.clone() };
        Pins { client_cpus: or(&self.client_cpus), server_cpus: or(&self.server_cpus) }
    }
}

impl Bench {
    /// A read is one question and one answer: on a virtual machine, waking another processor for it would be all that is
    /// measured. A load or a commit goes through a row of processes, here and in a stock server with its background writers:
    /// it gets what a small machine has.
    fn default_cpus(self) -> Vec<usize> {
        let available = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        match self {
            Bench::Bulk | Bench::PgbenchTpcb | Bench::Commit | Bench::Wal => {
                (0..available.min(2)).collect()
            }
            _ => vec![0],
        }
    }
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    bench: &'a str,
    calibration: Calibration,
    calibration_before: Calibration,
    load: f64,
    busy: bool,
    pinned: Option<&'a Pins>,
    rows: Vec<Row>,
}

/// Runs the chosen benches.
pub fn run(options: &Options) -> Result<()> {
    if options.plot {
        for plot in plot::all(&target_dir().join("bench"), &root().join("docs/performance"))? {
            println!("{}", plot.display());
        }
        return Ok(());
    }
    let built = build::everything()?;
    let all = Bench::value_variants();
    let benches = if options.benches.is_empty() { all } else { &options.benches[..] };
    for bench in benches {
        let name = bench.to_possible_value().map(|value| value.get_name().to_owned());
        let name = name.context("a bench without a name")?;
        let load = machine::load()?;
        machine::check_load(load, options.busy)?;
        let calibration_before = Calibration::measure()?;
        let options = Options { pins: options.pins.or_default(*bench), ..options.clone() };
        let rows = step(&format!("bench {name}"), || measure(*bench, &built, &options))?;
        let calibration = Calibration::measure()?;
        println!("{name}");
        row::print(&rows);
        println!("  {calibration}");
        if !calibration.agrees_with(&calibration_before) {
            println!(
                "  the disk was twice as fast at one end of this run as at the other: measure again"
            );
        }
        write(&Report {
            bench: &name,
            calibration,
            calibration_before,
            load,
            busy: load > machine::LOAD_LIMIT,
            pinned: bench.compares_servers().then_some(&options.pins),
            rows,
        })?;
    }
    Ok(())
}

impl Bench {
    fn compares_servers(self) -> bool {
        match self {
            Bench::Redo | Bench::Ingest | Bench::Getpage => false,
            Bench::Pgbench
            | Bench::PgbenchSelect
            | Bench::PgbenchTpcb
            | Bench::Seqscan
            | Bench::Bulk
            | Bench::Start
            | Bench::Commit
            | Bench::Wal => true,
        }
    }
}

fn measure(bench: Bench, built: &Built, options: &Options) -> Result<Vec<Row>> {
    match bench {
        Bench::Redo => program(built, "walredo_sidecar", "bench_redo"),
        Bench::Ingest => program(built, "pageserver", "bench_ingest"),
        Bench::Getpage => program(built, "pageserver", "bench_getpage"),
        Bench::Pgbench => pgbench::run(built, options),
        Bench::PgbenchSelect => pgbench::select(built, options),
        Bench::PgbenchTpcb => pgbench::tpcb(built, options),
        Bench::Seqscan => seqscan::run(built, options),
        Bench::Bulk => bulk::run(built, options),
        Bench::Start => start::run(built, options),
        Bench::Commit => commit::run(built, options),
        Bench::Wal => wal::run(built, options),
    }
}

/// Runs a bench program, which prints its rows, pinned to one CPU.
fn program(built: &Built, package: &str, binary: &str) -> Result<Vec<Row>> {
    check(&mut cargo(&["build", "--release", "--package", package, "--bin", binary]))?;
    let mut command = Command::new(target_dir().join("release").join(binary));
    command.env("NEON_PG_INSTALL", built.compute.root());
    command.env("NEON_PG_STOCK", built.stock.root());
    let text = machine::pinned(&[0], || capture(&mut command))?;
    let rows = row::parse(&text).with_context(|| format!("{binary} printed: {text}"))?;
    ensure!(!rows.is_empty(), "{binary} measured nothing");
    Ok(rows)
}

fn write(report: &Report<'_>) -> Result<()> {
    let dir = target_dir().join("bench");
    fs::create_dir_all(&dir)?;
    let path = dir.join(format!("{}.json", report.bench));
    fs::write(&path, serde_json::to_string_pretty(report)?)?;
    println!("  written to {}", path.display());
    Ok(())
}
