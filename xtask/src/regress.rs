//! `cargo xtask regress`: PostgreSQL's own regression suites against a compute.
//!
//! Expected files are PostgreSQL's, unmodified, and no test is left out. While a suite runs, PGDATA is watched:
//! a file of a permanent relation there would mean that it is not the storage that is tested.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use system_tests::cluster::{SUPERUSER, open_tempdir};
use system_tests::{Cluster, Endpoint, Place};

use crate::build::{self, Built};
use crate::run::{step, stream};
use crate::tally::Tally;

/// How often PGDATA is looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// A suite of PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// `src/test/regress` with `parallel_schedule`.
    Core,
    /// `src/test/isolation`.
    Isolation,
}

/// Options of the command.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Which suite.
    #[arg(long, value_enum, default_value = "core")]
    pub suite: Suite,
    /// Compare every page that leaves the buffers with the page server's version of it.
    #[arg(long)]
    pub verify_pages: bool,
    /// Further settings of the compute, as in `--set shared_buffers=1MB`.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub settings: Vec<String>,
    /// Safekeepers of the system.
    #[arg(long, default_value_t = 1)]
    pub safekeepers: u16,
    /// Keep the results (differences, logs) in this directory.
    #[arg(long)]
    pub output: Option<PathBuf>,
}

/// Runs a suite and prints `N passed, N failed`.
pub fn run(options: &Options) -> Result<()> {
    let built = build::everything()?;
    let tally = run_with(&built, options)?;
    println!("{tally}");
    ensure!(tally.failed == 0, "{} tests failed", tally.failed);
    Ok(())
}

/// Runs a suite on a new system.
pub fn run_with(built: &Built, options: &Options) -> Result<Tally> {
    let place = Place { neon: built.neon.clone(), install: built.compute.clone() };
    let safekeepers = options.safekeepers.to_string();
    let init = ["--safekeepers", &safekeepers];
    let cluster = step("start a system for the suite", || Cluster::start_with(place, &init))?;
    let mut settings = parse_settings(&options.settings)?;
    // Expected files are PostgreSQL's, which knows no storage but its own.
    settings.push(("neon.explain_storage", "off"));
    if options.verify_pages {
        settings.push(("neon.audit_pages", "on"));
    }
    let endpoint = cluster.endpoint("regress", "main", &settings)?;
    let watch = FileWatch::start(cluster.endpoint_dir(&endpoint).join("pgdata"));
    let mut tally = run_suite(built, &endpoint, options)?;
    let strangers = watch.finish();
    if !strangers.is_empty() {
        let list: Vec<String> = strangers.iter().map(|path| path.display().to_string()).collect();
        eprintln!("permanent relations with files under PGDATA: {}", list.join(", "));
        tally.fail("no permanent relation has a file");
    }
    if cluster.pid("endpoints/regress/compute.pid").is_err()
        || endpoint.connect("postgres").is_err()
    {
        eprintln!("the compute did not survive the suite");
        save_logs(&cluster, &endpoint, options)?;
        tally.fail("the compute survives the suite");
    }
    Ok(tally)
}

fn parse_settings(settings: &[String]) -> Result<Vec<(&str, &str)>> {
    settings
        .iter()
        .map(|text| text.split_once('=').with_context(|| format!("\"{text}\" is not NAME=VALUE")))
        .collect()
}

fn run_suite(built: &Built, endpoint: &Endpoint, options: &Options) -> Result<Tally> {
    let temp = open_tempdir("neon-regress-")?;
    let output = match &options.output {
        Some(dir) => {
            fs::create_dir_all(dir)?;
            dir.canonicalize()?
        }
        None => temp.path().to_owned(),
    };
    // The server reads and writes files of the suite.
    let user = pg_launch::ensure_system_user()?;
    if let Some(user) = &user {
        user.check_searchable(&output)?;
        user.give(&output)?;
    }
    let mut command = suite_command(built, options.suite, &output)?;
    command.arg("--host=127.0.0.1").arg(format!("--port={}", endpoint.port));
    command.arg(format!("--user={SUPERUSER}"));
    if let Some(user) = &user {
        use std::os::unix::process::CommandExt;
        command.uid(user.uid).gid(user.gid);
    }
    let mut tally = Tally::default();
    let ok = stream(&mut command, |line| tally.see_tap(line))?;
    if !ok && tally.failed == 0 {
        bail!("the suite's runner failed before any test did");
    }
    let expected = scheduled(&fs::read_to_string(schedule_path(built, options.suite))?);
    if tally.passed + tally.failed != expected {
        eprintln!("{} of {expected} tests ran", tally.passed + tally.failed);
        tally.fail("all tests of the suite run");
    }
    if tally.failed > 0
        && let Ok(text) = fs::read_to_string(output.join("regression.diffs"))
    {
        let lines: Vec<&str> = text.lines().take(200).collect();
        eprintln!("{}", lines.join("\n"));
    }
    Ok(tally)
}

fn suite_command(built: &Built, suite: Suite, output: &Path) -> Result<Command> {
    let (name, runner) = match suite {
        Suite::Core => ("regress", "pg_regress"),
        Suite::Isolation => ("isolation", "pg_isolation_regress"),
    };
    let source = built.pg.patched.source.join("src/test").join(name);
    let build = built.pg.patched.build.join("src/test").join(name);
    let mut command = Command::new(build.join(runner));
    command.current_dir(output);
    command.env("LD_LIBRARY_PATH", built.compute.lib_dir());
    command.arg(format!("--inputdir={}", source.display()));
    command.arg(format!("--outputdir={}", output.display()));
    command.arg(format!("--bindir={}", built.compute.bin_dir().display()));
    command.arg(format!("--dlpath={}", built.pg.patched.build.join("src/test/regress").display()));
    command.arg(format!("--schedule={}", schedule_path(built, suite).display()));
    command.arg("--max-concurrent-tests=20");
    Ok(command)
}

/// The list of a suite's tests.
fn schedule_path(built: &Built, suite: Suite) -> PathBuf {
    let tests = built.pg.patched.source.join("src/test");
    match suite {
        Suite::Core => tests.join("regress/parallel_schedule"),
        Suite::Isolation => tests.join("isolation/isolation_schedule"),
    }
}

fn save_logs(cluster: &Cluster, endpoint: &Endpoint, options: &Options) -> Result<()> {
    let Some(output) = &options.output else { return Ok(()) };
    for name in ["postgres.log", "compute.log"] {
        let from = cluster.endpoint_dir(endpoint).join(name);
        if from.exists() {
            fs::copy(&from, output.join(name))?;
        }
    }
    fs::copy(cluster.dir().join("pageserver/pageserver.log"), output.join("pageserver.log"))?;
    Ok(())
}

/// Watches PGDATA for files of permanent relations.
struct FileWatch {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<HashSet<PathBuf>>,
}

impl FileWatch {
    fn start(pgdata: PathBuf) -> FileWatch {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut before, mut found) = (HashSet::new(), HashSet::new());
            while !stopped.load(Ordering::Relaxed) {
                let now = suspects(&pgdata);
                // Twice in a row: an unlogged relation's main fork exists a moment before its init fork.
                found.extend(now.intersection(&before).cloned());
                before = now;
                std::thread::sleep(WATCH_INTERVAL);
            }
            found
        });
        FileWatch { stop, thread }
    }

    fn finish(self) -> HashSet<PathBuf> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

/// Files that are named like a relation fork, have something in them, and have no init fork beside them (as
/// unlogged relations have). Temporary relations' names start with a letter.
fn suspects(pgdata: &Path) -> HashSet<PathBuf> {
    let mut directories = vec![pgdata.join("global")];
    for parent in [pgdata.join("base"), pgdata.join("pg_tblspc")] {
        collect_directories(&parent, 3, &mut directories);
    }
    let mut found = HashSet::new();
    for directory in directories {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let number = name.split(['_', '.']).next().unwrap_or_default().to_owned();
            let is_fork = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
            let has_data = entry.metadata().is_ok_and(|meta| meta.is_file() && meta.len() > 0);
            let unlogged = directory.join(format!("{number}_init")).exists();
            if is_fork && has_data && !unlogged {
                found.insert(entry.path());
            }
        }
    }
    found
}

fn collect_directories(parent: &Path, depth: u32, directories: &mut Vec<PathBuf>) {
    if depth == 0 {
        return;
    }
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        // Files of parallel hash joins there are named like relations.
        if entry.path().is_dir() && entry.file_name() != "pgsql_tmp" {
            directories.push(entry.path());
            collect_directories(&entry.path(), depth - 1, directories);
        }
    }
}

/// The number of tests that a schedule lists.
fn scheduled(schedule: &str) -> u64 {
    schedule
        .lines()
        .filter_map(|line| line.trim().strip_prefix("test:"))
        .map(|tests| tests.split_whitespace().count() as u64)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_a_schedule_lists() {
        let schedule = "# ----------\ntest: test_setup\n\ntest: boolean char name\n# test: no\n";
        assert_eq!(scheduled(schedule), 4);
    }
}
