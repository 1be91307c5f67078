//! From `Result` to `ereport`.

use pgrx::prelude::*;

use crate::smgr;

/// Raises an error that a storage manager callback met. In a critical section Postgres makes a PANIC of it.
pub fn raise(error: &smgr::Error) -> ! {
    let code = match error {
        smgr::Error::NoSuchFork(_) => PgSqlErrorCode::ERRCODE_UNDEFINED_FILE,
        smgr::Error::TooManyBlocks(_) => PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
        smgr::Error::ClusterFull { .. } => PgSqlErrorCode::ERRCODE_DISK_FULL,
        smgr::Error::PageServer(_) | smgr::Error::Spill { .. } | smgr::Error::Marker { .. } => {
            PgSqlErrorCode::ERRCODE_IO_ERROR
        }
    };
    ereport!(ERROR, code, error.to_string());
}

/// A line in the server log.
pub fn log(message: &str) {
    ereport!(LOG, PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, format!("neon: {message}"));
}

/// Ends this process with SIGABRT, and with it, as `restart_after_crash` is off, the compute.
pub fn panic(message: &str) -> ! {
    ereport!(PANIC, PgSqlErrorCode::ERRCODE_IO_ERROR, format!("neon: {message}"));
}

/// Stops the start of the server.
pub fn fatal(message: &str) -> ! {
    ereport!(FATAL, PgSqlErrorCode::ERRCODE_CONFIG_FILE_ERROR, format!("neon: {message}"));
}
