//! Why a page could not be rebuilt.

use std::io;

/// The four outcomes of a failed request (L052). What exactly went wrong is logged where it happened, with the
/// page and LSN; callers decide by case alone.
#[derive(Debug, thiserror::Error)]
pub enum WalRedoError {
    /// The redo process could not be started, died, timed out or answered nonsense. A retry gets a new process.
    #[error(transparent)]
    IoError(#[from] io::Error),
    /// The manager is shut down, or every process stayed busy.
    #[error("cannot perform WAL redo now")]
    InvalidState,
    /// The request makes no sense, whatever the data: no records, no base image where one is needed.
    #[error("cannot perform WAL redo for this request")]
    InvalidRequest,
    /// A record does not fit the key it is stored under.
    #[error("cannot perform WAL redo for this record")]
    InvalidRecord,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let io = WalRedoError::from(io::Error::other("WAL redo timed out"));
        assert_eq!(io.to_string(), "WAL redo timed out");
        assert_eq!(WalRedoError::InvalidState.to_string(), "cannot perform WAL redo now");
        assert_eq!(
            WalRedoError::InvalidRequest.to_string(),
            "cannot perform WAL redo for this request"
        );
        assert_eq!(
            WalRedoError::InvalidRecord.to_string(),
            "cannot perform WAL redo for this record"
        );
    }
}
