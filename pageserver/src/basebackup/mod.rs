#![doc = include_str!("README.md")]

mod archive;
mod control;
mod error;
mod layout;
mod relations;
mod slru;
mod small_files;
mod source;
#[cfg(test)]
mod tests;
mod wal_segment;

use std::io::Write;

use pg_types::xlog::normalize;
use pg_types::{Key, Lsn};
use wal_decoder::CheckPoint;

pub use control::PrevLsn;
pub use error::BackupError;
pub use source::{BackupSource, SourceError};

use crate::control_file::ControlFile;
use archive::Archive;

/// What the archive is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupKind {
    /// A compute: it starts at the LSN and reads relations from the page server.
    Base,
    /// A stock PostgreSQL 17: all relations, and a WAL segment with a shutdown checkpoint.
    Full,
}

/// What to make an archive of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupRequest {
    /// For whom.
    pub kind: BackupKind,
    /// As of which LSN; the source must have reached it.
    pub lsn: Lsn,
    /// What is known of the record before.
    pub prev: PrevLsn,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupSummary {
    /// Where the server will start: the LSN moved past a page header.
    pub start_lsn: Lsn,
    /// Files and directories.
    pub entries: u64,
    /// Bytes of the archive.
    pub bytes: u64,
}

/// Writes a data directory as of an LSN, as a tar archive, to `out`. Blocks the thread; nothing is buffered but single
/// small files. The same source, kind and LSN give the same bytes. What was written before an error does not
/// start: `pg_control` comes last but for the WAL segment.
pub fn write(
    source: &impl BackupSource,
    request: &BackupRequest,
    out: impl Write,
) -> Result<BackupSummary, BackupError> {
    let lsn = request.lsn;
    let state = State::load(source, request)?;
    let mut archive = Archive::new(out, state.checkpoint.time);
    layout::write(&mut archive, request.kind)?;
    slru::write(&mut archive, source, lsn)?;
    relations::write(&mut archive, source, request)?;
    small_files::aux_files(&mut archive, source, request, state.after_shutdown)?;
    small_files::two_phase(&mut archive, source, lsn)?;
    small_files::replication_origins(&mut archive, source, lsn)?;
    if request.kind == BackupKind::Base {
        for name in ["neon.signal", "zenith.signal"] {
            archive.file(name, request.prev.signal().as_bytes())?;
        }
    }
    archive.file("global/pg_control", &state.control.encode())?;
    for (name, bytes) in state.wal_segments(request) {
        archive.file(&format!("pg_wal/{name}"), &bytes)?;
    }
    let (entries, bytes) = archive.finish()?;
    Ok(BackupSummary { start_lsn: state.start_lsn, entries, bytes })
}

/// What a server needs to know to start.
struct State {
    start_lsn: Lsn,
    control: ControlFile,
    checkpoint: CheckPoint,
    /// The record that ends at the LSN is a shutdown checkpoint.
    after_shutdown: bool,
}

impl State {
    fn load(source: &impl BackupSource, request: &BackupRequest) -> Result<State, BackupError> {
        let value = |key| -> Result<_, BackupError> {
            let value = source.value(key, request.lsn).map_err(BackupError::Source)?;
            value.ok_or(BackupError::Missing { key, lsn: request.lsn })
        };
        let malformed = |key, what: String| BackupError::Malformed { key, lsn: request.lsn, what };
        let mut control = ControlFile::decode(&value(Key::CONTROL_FILE)?)
            .map_err(|error| malformed(Key::CONTROL_FILE, error.to_string()))?;
        let stored = CheckPoint::decode(&value(Key::CHECKPOINT)?)
            .map_err(|error| malformed(Key::CHECKPOINT, error.to_string()))?;
        let start_lsn = normalize(request.lsn);
        let after_shutdown = normalize(stored.redo) == start_lsn;
        let checkpoint = control::checkpoint(&stored, start_lsn, after_shutdown, request.kind);
        control.set_shut_down_at(start_lsn, checkpoint);
        Ok(State { start_lsn, control, checkpoint, after_shutdown })
    }

    fn wal_segments(&self, request: &BackupRequest) -> Vec<(String, Vec<u8>)> {
        let record = match request.kind {
            BackupKind::Base => Vec::new(),
            BackupKind::Full => control::checkpoint_record(&self.checkpoint, request.prev),
        };
        wal_segment::segments(self.start_lsn, self.control.system_identifier(), &record)
    }
}
