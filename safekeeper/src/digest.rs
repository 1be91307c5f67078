//! Digests of WAL: what shows, without moving it, that safekeepers have the same history.
//!
//! Below the commit position the answer never changes and is the same everywhere. Above it a newly elected proposer may
//! replace WAL, also while it is read.

use std::fmt::Write;

use pg_types::Lsn;
use sha2::{Digest, Sha256};

use crate::threads::blocking;
use crate::timeline::{Timeline, TimelineError};
use crate::wal_storage::ReadError;

/// Read and hashed in one go: a few milliseconds in which the thread does nothing else.
const PIECE_BYTES: u64 = 1024 * 1024;

/// Why there is no digest.
#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    /// The range ends before it begins.
    #[error("from_lsn {from_lsn} is behind until_lsn {until_lsn}")]
    Backwards {
        /// Its begin.
        from_lsn: Lsn,
        /// Its end.
        until_lsn: Lsn,
    },
    /// The range ends behind the end of the log.
    #[error("until_lsn {until_lsn} is behind the end of flushed WAL, {flush_lsn}")]
    NotFlushed {
        /// Its end.
        until_lsn: Lsn,
        /// End of the log.
        flush_lsn: Lsn,
    },
    /// The range begins before the first WAL that this safekeeper ever had.
    #[error("WAL at {from_lsn} was never here: this safekeeper's begins at {local_start_lsn}")]
    BeforeStart {
        /// Its begin.
        from_lsn: Lsn,
        /// Begin of the log.
        local_start_lsn: Lsn,
    },
    /// The WAL cannot be read; among other reasons because it was removed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The timeline does not serve.
    #[error(transparent)]
    Timeline(#[from] TimelineError),
}

/// SHA-256, in hex digits, of the WAL from the first position up to the second.
pub async fn sha256(
    timeline: &Timeline,
    from_lsn: Lsn,
    until_lsn: Lsn,
) -> Result<String, DigestError> {
    let _working = timeline.enter()?;
    check_range(from_lsn, until_lsn, timeline.progress().ladder)?;
    let mut reader = timeline.reader();
    let mut hasher = Sha256::new();
    let mut lsn = from_lsn;
    while lsn < until_lsn {
        timeline.check()?;
        let len = usize::try_from((until_lsn.0 - lsn.0).min(PIECE_BYTES)).unwrap_or(usize::MAX);
        let hash_piece = || -> Result<u64, ReadError> {
            let wal = reader.read(lsn, len)?;
            hasher.update(&wal);
            Ok(wal.len() as u64)
        };
        lsn += blocking(hash_piece)?;
        // Long ranges let others have the thread, and end here when nobody waits for the answer any more.
        tokio::task::yield_now().await;
    }
    let mut hex = String::new();
    for byte in hasher.finalize() {
        // Writing to a string does not fail.
        let _ = write!(hex, "{byte:02x}");
    }
    Ok(hex)
}

fn check_range(
    from_lsn: Lsn,
    until_lsn: Lsn,
    ladder: wal_consensus::ladder::LsnLadder,
) -> Result<(), DigestError> {
    let (flush_lsn, local_start_lsn) = (ladder.flush_lsn, ladder.local_start_lsn);
    if until_lsn < from_lsn {
        return Err(DigestError::Backwards { from_lsn, until_lsn });
    }
    if flush_lsn < until_lsn {
        return Err(DigestError::NotFlushed { until_lsn, flush_lsn });
    }
    // The segment has bytes before that, but they are zeros.
    if from_lsn < local_start_lsn {
        return Err(DigestError::BeforeStart { from_lsn, local_start_lsn });
    }
    Ok(())
}
