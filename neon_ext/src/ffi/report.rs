//! From `Result` to `ereport`.

use pgrx::prelude::*;
use walproposer::HostedEnd;

use crate::hosted_walproposer;
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

/// Refuses a command.
pub fn not_permitted(message: &str) -> ! {
    ereport!(ERROR, PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, message.to_owned());
}

/// Tells whoever asked for the walproposer how it ended ([`HostedEnd::word`]). That it has stopped with its server ends the
/// process, as everything does then.
pub fn walproposer_ended(end: Result<(HostedEnd, String), hosted_walproposer::Error>) -> ! {
    let (end, how) = match end {
        Ok(end) => end,
        Err(error) => {
            let message = format!("neon: the walproposer failed: {error}");
            ereport!(ERROR, PgSqlErrorCode::ERRCODE_IO_ERROR, message);
        }
    };
    let message = format!("neon: the walproposer has ended: {how}");
    let word = end.word().to_owned();
    if end == HostedEnd::Stopped {
        ereport!(FATAL, PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN, message, word);
    }
    ereport!(ERROR, PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, message, word);
}

/// Ends this process when its WAL cannot be read.
pub fn wal_unreadable(error: &impl std::fmt::Display) -> ! {
    ereport!(FATAL, PgSqlErrorCode::ERRCODE_IO_ERROR, format!("neon: {error}"));
}

/// Ends this process as SIGTERM does.
pub fn terminated() -> ! {
    let message = "terminating connection due to administrator command";
    ereport!(FATAL, PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN, message);
}
