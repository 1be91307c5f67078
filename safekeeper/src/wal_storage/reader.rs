//! Reading WAL back, for those who stream it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use pg_types::Lsn;
use pg_types::xlog::{WAL_SEGMENT_SIZE, segment_number, segment_offset};

use super::recent::RecentWal;
use super::segment;
use crate::durable::FileError;

/// Why WAL cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The segment is not on this disk.
    #[error("WAL at {0} is not on this safekeeper any more")]
    Removed(Lsn),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The segment cannot be read.
    #[error("could not read WAL at {lsn}: {source}")]
    Read {
        /// Where.
        lsn: Lsn,
        /// Cause.
        source: io::Error,
    },
}

/// Reads the segments of one timeline, or what of them is still in memory. Keeps the last one open.
#[derive(Debug)]
pub struct WalReader {
    dir: PathBuf,
    recent: Arc<RecentWal>,
    open: Option<(u64, File)>,
}

impl WalReader {
    /// Reads from `dir` what `recent`, of the same timeline, does not have.
    pub fn new(dir: &Path, recent: Arc<RecentWal>) -> WalReader {
        WalReader { dir: dir.to_owned(), recent, open: None }
    }

    /// Reads up to `len` bytes at `lsn`, fewer at the end of a segment. The caller must know that they were
    /// written: behind the end of the log there are zeros.
    pub fn read(&mut self, lsn: Lsn, len: usize) -> Result<Bytes, ReadError> {
        let offset = segment_offset(lsn);
        let room = usize::try_from(WAL_SEGMENT_SIZE - offset).unwrap_or(usize::MAX);
        let len = len.min(room);
        if let Some(data) = self.recent.read(lsn, len) {
            return Ok(data);
        }
        let file = self.segment(lsn)?;
        let mut data = BytesMut::zeroed(len);
        file.read_exact_at(&mut data, offset).map_err(|source| ReadError::Read { lsn, source })?;
        Ok(data.freeze())
    }

    fn segment(&mut self, lsn: Lsn) -> Result<&File, ReadError> {
        let segno = segment_number(lsn);
        let file = match self.open.take() {
            Some((open, file)) if open == segno => file,
            _ => segment::open_any(&self.dir, segno)?.ok_or(ReadError::Removed(lsn))?,
        };
        Ok(&self.open.insert((segno, file)).1)
    }
}
