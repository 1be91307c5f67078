//! Errors of the command line, each with an exit code.

use std::process::ExitCode;

/// What went wrong, as the exit code says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Failed = 1,
    NotFound = 3,
    Conflict = 4,
    NotReady = 6,
}

/// One clear sentence and an exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CliError {
    pub kind: Kind,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, CliError>;

impl CliError {
    pub fn failed(message: impl Into<String>) -> CliError {
        CliError { kind: Kind::Failed, message: message.into() }
    }

    pub fn not_found(message: impl Into<String>) -> CliError {
        CliError { kind: Kind::NotFound, message: message.into() }
    }

    pub fn conflict(message: impl Into<String>) -> CliError {
        CliError { kind: Kind::Conflict, message: message.into() }
    }

    pub fn not_ready(message: impl Into<String>) -> CliError {
        CliError { kind: Kind::NotReady, message: message.into() }
    }

    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.kind as u8)
    }
}

impl From<pg_launch::LaunchError> for CliError {
    fn from(error: pg_launch::LaunchError) -> CliError {
        CliError::failed(with_causes(&error))
    }
}

/// An error and its causes in one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

/// Adds what was being done, and to what, to an I/O error.
pub trait IoContext<T> {
    fn doing(self, action: &str, path: &std::path::Path) -> Result<T>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn doing(self, action: &str, path: &std::path::Path) -> Result<T> {
        self.map_err(|error| {
            CliError::failed(format!("could not {action} {}: {error}", path.display()))
        })
    }
}
