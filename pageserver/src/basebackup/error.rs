//! Why there is no archive.

use std::io;

use pg_types::{Key, Lsn};

use super::SourceError;

/// Why there is no archive.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The store or redo failed.
    #[error("could not read the contents of the backup")]
    Source(#[source] SourceError),
    /// The receiver went away, or a name does not fit.
    #[error("could not write {path} to the archive")]
    Write {
        /// The entry.
        path: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Something that every timeline has is not there.
    #[error("nothing is stored for key {key} at {lsn}")]
    Missing {
        /// The key.
        key: Key,
        /// As of when.
        lsn: Lsn,
    },
    /// A stored value is not what its key says.
    #[error("the value of key {key} at {lsn} is malformed: {what}")]
    Malformed {
        /// The key.
        key: Key,
        /// As of when.
        lsn: Lsn,
        /// What is wrong.
        what: String,
    },
}
