//! COPY streams: what counts as data, how a stream ends, and what is said then.

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{PostgresBackend, QueryError};
use crate::framed::ConnectionError;
use crate::pq_proto::{BeMessage, FeMessage, ProtocolError, SqlState};

/// How a COPY stream ended, in either direction.
#[derive(Debug, thiserror::Error)]
pub enum CopyStreamEnd {
    /// The client sent CopyDone.
    #[error("client finished the stream")]
    CopyDone,
    /// The client gave up.
    #[error("client failed the stream: {0}")]
    CopyFail(String),
    /// The client closed the connection in order.
    #[error("client terminated the connection")]
    Terminate,
    /// The stream of bytes ended between two messages.
    #[error("client closed the connection")]
    Eof,
    /// The connection broke.
    #[error(transparent)]
    Disconnected(#[from] ConnectionError),
    /// This side ends it in good order: `SQLSTATE` 00000 and a reason.
    #[error("{0}")]
    ServerInitiated(String),
    /// This process, or the thing that is streamed, is being shut down. Nothing is sent: the peer may not read.
    #[error("shutting down")]
    Cancelled,
    /// This side failed.
    #[error(transparent)]
    Failed(QueryError),
}

impl From<QueryError> for CopyStreamEnd {
    fn from(error: QueryError) -> CopyStreamEnd {
        match error {
            QueryError::Disconnected(error) => CopyStreamEnd::Disconnected(error),
            QueryError::Shutdown => CopyStreamEnd::Cancelled,
            other => CopyStreamEnd::Failed(other),
        }
    }
}

impl CopyStreamEnd {
    /// Whether this is an everyday end, worth no more than an INFO line.
    pub fn is_expected(&self) -> bool {
        match self {
            CopyStreamEnd::Disconnected(error) => error.is_expected(),
            CopyStreamEnd::Failed(error) => error.is_expected(),
            CopyStreamEnd::CopyFail(_) => false,
            _ => true,
        }
    }
}

/// Data of a COPY stream; `None` for messages that mean nothing there.
pub(super) fn copy_payload(message: Option<FeMessage>) -> Result<Option<Bytes>, CopyStreamEnd> {
    match message {
        Some(FeMessage::CopyData(data)) => Ok(Some(data)),
        // The protocol allows these two inside COPY and says to ignore them.
        Some(FeMessage::Sync | FeMessage::Flush) => Ok(None),
        Some(FeMessage::CopyDone) => Err(CopyStreamEnd::CopyDone),
        Some(FeMessage::CopyFail(reason)) => {
            Err(CopyStreamEnd::CopyFail(reason.as_str().to_owned()))
        }
        Some(FeMessage::Terminate) => Err(CopyStreamEnd::Terminate),
        None => Err(CopyStreamEnd::Eof),
        Some(other) => {
            let error = ProtocolError::Unexpected { got: other.name(), state: "in a COPY stream" };
            Err(CopyStreamEnd::Disconnected(error.into()))
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> PostgresBackend<S> {
    /// Says what is to be said at the end of a COPY stream in both directions, and turns the end into the
    /// result of the query. The halves must have been joined before (L267).
    pub async fn finish_copy_both(&mut self, end: CopyStreamEnd) -> Result<(), QueryError> {
        match end {
            CopyStreamEnd::CopyDone => {
                self.write_message_noflush(&BeMessage::CopyDone)?;
                self.write_message_noflush(&BeMessage::CommandComplete("COPY"))?;
                Ok(())
            }
            CopyStreamEnd::CopyFail(reason) => Err(QueryError::Sql {
                code: SqlState::QUERY_CANCELED,
                message: format!("COPY from the client failed: {reason}"),
            }),
            // Nobody is there to read an answer; the command loop meets the same end of stream.
            CopyStreamEnd::Terminate | CopyStreamEnd::Eof => {
                self.closed = true;
                Ok(())
            }
            CopyStreamEnd::Disconnected(error) => {
                self.closed = true;
                Err(error.into())
            }
            CopyStreamEnd::ServerInitiated(message) => {
                Err(QueryError::Sql { code: SqlState::SUCCESSFUL_COMPLETION, message })
            }
            CopyStreamEnd::Cancelled => Err(QueryError::Shutdown),
            CopyStreamEnd::Failed(error) => Err(error),
        }
    }
}
