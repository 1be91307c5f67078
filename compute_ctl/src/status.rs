//! How far a compute is, for whoever started it.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Instant;

use pg_types::Lsn;
use serde::{Deserialize, Serialize};

/// Where in its life a compute is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComputeState {
    /// Not yet taking connections.
    Starting,
    /// Taking connections.
    Running,
    /// Ended.
    Stopped,
}

/// Duration of one phase of the start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Name of the phase.
    pub phase: String,
    /// How long it took.
    pub milliseconds: f64,
}

/// Contents of the status file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComputeStatus {
    /// Where in its life the compute is.
    pub state: ComputeState,
    /// Position that this start began at.
    pub start_lsn: Lsn,
    /// How long each phase of the start took.
    pub timings_ms: Vec<Timing>,
}

impl ComputeStatus {
    /// Reads a status file; `None` when there is none.
    pub fn read(path: &Path) -> io::Result<Option<ComputeStatus>> {
        match fs::read(path) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces a status file in one step. It need not survive a crash of the machine, since the compute does
    /// not either.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let temp = path.with_extension("tmp");
        fs::write(&temp, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&temp, path)
    }
}

/// Measures consecutive phases.
#[derive(Debug)]
pub struct Stopwatch {
    last: Instant,
    timings: Vec<Timing>,
}

impl Stopwatch {
    /// Starts now.
    pub fn start() -> Stopwatch {
        Stopwatch { last: Instant::now(), timings: Vec::new() }
    }

    /// Ends a phase; the next one begins.
    pub fn lap(&mut self, phase: &str) {
        let now = Instant::now();
        let milliseconds = now.duration_since(self.last).as_secs_f64() * 1e3;
        tracing::info!(phase, milliseconds, "start phase done");
        self.timings.push(Timing { phase: phase.to_owned(), milliseconds });
        self.last = now;
    }

    /// All phases so far.
    pub fn into_timings(self) -> Vec<Timing> {
        self.timings
    }
}
