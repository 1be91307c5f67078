//! Why a data directory cannot be imported.

use std::io;
use std::path::{Path, PathBuf};

use layer_store::StoreError;
use pg_types::Lsn;
use wal_decoder::StreamError;

use crate::control_file::ControlFileError;

/// Why a data directory cannot be imported; names the file.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file operation failed.
    #[error("could not {action} {path}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Another major version of PostgreSQL made the directory.
    #[error("{path} says \"{found}\", expected 17")]
    Version {
        /// The `PG_VERSION` file.
        path: PathBuf,
        /// Its contents.
        found: String,
    },
    /// The cluster is not one that can be imported.
    #[error("{path} cannot be imported: {source}")]
    ControlFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ControlFileError,
    },
    /// The shutdown checkpoint is not where `pg_control` says.
    #[error("no shutdown checkpoint record at {lsn} in {path}")]
    NoCheckpoint {
        /// Where it should be.
        lsn: Lsn,
        /// The WAL segment.
        path: PathBuf,
        /// What the decoder said.
        #[source]
        source: Option<StreamError>,
    },
    /// A file's contents are not what its name says.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ImportError {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> ImportError {
        ImportError::Io { action, path: path.to_owned(), source }
    }

    pub(super) fn damaged(path: &Path, what: impl Into<String>) -> ImportError {
        ImportError::Damaged { path: path.to_owned(), what: what.into() }
    }
}
