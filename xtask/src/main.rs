//! The one tool of this repository: everything that is done with it is a command here.

mod bench;
mod build;
mod chaos;
mod demo;
mod fuzz;
mod pg;
mod pgvector;
mod regress;
mod run;
mod tally;
mod test;
mod tidy;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Building, checking, testing, measuring and showing this project.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set everything up and show it: pgbench, a compute thrown away and rebuilt, no row lost.
    Demo(demo::Options),
    /// Run every test.
    Test(test::Options),
    /// Run a regression suite of PostgreSQL on a compute.
    Regress(regress::Options),
    /// Kill, stop and cut off processes of a system under load, and check what clients were told.
    Chaos(chaos::Options),
    /// Measure, beside a reference in the same run.
    Bench(bench::Options),
    /// Fuzz what parses foreign bytes.
    Fuzz(fuzz::Options),
    /// Check format, lints, documentation and the project's own rules; never writes.
    Verify,
    /// Repair what `verify` complains of, where a tool can.
    Fix,
    /// Get, patch and build PostgreSQL.
    Pg(pg::Options),
    /// Build what the tests need and print where it is.
    Build,
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Demo(options) => demo::run(options),
        Command::Test(options) => test::run(options),
        Command::Regress(options) => regress::run(options),
        Command::Chaos(options) => chaos::run(options),
        Command::Bench(options) => bench::run(options),
        Command::Fuzz(options) => fuzz::run(options),
        Command::Verify => verify::verify(),
        Command::Fix => verify::fix(),
        Command::Pg(options) => pg::run(options),
        Command::Build => {
            let built = build::everything()?;
            println!("NEON_BIN={}", built.neon.display());
            println!("NEON_PG_INSTALL={}", built.compute.root().display());
            println!("NEON_PG_STOCK={}", built.stock.root().display());
            Ok(())
        }
    }
}
