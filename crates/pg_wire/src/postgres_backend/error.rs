//! Why a query, or a whole session, failed.

use std::borrow::Cow;
use std::error::Error;

use crate::framed::ConnectionError;
use crate::pq_proto::{ProtocolError, SqlState};

/// Failure of a query. Its variant decides which SQLSTATE the client sees and whether the session goes on.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The connection broke. Ends the session.
    #[error(transparent)]
    Disconnected(#[from] ConnectionError),
    /// This process stops. Ends the session; 57P01.
    #[error("server is shutting down")]
    Shutdown,
    /// The client should connect again, perhaps to another server. Ends the session; 08006.
    #[error("this server no longer serves the request, connect again")]
    Reconnect,
    /// What the query names does not exist; 42704.
    #[error("not found: {0}")]
    NotFound(Cow<'static, str>),
    /// The client may not do that; 28000.
    #[error("not authorized: {0}")]
    Unauthorized(Cow<'static, str>),
    /// The query text is not understood; 42601.
    #[error("syntax error: {0}")]
    Syntax(Cow<'static, str>),
    /// A failure with a SQLSTATE of its own.
    #[error("{message}")]
    Sql {
        /// Machine-readable reason.
        code: SqlState,
        /// Human-readable reason.
        message: String,
    },
    /// Anything else; XX000.
    #[error("{}", chain(&**.0))]
    Other(Box<dyn Error + Send + Sync>),
}

/// An error with all its causes on one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Transparent wrappers repeat their source.
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

impl QueryError {
    /// Wraps an error of the handler's own.
    pub fn other(error: impl Into<Box<dyn Error + Send + Sync>>) -> QueryError {
        QueryError::Other(error.into())
    }

    /// SQLSTATE that the client sees.
    pub fn code(&self) -> SqlState {
        match self {
            QueryError::Disconnected(ConnectionError::Protocol(_)) => SqlState::PROTOCOL_VIOLATION,
            QueryError::Disconnected(ConnectionError::Io(_)) | QueryError::Reconnect => {
                SqlState::CONNECTION_FAILURE
            }
            QueryError::Shutdown => SqlState::ADMIN_SHUTDOWN,
            QueryError::NotFound(_) => SqlState::UNDEFINED_OBJECT,
            QueryError::Unauthorized(_) => SqlState::INVALID_AUTHORIZATION,
            QueryError::Syntax(_) => SqlState::SYNTAX_ERROR,
            QueryError::Sql { code, .. } => *code,
            QueryError::Other(_) => SqlState::INTERNAL_ERROR,
        }
    }

    /// Whether no further query can follow on the connection.
    pub fn ends_session(&self) -> bool {
        matches!(self, QueryError::Disconnected(_) | QueryError::Shutdown | QueryError::Reconnect)
    }

    /// Whether this is the everyday end of a connection, worth no more than an INFO line.
    pub fn is_expected(&self) -> bool {
        match self {
            QueryError::Disconnected(error) => error.is_expected(),
            QueryError::Shutdown | QueryError::Reconnect => true,
            _ => false,
        }
    }
}

impl From<ProtocolError> for QueryError {
    fn from(error: ProtocolError) -> QueryError {
        QueryError::Disconnected(error.into())
    }
}
