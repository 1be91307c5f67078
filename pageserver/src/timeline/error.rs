//! Why a request has no answer.

use pg_types::{Key, Lsn, RelTag, SlruKind};
use walredo_sidecar::{RecordDecodeError, WalRedoError};

use super::read_lsn::BadLsn;
use super::wait_lsn::WaitError;

/// Why a stored page cannot be rebuilt. Each of these is a defect of storage or of redo, not of the request.
#[derive(Debug, thiserror::Error)]
pub enum ReadPageError {
    /// The store has no answer.
    #[error(transparent)]
    Store(#[from] layer_store::ReadError),
    /// A stored change is no change of this format.
    #[error("stored change of {key} at {lsn} cannot be read: {source}")]
    StoredRecord {
        /// The page.
        key: Key,
        /// LSN of the change.
        lsn: Lsn,
        /// Cause.
        source: RecordDecodeError,
    },
    /// Replay failed.
    #[error("could not rebuild {key} at {lsn}: {source}")]
    Redo {
        /// The page.
        key: Key,
        /// LSN of the read.
        lsn: Lsn,
        /// Cause.
        source: WalRedoError,
    },
    /// The oldest stored change needs an older page, and there is none.
    #[error(
        "cannot rebuild {key} at {lsn}: its first change, at {first_record}, has no page to start from"
    )]
    NoBase {
        /// The page.
        key: Key,
        /// LSN of the read.
        lsn: Lsn,
        /// LSN of the oldest change.
        first_record: Lsn,
    },
    /// A page has an impossible length.
    #[error("page {key} at {lsn} has {len} bytes")]
    PageLength {
        /// The page.
        key: Key,
        /// Its LSN.
        lsn: Lsn,
        /// Its length in bytes.
        len: usize,
    },
    /// A stored size is not four bytes.
    #[error("stored size {key} at {lsn} has {len} bytes")]
    SizeLength {
        /// Key of the size.
        key: Key,
        /// LSN of the read.
        lsn: Lsn,
        /// Its length in bytes.
        len: usize,
    },
}

/// Why a request of a client has no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Its positions make no sense.
    #[error(transparent)]
    BadLsn(#[from] BadLsn),
    /// WAL up to the needed position did not come.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// There is no such relation.
    #[error("relation {rel} does not exist at {lsn}")]
    NoRelation {
        /// The relation fork.
        rel: RelTag,
        /// LSN of the read.
        lsn: Lsn,
    },
    /// There is no such segment.
    #[error("segment {segno:04X} of {kind} does not exist at {lsn}")]
    NoSegment {
        /// The SLRU.
        kind: SlruKind,
        /// The segment.
        segno: u32,
        /// LSN of the read.
        lsn: Lsn,
    },
    /// Storage or redo is at fault.
    #[error(transparent)]
    Read(#[from] ReadPageError),
}

impl From<layer_store::ReadError> for RequestError {
    fn from(error: layer_store::ReadError) -> RequestError {
        RequestError::Read(error.into())
    }
}
