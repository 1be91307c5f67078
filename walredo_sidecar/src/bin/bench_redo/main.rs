//! How long a redo takes: a JSON array with a row for each case on stdout.
//!
//! `bench_redo [--seconds N]`, with NEON_PG_INSTALL naming the patched installation. Cases:
//!
//! - `short/C`: four inserts into one heap page, no base image, C callers of one manager with one process.
//! - `medium/C`: the 226 inserts that fill a heap page with one-column rows, no base image.
//! - `image/C`: a base image and one insert.
//! - `.../1 back to back`: the same requests without waiting for answers in between, which leaves the work of
//!   the redo process itself: the hand-over between processes is the difference.
//!
//! Times are microseconds of wall time. With one caller `ours` is the median, which a busy machine disturbs
//! little; with several it is the mean, which is callers divided by throughput. Mean, p50 and p99 go along.

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
    let config = WalRedoConfig {
        installs: BTreeMap::from([(PG_VERSION, PgInstall::new(PathBuf::from(root))?)]),
        user: unprivileged_user()?,
        work_dir: dir.path().to_owned(),
        wal_redo_timeout: Duration::from_secs(60),
        pool_size: NonZeroUsize::MIN,
    };
    let env = Arc::new(WalRedoEnv::new(config.clone()));
    let manager = PostgresRedoManager::new(env, TenantId([1; 16]), dir.path().to_owned());

    let mut rows = Vec::new();
    // Known figures in microseconds: (case, callers, figure).
    let cases = [
        (input::short(), "short", [(1, Some(31.8)), (8, Some(66.4))]),
        (input::medium(), "medium", [(1, Some(137.9)), (8, Some(780.3))]),
        (input::image(), "image", [(1, None), (8, None)]),
    ];
    for (request, name, callers) in &cases {
        request.execute(&manager)?;
        for (callers, reference) in callers {
            let times = callers_of(&manager, request, *callers, seconds)?;
            let ours = times.p50.filter(|_| *callers == 1).unwrap_or(times.mean);
            rows.push(row(&format!("{name}/{callers}"), ours, &times, *reference));
        }
    }
    manager.shutdown();
    for (request, name, _) in &cases {
        let mean = pipelined::mean_us(&config, request, seconds)?;
        let times = Times { mean, p50: None, p99: None };
        rows.push(row(&format!("{name}/1 back to back"), mean, &times, None));
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

fn row(case: &str, ours: f64, times: &Times, reference: Option<f64>) -> Value {
    json!({
        "case": case,
        "ours": ours,
        "mean": times.mean,
        "p50": times.p50,
        "p99": times.p99,
        "reference": reference,
        "reference_is": reference.map(|_| REFERENCE),
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
    times.sort_by(f64::total_cmp);
    let at = |share: usize| times.get(times.len() * share / 100).copied();
    #[expect(clippy::cast_precision_loss, reason = "a count of requests")]
    let mean = times.iter().sum::<f64>() / times.len() as f64;
    Ok(Times { mean, p50: at(50), p99: at(99) })
}
