//! `cargo xtask chaos`: random faults against a whole system under load.

use std::time::Duration;

use anyhow::{Result, ensure};
use system_tests::Place;
use system_tests::chaos::{self, Limit};

use crate::build::{self, Built, target_dir};
use crate::pg::prerequisites;
use crate::tally::Tally;

/// Options of the command.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How long faults go on.
    #[arg(long, conflicts_with = "seconds")]
    minutes: Option<u64>,
    /// The same in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Decides which faults come, and in what order (default: random, and printed).
    #[arg(long)]
    seed: Option<u64>,
    /// Safekeepers of the system. Of three or more one is always out.
    #[arg(long, default_value_t = 3)]
    safekeepers: u16,
}

/// Runs a campaign and prints `N passed, N failed`.
pub fn run(options: &Options) -> Result<()> {
    ensure_tools()?;
    let built = build::everything()?;
    let time = match options.minutes {
        Some(minutes) => Duration::from_secs(60 * minutes),
        None => Duration::from_secs(options.seconds),
    };
    let tally = campaign(&built, options.safekeepers, options.seed, time)?;
    println!("{tally}");
    ensure!(tally.failed == 0, "{} checks failed", tally.failed);
    Ok(())
}

/// Tools for cutting networks, which only root can do.
pub fn ensure_tools() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    prerequisites::ensure(prerequisites::FOR_NETWORK_CUTS)
}

/// A campaign with three safekeepers and a seed of its own.
pub fn short(built: &Built, time: Duration) -> Result<Tally> {
    campaign(built, 3, None, time)
}

fn campaign(built: &Built, safekeepers: u16, seed: Option<u64>, time: Duration) -> Result<Tally> {
    let place = Place { neon: built.neon.clone(), install: built.compute.clone() };
    let seed = seed.unwrap_or_else(rand::random);
    let logs = target_dir().join("chaos").join(format!("seed-{seed}"));
    let options = chaos::Options { safekeepers, seed, limit: Limit::Time(time), logs };
    let report = chaos::run(place, &options)?;
    print!("{report}");
    let mut tally = Tally { passed: report.passed() as u64, ..Tally::default() };
    for name in report.failed() {
        tally.fail(&format!("chaos with seed {seed}: {name}"));
    }
    Ok(tally)
}
