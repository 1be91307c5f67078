//! What can go wrong, with the thing and the place named.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use pg_types::{Key, Lsn};

/// A file whose bytes are not what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path} is corrupt at byte {offset}: {what}")]
pub struct Corrupt {
    /// The file.
    pub path: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// What is wrong there.
    pub what: String,
}

/// A file operation that failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("could not {action} {path}")]
pub struct IoFailed {
    /// What was tried, as a verb.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Cause.
    #[source]
    pub source: Arc<io::Error>,
}

impl IoFailed {
    pub(crate) fn new(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        IoFailed { action, path: path.into(), source: Arc::new(source) }
    }
}

/// Why a store cannot be made, opened or flushed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error(transparent)]
    Io(#[from] IoFailed),
    /// A file is damaged.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// There is a store already.
    #[error("{0} already holds a store")]
    Exists(PathBuf),
    /// There is no store.
    #[error("{0} holds no store")]
    NotAStore(PathBuf),
    /// The ancestor given to `open` is not the one the store was created with.
    #[error("the store in {path} branched {wanted}, but was opened {given}")]
    WrongAncestor {
        /// The store's directory.
        path: PathBuf,
        /// Branch point in the manifest, in words.
        wanted: String,
        /// Branch point given, in words.
        given: String,
    },
    /// An earlier failure left it unknown what is durable; the store must be opened anew.
    #[error("the store in {path} takes no more writes since an earlier failure: {cause}")]
    Poisoned {
        /// The store's directory.
        path: PathBuf,
        /// That failure.
        cause: String,
    },
    /// The layers would break a rule of the version (V1 to V5 in the README); nothing was changed.
    #[error("refused a set of layers in {path}: {rule}")]
    BrokenRule {
        /// The store's directory.
        path: PathBuf,
        /// The rule.
        rule: String,
    },
    /// Initial images must be given in ascending key order, each key once, into an empty store.
    #[error("initial images out of order: {0}")]
    ImportOrder(String),
}

/// Why a batch was refused; nothing of it is visible.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PutError {
    /// Positions only move forward.
    #[error("batch ends at {to}, but the store is at {from} already")]
    Backwards {
        /// Position of the store.
        from: Lsn,
        /// Position of the batch.
        to: Lsn,
    },
    /// Every version of a batch lies behind the store's position and not behind the batch's own.
    #[error(
        "version of key {key} at {lsn} lies outside of the batch, which covers {from} (exclusive) to {to}"
    )]
    OutsideBatch {
        /// The key.
        key: Key,
        /// LSN of the version.
        lsn: Lsn,
        /// Position of the store.
        from: Lsn,
        /// Position of the batch.
        to: Lsn,
    },
    /// A value is larger than [`crate::limits::VALUE_BYTES_MAX`].
    #[error("value of key {key} at {lsn} has {len} bytes")]
    TooLarge {
        /// The key.
        key: Key,
        /// LSN of the version.
        lsn: Lsn,
        /// Its size.
        len: usize,
    },
    /// Memory is full and could not be flushed.
    #[error("memory for new versions is full, and flushing it failed")]
    Flush(#[from] StoreError),
}

/// Why a read has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The store has not come to that LSN yet: wait for it, then ask again. `lsn` is the LSN needed of the store
    /// that lags, which may be an ancestor of the one asked.
    #[error("LSN {lsn} is not reached yet: the last record ends at {last_record_lsn}")]
    NotReached {
        /// LSN needed.
        lsn: Lsn,
        /// Position of the store.
        last_record_lsn: Lsn,
    },
    /// History starts later.
    #[error("LSN {lsn} is older than the start of the history, {start_lsn}")]
    BelowStart {
        /// LSN asked for.
        lsn: Lsn,
        /// First readable LSN.
        start_lsn: Lsn,
    },
    /// A whole value was asked for, but the newest version is a change.
    #[error("the newest version of key {key}, at {lsn}, is a change and not a whole value")]
    NotAnImage {
        /// The key.
        key: Key,
        /// LSN of the change.
        lsn: Lsn,
    },
    /// A file operation failed.
    #[error(transparent)]
    Io(#[from] IoFailed),
    /// A file is damaged.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}

/// Why a layer cannot be read while a store is opened or checked.
impl From<ReadError> for StoreError {
    fn from(error: ReadError) -> StoreError {
        match error {
            ReadError::Io(error) => StoreError::Io(error),
            ReadError::Corrupt(error) => StoreError::Corrupt(error),
            other => StoreError::BrokenRule { path: PathBuf::new(), rule: other.to_string() },
        }
    }
}
