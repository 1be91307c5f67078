//! Server end of a connection: start-up, authentication, the command loop, and splitting for COPY BOTH.

mod copy;
mod error;
mod reader;
mod startup;

use std::future::Future;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio_util::sync::CancellationToken;

pub use copy::CopyStreamEnd;
pub use error::QueryError;
pub use reader::PostgresBackendReader;

use crate::framed::{ConnectionError, Framed, FramedReader, FramedWriter};
use crate::pq_proto::{
    BeMessage, FeMessage, ProtocolError, SqlState, StartupParams, write_copy_data,
};

/// How long a parting word may take on a socket that the peer perhaps does not read.
const FAREWELL_TIMEOUT: Duration = Duration::from_millis(500);
/// Time for start-up and authentication together; Postgres' `authentication_timeout`. Who has not said who it is
/// does not keep a connection for longer.
const AUTHENTICATION_TIMEOUT: Duration = Duration::from_secs(60);

/// How clients prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthType {
    /// They need not.
    Trust,
    /// A password in clear text, which [`Handler::check_password`] judges.
    CleartextPassword,
}

/// What a server does with a connection.
pub trait Handler<S>: Send {
    /// Looks at the startup parameters, before authentication. An error refuses the client.
    fn startup(
        &mut self,
        pgb: &mut PostgresBackend<S>,
        params: &StartupParams,
    ) -> Result<(), QueryError> {
        let _ = (pgb, params);
        Ok(())
    }

    /// Judges a password ([`AuthType::CleartextPassword`]). Without an own implementation nobody is let in.
    fn check_password(&mut self, password: &[u8]) -> Result<(), QueryError> {
        let _ = password;
        Err(QueryError::Unauthorized("no passwords are known here".into()))
    }

    /// Runs one simple query and writes its whole answer up to and including CommandComplete (or the end of
    /// its COPY stream); ReadyForQuery follows by itself, and an error is reported by itself.
    fn process_query(
        &mut self,
        pgb: &mut PostgresBackend<S>,
        query: &str,
    ) -> impl Future<Output = Result<(), QueryError>> + Send;
}

/// Time limits of a connection; `None` waits for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Silence of the client while a message is awaited.
    pub read: Option<Duration>,
    /// Time in which the client takes no byte of what is sent to it.
    pub write: Option<Duration>,
}

/// Server end of a connection. [`PostgresBackend::run`] drives it; handlers write to it.
pub struct PostgresBackend<S> {
    /// `None` while it is away as a [`PostgresBackendReader`].
    reader: Option<FramedReader<ReadHalf<S>>>,
    writer: FramedWriter<WriteHalf<S>>,
    auth: AuthType,
    timeouts: Timeouts,
    /// An earlier error or end of stream: nothing is read from the socket any more (L258).
    closed: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> PostgresBackend<S> {
    /// Takes a fresh stream.
    pub fn new(stream: S, auth: AuthType, timeouts: Timeouts) -> PostgresBackend<S> {
        let Framed { mut reader, mut writer } = Framed::new(stream);
        reader.set_timeout(timeouts.read);
        writer.set_timeout(timeouts.write);
        PostgresBackend { reader: Some(reader), writer, auth, timeouts, closed: false }
    }

    /// Serves the connection until the client leaves, something breaks, or `shutdown` is cancelled.
    ///
    /// Returns `Ok` when the client ended it. Errors have been told to the client as far as possible.
    pub async fn run<H: Handler<S>>(
        mut self,
        handler: &mut H,
        shutdown: &CancellationToken,
    ) -> Result<(), QueryError> {
        let result = tokio::select! {
            biased;
            () = shutdown.cancelled() => Err(QueryError::Shutdown),
            result = self.serve(handler) => result,
        };
        self.say_farewell(&result).await;
        result
    }

    async fn serve<H: Handler<S>>(&mut self, handler: &mut H) -> Result<(), QueryError> {
        let started = tokio::time::timeout(AUTHENTICATION_TIMEOUT, self.start_up(handler)).await;
        if started.map_err(|_elapsed| ConnectionError::timed_out())??.is_none() {
            return Ok(());
        }
        loop {
            self.write_message(&BeMessage::ReadyForQuery).await?;
            match self.next_command().await? {
                None => return Ok(()),
                Some(query) if query.trim().trim_end_matches(';').is_empty() => {
                    self.write_message_noflush(&BeMessage::EmptyQueryResponse)?;
                }
                Some(query) => {
                    let result = handler.process_query(self, &query).await;
                    if self.reader.is_none() {
                        // The reading half is lost: without it no command can follow.
                        result?;
                        return Ok(());
                    }
                    if let Err(error) = result {
                        self.report(error)?;
                    }
                }
            }
        }
    }

    /// Waits for a simple query; `None` when the client leaves.
    async fn next_command(&mut self) -> Result<Option<String>, QueryError> {
        self.restart_read_timeout();
        let mut skip_until_sync = false;
        loop {
            match self.read_message().await? {
                None | Some(FeMessage::Terminate) => return Ok(None),
                Some(FeMessage::Query(text)) => return Ok(Some(text.as_str().to_owned())),
                // Leftovers of a COPY stream that ended with an error are dropped, as Postgres does.
                Some(FeMessage::CopyData(_) | FeMessage::CopyDone | FeMessage::CopyFail(_)) => {}
                Some(FeMessage::Extended(name)) => {
                    if !skip_until_sync {
                        self.write_error(
                            SqlState::FEATURE_NOT_SUPPORTED,
                            &format!(
                                "extended query protocol is not supported here ({name} message)"
                            ),
                        )?;
                        skip_until_sync = true;
                    }
                }
                Some(FeMessage::Sync) => {
                    skip_until_sync = false;
                    self.write_message(&BeMessage::ReadyForQuery).await?;
                }
                Some(FeMessage::Flush) => self.flush().await?,
                Some(got @ FeMessage::Password(_)) => {
                    let state = "waiting for a command";
                    let error = ProtocolError::Unexpected { got: got.name(), state };
                    return Err(ConnectionError::Protocol(error).into());
                }
            }
        }
    }

    /// Tells the client about an error that does not end the session, or passes it on.
    fn report(&mut self, error: QueryError) -> Result<(), QueryError> {
        if error.ends_session() {
            return Err(error);
        }
        self.write_error(error.code(), &error.to_string())?;
        Ok(())
    }

    /// Best effort: the last message of a session that ends with an error.
    async fn say_farewell(&mut self, result: &Result<(), QueryError>) {
        let worth_telling = match result {
            Err(QueryError::Disconnected(ConnectionError::Io(_))) | Ok(()) => false,
            Err(_) => true,
        };
        if worth_telling && let Err(error) = result {
            let message = error.to_string();
            let fatal = BeMessage::ErrorResponse {
                severity: "FATAL",
                code: error.code(),
                message: &message,
            };
            // A text that cannot be encoded is not worth a second try on a session that is over.
            let _ = self.write_message_noflush(&fatal);
        }
        // Elapsed or failed: the peer does not listen, and the socket is dropped either way.
        let _ = tokio::time::timeout(FAREWELL_TIMEOUT, self.writer.shutdown()).await;
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> PostgresBackend<S> {
    /// Queues a message; nothing is sent before [`Self::flush`].
    pub fn write_message_noflush(
        &mut self,
        message: &BeMessage<'_>,
    ) -> Result<(), ConnectionError> {
        Ok(self.writer.write_message_noflush(message)?)
    }

    /// Queues a message and sends everything. On error the connection is of no use any more.
    pub async fn write_message(&mut self, message: &BeMessage<'_>) -> Result<(), ConnectionError> {
        self.write_message_noflush(message)?;
        self.flush().await
    }

    /// Queues a CopyData message whose payload is written straight into the output buffer.
    pub fn write_copy_data_noflush(
        &mut self,
        fill: impl FnOnce(&mut BytesMut) -> Result<(), ProtocolError>,
    ) -> Result<(), ConnectionError> {
        Ok(write_copy_data(self.writer.buffer(), fill)?)
    }

    /// Sends everything that is queued.
    pub async fn flush(&mut self) -> Result<(), ConnectionError> {
        self.writer.flush().await
    }

    /// Bytes that wait to be sent.
    pub fn pending_output(&self) -> usize {
        self.writer.pending()
    }

    fn write_error(&mut self, code: SqlState, message: &str) -> Result<(), ConnectionError> {
        let severity = "ERROR";
        self.write_message_noflush(&BeMessage::ErrorResponse { severity, code, message })
    }

    /// Next message of the client; `None` at the end of the stream, or after an earlier error.
    /// Fails while the reading half is away.
    pub async fn read_message(&mut self) -> Result<Option<FeMessage>, ConnectionError> {
        if self.closed {
            return Ok(None);
        }
        let result = match &mut self.reader {
            Some(reader) => reader.read_message().await,
            None => Err(misuse("the reading half is away")),
        };
        self.closed |= !matches!(result, Ok(Some(_)));
        result
    }

    /// Next piece of a COPY stream, or how the stream ended.
    pub async fn read_copy_data(&mut self) -> Result<Bytes, CopyStreamEnd> {
        loop {
            let message = self.read_message().await?;
            if let Some(data) = copy::copy_payload(message)? {
                return Ok(data);
            }
        }
    }

    /// Lets the silence that counts toward the read timeout begin now.
    pub fn restart_read_timeout(&mut self) {
        if let Some(reader) = &mut self.reader {
            reader.restart_timeout();
        }
    }

    /// Time limits of this connection.
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// Takes the reading half out, for a COPY stream in both directions (L264). This object stays the
    /// writing half until [`Self::unsplit`].
    pub fn split(&mut self) -> Result<PostgresBackendReader<S>, ConnectionError> {
        let reader = self.reader.take().ok_or_else(|| misuse("the connection is already split"))?;
        Ok(PostgresBackendReader::new(reader, self.closed))
    }

    /// Puts the reading half back. What it knows about errors on the socket stays known (L258).
    pub fn unsplit(&mut self, half: PostgresBackendReader<S>) -> Result<(), ConnectionError> {
        if self.reader.is_some() {
            return Err(misuse("the connection is not split"));
        }
        let (reader, closed) = half.into_parts();
        self.reader = Some(reader);
        self.closed = closed;
        Ok(())
    }
}

/// An error of the calling code, told without a panic.
fn misuse(what: &'static str) -> ConnectionError {
    ConnectionError::Io(std::io::Error::other(what))
}

#[cfg(test)]
mod tests;
