//! Buffered messages over a byte stream, for either end of the protocol (L260, L263).
//!
//! Reading keeps all state in the buffer and writing takes bytes out of the buffer as they leave, so both are
//! cancellation-safe: a dropped future loses nothing, and they may be used in `select!`.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::Instant;

use crate::pq_proto::{
    BackendMessage, BeMessage, FeMessage, FeStartupPacket, Frame, ProtocolError, take_frame,
};

/// Longest message body before the peer is authenticated: passwords and SASL messages. Postgres has
/// `PG_MAX_AUTH_TOKEN_LENGTH` = 65535 for GSS; nothing here needs that.
pub const MAX_MESSAGE_UNAUTHENTICATED: usize = 16 * 1024;
/// Longest message body afterwards: a WAL append carries 128 KiB, a pg_basebackup chunk 64 KiB.
pub const MAX_MESSAGE: usize = 1024 * 1024 + 1024;
/// Room that a read offers to the socket at least: a few fill a WAL append.
const READ_CHUNK: usize = 32 * 1024;
const BUFFER_INITIAL: usize = 8 * 1024;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer does not keep to the protocol.
    #[error("protocol violation: {0}")]
    Protocol(#[from] ProtocolError),
}

impl ConnectionError {
    /// The I/O error for "nothing heard for too long" (L257 prints it as `timed out`).
    pub fn timed_out() -> ConnectionError {
        ConnectionError::Io(io::Error::new(io::ErrorKind::TimedOut, "timed out"))
    }

    /// The I/O error for an end of stream in the middle of something.
    pub fn unexpected_eof() -> ConnectionError {
        ConnectionError::Io(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "connection closed by the peer in the middle of a message",
        ))
    }

    /// Whether such errors happen whenever a peer dies or a network fails, and are no one's fault here.
    pub fn is_expected(&self) -> bool {
        use io::ErrorKind as K;
        match self {
            ConnectionError::Io(error) => matches!(
                error.kind(),
                K::BrokenPipe
                    | K::ConnectionRefused
                    | K::ConnectionAborted
                    | K::ConnectionReset
                    | K::HostUnreachable
                    | K::NetworkUnreachable
                    | K::TimedOut
                    | K::UnexpectedEof
            ),
            ConnectionError::Protocol(_) => false,
        }
    }
}

/// The reading side of a connection.
#[derive(Debug)]
pub struct FramedReader<R> {
    stream: R,
    buf: BytesMut,
    max_message: usize,
    timeout: Option<Duration>,
    /// When bytes last arrived, or waiting began. A deadline counts from here, so that a caller that drops
    /// and remakes read futures in a loop does not push it away.
    quiet_since: Instant,
}

impl<R: AsyncRead + Unpin> FramedReader<R> {
    /// Reads messages from `stream`, small ones only until [`Self::set_max_message`].
    pub fn new(stream: R) -> FramedReader<R> {
        FramedReader {
            stream,
            buf: BytesMut::with_capacity(BUFFER_INITIAL),
            max_message: MAX_MESSAGE_UNAUTHENTICATED,
            timeout: None,
            quiet_since: Instant::now(),
        }
    }

    /// Bounds message bodies from now on.
    pub fn set_max_message(&mut self, max_message: usize) {
        self.max_message = max_message;
    }

    /// Reads fail with `TimedOut` when no byte arrives for so long; `None` waits for ever.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
        self.restart_timeout();
    }

    /// Lets the time that counts as silence begin now: for a reader that was busy elsewhere.
    pub fn restart_timeout(&mut self) {
        self.quiet_since = Instant::now();
    }

    /// Reads more bytes; `false` at end of stream.
    async fn fill(&mut self) -> Result<bool, ConnectionError> {
        if self.buf.capacity() == self.buf.len() {
            self.buf.reserve(READ_CHUNK);
        }
        let read = self.stream.read_buf(&mut self.buf);
        let count = match self.timeout {
            None => read.await?,
            Some(timeout) => tokio::time::timeout_at(self.quiet_since + timeout, read)
                .await
                .map_err(|_elapsed| ConnectionError::timed_out())??,
        };
        if count > 0 && self.timeout.is_some() {
            self.quiet_since = Instant::now();
        }
        Ok(count > 0)
    }

    async fn read_with<T>(
        &mut self,
        mut parse: impl FnMut(&mut BytesMut) -> Result<Option<T>, ProtocolError>,
    ) -> Result<Option<T>, ConnectionError> {
        loop {
            if let Some(parsed) = parse(&mut self.buf)? {
                return Ok(Some(parsed));
            }
            if !self.fill().await? {
                return if self.buf.is_empty() {
                    Ok(None)
                } else {
                    Err(ConnectionError::unexpected_eof())
                };
            }
        }
    }

    /// Next message, uninterpreted; `None` at a clean end of stream.
    pub async fn read_frame(&mut self) -> Result<Option<Frame>, ConnectionError> {
        let max_message = self.max_message;
        self.read_with(|buf| take_frame(buf, max_message)).await
    }

    /// A message that has already been received whole, without waiting.
    pub fn buffered_frame(&mut self) -> Result<Option<Frame>, ConnectionError> {
        Ok(take_frame(&mut self.buf, self.max_message)?)
    }

    /// Next message from a client; `None` at a clean end of stream.
    pub async fn read_message(&mut self) -> Result<Option<FeMessage>, ConnectionError> {
        self.read_frame().await?.map(FeMessage::parse).transpose().map_err(Into::into)
    }

    /// Next message from a server; `None` at a clean end of stream.
    pub async fn read_backend_message(
        &mut self,
    ) -> Result<Option<BackendMessage>, ConnectionError> {
        self.read_frame().await?.map(BackendMessage::parse).transpose().map_err(Into::into)
    }

    /// First packet of a client; `None` at a clean end of stream.
    pub async fn read_startup_packet(
        &mut self,
    ) -> Result<Option<FeStartupPacket>, ConnectionError> {
        self.read_with(FeStartupPacket::parse).await
    }

    /// Whether received bytes wait to be parsed.
    pub fn has_buffered_bytes(&self) -> bool {
        !self.buf.is_empty()
    }
}

/// The writing side of a connection.
#[derive(Debug)]
pub struct FramedWriter<W> {
    stream: W,
    buf: BytesMut,
    timeout: Option<Duration>,
}

impl<W: AsyncWrite + Unpin> FramedWriter<W> {
    /// Writes messages to `stream`.
    pub fn new(stream: W) -> FramedWriter<W> {
        FramedWriter { stream, buf: BytesMut::with_capacity(BUFFER_INITIAL), timeout: None }
    }

    /// [`Self::flush`] fails with `TimedOut` when the peer takes no byte for so long.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// Output buffer, for messages written without help.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buf
    }

    /// Bytes that wait to be sent.
    pub fn pending(&self) -> usize {
        self.buf.len()
    }

    /// Queues a message; nothing is sent before [`Self::flush`].
    pub fn write_message_noflush(&mut self, message: &BeMessage<'_>) -> Result<(), ProtocolError> {
        message.write(&mut self.buf)
    }

    /// Sends everything that is queued.
    pub async fn flush(&mut self) -> Result<(), ConnectionError> {
        while !self.buf.is_empty() {
            let write = self.stream.write_buf(&mut self.buf);
            let count = match self.timeout {
                None => write.await?,
                Some(timeout) => tokio::time::timeout(timeout, write)
                    .await
                    .map_err(|_elapsed| ConnectionError::timed_out())??,
            };
            if count == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero).into());
            }
        }
        self.stream.flush().await?;
        Ok(())
    }

    /// Says to the peer that nothing more will come.
    pub async fn shutdown(&mut self) -> Result<(), ConnectionError> {
        self.flush().await?;
        self.stream.shutdown().await?;
        Ok(())
    }
}

/// Both sides of a connection.
#[derive(Debug)]
pub struct Framed<S> {
    /// Messages from the peer.
    pub reader: FramedReader<ReadHalf<S>>,
    /// Messages to the peer.
    pub writer: FramedWriter<WriteHalf<S>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Framed<S> {
    /// Wraps a fresh stream. Its halves can be used by one task or by two.
    pub fn new(stream: S) -> Framed<S> {
        let (read_half, write_half) = tokio::io::split(stream);
        Framed { reader: FramedReader::new(read_half), writer: FramedWriter::new(write_half) }
    }

    /// Queues a message and sends everything.
    pub async fn write_message(&mut self, message: &BeMessage<'_>) -> Result<(), ConnectionError> {
        self.writer.write_message_noflush(message)?;
        self.writer.flush().await
    }
}

#[cfg(test)]
mod tests;
