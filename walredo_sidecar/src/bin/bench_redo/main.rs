//! How long a redo takes: a JSON array with a row for each case on stdout.
//!
//! `bench_redo [--seconds N]`, with NEON_PG_INSTALL naming the patched installation. Cases:
//!
//! - `short/C`: four inserts into one heap page, no base image, C callers of one manager with one process, through
//!   the pipe.
//! - `medium/C`: the 226 inserts that fill a heap page with one-column rows, no base image.
//! - `image/C`: a base image and one insert.
//! - `.../C/in-process`: the same without the hand-over between the processes; the reference is the row through the
//!   pipe.
//! - `.../1 back to back`: through the pipe, without waiting for answers in between.
//!
//! Times are microseconds of wall time. With one caller `ours` is the median, which a busy machine disturbs
//! little; with several it is the mean, which is callers divided by throughput. Mean, p50 and p99 go along.

mod child;
mod in_process;
mod input;
mod pipelined;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use pg_launch::{PgInstall, unprivileged_user};
use pg_types::{Key, TenantId};
use serde_json::{Value, json};
use walredo_sidecar::template::Template;
use walredo_sidecar::{PostgresRedoManager, WalRedoConfig, WalRedoEnv, WalRedoManager};

use input::Request;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const PG_VERSION: u32 = 17;
const REFERENCE: &str = "published figure of the known system, 8-core ARM server, 2024";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench_redo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn seconds() -> Result<Duration, Failure> {
    let mut args = std::env::args().skip(1);
    match (args.next().as_deref(), args.next()) {
        (None, _) => Ok(Duration::from_secs(3)),
        (Some("--seconds"), Some(n)) => Ok(Duration::from_secs_f64(n.parse()?)),
        (Some(other), _) => Err(format!("unknown argument {other}").into()),
    }
}

fn run() -> Result<(), Failure> {
    let seconds = seconds()?;
    let root = std::env::var_os("NEON_PG_INSTALL")
        .ok_or("NEON_PG_INSTALL is not set: it names the root of the patched PostgreSQL")?;
    let dir =
        tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o755)).tempdir()?;
    let install = PgInstall::new(PathBuf::from(root))?;
    let config = WalRedoConfig {
        installs: BTreeMap::from([(PG_VERSION, install.clone())]),
        user: unprivileged_user()?,
        work_dir: dir.path().to_owned(),
        wal_redo_timeout: Duration::from_secs(60),
        pool_size: NonZeroUsize::MIN,
    };
    let env = Arc::new(WalRedoEnv::new(config.clone()));
    let manager = PostgresRedoManager::new(env, TenantId([1; 16]), dir.path().to_owned());

    // Known figures in microseconds: (case, callers, figure).
    let cases = [
        (input::short(), "short", [(1, Some(31.8)), (8, Some(66.4))]),
        (input::medium(), "medium", [(1, Some(137.9)), (8, Some(780.3))]),
        (input::image(), "image", [(1, None), (8, None)]),
    ];
    let mut rows = Vec::new();
    let mut through_pipe = Vec::new();
    for (request, name, callers) in &cases {
        request.execute(&manager)?;
        for (callers, reference) in callers {
            let times = callers_of(&manager, request, *callers, seconds)?;
            let ours = times.p50.filter(|_| *callers == 1).unwrap_or(times.mean);
            let reference = reference.map(|reference| (reference, REFERENCE));
            rows.push(row(&format!("{name}/{callers}"), ours, &times, reference));
            through_pipe.push((request, name, *callers, ours));
        }
    }
    manager.shutdown();
    let template =
        Template::open_or_create(&install, PG_VERSION, &config.work_dir, config.user.as_ref())?;
    let mut once_us = 0.0;
    for (request, name, callers, pipe) in through_pipe {
        if callers == 1 {
            once_us = pipe;
        }
        let ours = in_process::time_us((&config, &template), request, callers, once_us, seconds)?;
        let case = format!("{name}/{callers}/in-process");
        rows.push(row(&case, ours, &Times::only(ours), Some((pipe, "the same through the pipe"))));
    }
    for (request, name, _) in &cases {
        let ours = pipelined::mean_us(&config, &template, request, seconds)?;
        rows.push(row(&format!("{name}/1 back to back"), ours, &Times::only(ours), None));
    }
    println!("{}", serde_json::to_string_pretty(&rows)?);
    Ok(())
}

/// Microseconds.
struct Times {
    mean: f64,
    p50: Option<f64>,
    p99: Option<f64>,
}

impl Times {
    fn only(mean: f64) -> Times {
        Times { mean, p50: None, p99: None }
    }
}

fn row(case: &str, ours: f64, times: &Times, reference: Option<(f64, &str)>) -> Value {
    let (reference, reference_is) = reference.unzip();
    json!({
        "case": case,
        "ours": ours,
        "mean": times.mean,
        "p50": times.p50,
        "p99": times.p99,
        "reference": reference,
        "reference_is": reference_is,
        "ratio": reference.map(|reference| reference / ours),
        "unit": "us",
        "better": "lower",
    })
}

impl Request {
    fn execute(&self, manager: &PostgresRedoManager) -> Result<(), Failure> {
        let key = Key::rel_block(self.tag.rel, self.tag.blkno);
        let lsn = self.records.last().ok_or("no records")?.0;
        manager.request_redo(key, lsn, self.base.clone(), self.records.clone(), PG_VERSION)?;
        Ok(())
    }
}

/// `callers` threads ask as fast as they get answers. A single caller is pinned.
fn callers_of(
    manager: &PostgresRedoManager,
    request: &Request,
    callers: usize,
    seconds: Duration,
) -> Result<Times, Failure> {
    let one = || -> Result<Vec<f64>, Failure> {
        if callers == 1 {
            let mut cpus = CpuSet::new();
            cpus.set(0)?;
            sched_setaffinity(Pid::from_raw(0), &cpus)?;
        }
        let end = Instant::now() + seconds;
        let mut times = Vec::new();
        while Instant::now() < end {
            let start = Instant::now();
            request.execute(manager)?;
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        Ok(times)
    };
    let mut times = std::thread::scope(|scope| -> Result<Vec<f64>, Failure> {
        let threads: Vec<_> = (0..callers).map(|_| scope.spawn(one)).collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| "a caller panicked")??);
        }
        Ok(all)
    })?;
    let mean = mean(&times).ok_or("nothing was measured")?;
    Ok(Times { mean, p50: percentile(&mut times, 50), p99: percentile(&mut times, 99) })
}

#[expect(clippy::cast_precision_loss, reason = "a count of requests")]
fn mean(samples: &[f64]) -> Option<f64> {
    (!samples.is_empty()).then(|| samples.iter().sum::<f64>() / samples.len() as f64)
}

fn percentile(samples: &mut [f64], percent: usize) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() * percent / 100).copied()
}
