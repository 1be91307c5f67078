//! `cargo xtask fuzz`: coverage-guided fuzzing of what parses foreign bytes.
//!
//! libFuzzer with the compiler's own coverage counters, which the stable compiler can put in; no sanitizer, since
//! the code under test is safe Rust and what is looked for are panics and broken promises. A crash leaves its input
//! in `target/fuzz/artifacts` and prints it.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::build::target_dir;
use crate::run::{cargo, check, root, step};
use crate::tally::Tally;

/// Programs in `tests/fuzz/targets`.
const TARGETS: &[&str] = &[
    "wal_record",
    "wal_stream",
    "page_request",
    "page_response",
    "consensus_message",
    "consensus_message_v2",
    "wire_frontend",
    "wire_backend",
    "control_file",
];

/// What makes libFuzzer see which code an input reaches.
const COVERAGE_FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing";

/// What libFuzzer says last of how much it did.
const RUNS_LINE: &str = "stat::number_of_executed_units:";

/// Longest input: a few WAL pages.
const INPUT_BYTES_MAX: u32 = 32_768;

/// Options of the command.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only this target.
    target: Option<String>,
    /// Time for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Repeats a run (printed by each).
    #[arg(long)]
    seed: Option<u32>,
}

/// Fuzzes and prints `N passed, N failed`.
pub fn run(options: &Options) -> Result<()> {
    let targets: Vec<&str> = match &options.target {
        Some(name) => TARGETS.iter().copied().filter(|target| target == name).collect(),
        None => TARGETS.to_vec(),
    };
    ensure!(!targets.is_empty(), "no such target; there are {}", TARGETS.join(", "));
    let tally = campaign(&targets, options.seconds, options.seed)?;
    println!("{tally}");
    ensure!(tally.failed == 0, "{} targets found a crash", tally.failed);
    Ok(())
}

/// The share of every test run: all targets, which share `seconds`.
pub fn bounded(seconds: u32) -> Result<Tally> {
    let count = u32::try_from(TARGETS.len()).unwrap_or(u32::MAX);
    campaign(TARGETS, (seconds / count).max(1), None)
}

fn campaign(targets: &[&str], seconds: u32, seed: Option<u32>) -> Result<Tally> {
    let target_dir = target_dir().join("fuzz");
    let manifest = root().join("tests/fuzz/Cargo.toml");
    step("build the fuzz targets", || {
        let mut build = cargo(&["build", "--release", "--bins", "--manifest-path"]);
        build.arg(&manifest).env("CARGO_TARGET_DIR", &target_dir).env("RUSTFLAGS", COVERAGE_FLAGS);
        // Without an explicit target the flags would also reach build scripts.
        check(build.args(["--target", &host()?]))
    })?;
    let artifacts = target_dir.join("artifacts");
    fs::create_dir_all(&artifacts)?;
    let mut tally = Tally::default();
    for target in targets {
        let corpus = target_dir.join("corpus").join(target);
        fs::create_dir_all(&corpus)?;
        let seed = seed.unwrap_or_else(std::process::id);
        eprintln!("==> fuzz {target} for {seconds} s, --seed {seed}");
        let mut fuzz = Command::new(target_dir.join(host()?).join("release").join(target));
        fuzz.arg(&corpus);
        // What chance does not find: inputs that make sense, kept in the tree.
        let seeds = root().join("tests/fuzz/seeds").join(target);
        if seeds.is_dir() {
            fuzz.arg(seeds);
        }
        fuzz.arg(format!("-max_total_time={seconds}")).arg(format!("-seed={seed}"));
        fuzz.arg(format!("-max_len={INPUT_BYTES_MAX}")).arg("-print_final_stats=1");
        fuzz.arg(format!("-artifact_prefix={}/{target}-", artifacts.display()));
        let output = fuzz.output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            tally.passed += 1;
            let runs = text.lines().find_map(|line| line.strip_prefix(RUNS_LINE));
            eprintln!("    {} inputs", runs.unwrap_or_default().trim());
        } else {
            tally.fail(&format!("fuzz {target} --seed {seed}"));
            eprintln!("{text}");
        }
    }
    Ok(tally)
}

/// Target triple of this machine.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = crate::run::capture(Command::new(rustc).arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.unwrap_or("x86_64-unknown-linux-gnu").to_owned())
}
