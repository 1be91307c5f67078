//! `cargo xtask test`: every test of the project, then PostgreSQL's regression suite on a compute, then random faults.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::build::{self, Built};
use crate::chaos;
use crate::fuzz;
use crate::pgvector;
use crate::regress::{self, Suite};
use crate::run::{cargo, step, stream};
use crate::tally::Tally;

/// Options of the command.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Leave PostgreSQL's regression suites out.
    #[arg(long)]
    no_regress: bool,
    /// Only tests of this package.
    #[arg(long, short)]
    package: Option<String>,
}

/// Runs everything and prints `N passed, N failed`.
pub fn run(options: &Options) -> Result<()> {
    chaos::ensure_tools()?;
    let built = build::everything()?;
    let mut tally = cargo_tests(&built, options)?;
    if !options.no_regress && options.package.is_none() {
        for (what, suite, settings, verify_pages) in SUITE_RUNS {
            let suite = regress::Options {
                suite: *suite,
                verify_pages: *verify_pages,
                safekeepers: 1,
                settings: settings.iter().map(|text| (*text).to_owned()).collect(),
                output: None,
            };
            let result = step(what, || regress::run_with(&built, &suite));
            match result {
                Ok(count) => tally.add(count),
                Err(error) => {
                    eprintln!("{error:#}");
                    tally.fail(what);
                }
            }
        }
    }
    if options.package.is_none() {
        let what = "strike a system at random";
        match step(what, || chaos::short(&built, CHAOS_TIME)) {
            Ok(count) => tally.add(count),
            Err(error) => {
                eprintln!("{error:#}");
                tally.fail(what);
            }
        }
        tally.add(fuzz::bounded(FUZZ_SECONDS)?);
    }
    println!("{tally}");
    ensure!(tally.failed == 0, "{} tests failed", tally.failed);
    Ok(())
}

/// Time for all fuzz targets together.
const FUZZ_SECONDS: u32 = 40;

/// Time for random faults.
const CHAOS_TIME: Duration = Duration::from_secs(60);

/// Runs of PostgreSQL's suites that belong to every test run: what, which, settings, page audit.
const SUITE_RUNS: &[(&str, Suite, &[&str], bool)] = &[
    ("run PostgreSQL's regression suite", Suite::Core, &[], false),
    (
        "run PostgreSQL's regression suite with few buffers, each evicted page compared",
        Suite::Core,
        &["shared_buffers=1MB"],
        true,
    ),
    ("run PostgreSQL's isolation suite", Suite::Isolation, &[], false),
];

/// Runs `cargo test` over all crates that do not live inside PostgreSQL.
fn cargo_tests(built: &Built, options: &Options) -> Result<Tally> {
    let mut args = vec!["test", "--release", "--no-fail-fast"];
    match &options.package {
        Some(package) => args.extend(["--package", package.as_str()]),
        None => args.extend(["--workspace"]),
    }
    for inside in ["neon_ext", "neon_rmgr", "walredo_guest"] {
        if options.package.is_none() {
            args.extend(["--exclude", inside]);
        }
    }
    let mut command = cargo(&args);
    command.env("NEON_BIN", &built.neon);
    command.env("NEON_PG_INSTALL", built.compute.root());
    command.env("NEON_PG_STOCK", built.stock.root());
    command.env("NEON_PG_INSTALL_PGVECTOR", pgvector::install(built)?.root());
    command.env("NEON_PG_STOCK_BUILD", &built.pg.stock.build);
    command.env("NEON_PG_SOURCE", &built.pg.stock.source);
    let mut tally = Tally::default();
    let ok =
        step("run the tests of all crates", || stream(&mut command, |line| tally.see_cargo(line)))?;
    if !ok && tally.failed == 0 {
        // A test program that did not build or crashed has no count of its own.
        tally.fail("a test program did not run to its end");
    }
    Ok(tally)
}
