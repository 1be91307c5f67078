//! COPY streams, client side.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use postgres_protocol::message::frontend;

use super::{Client, ClientError, Reader, Writer, unexpected};
use crate::pq_proto::{BackendMessage, ProtocolError, write_copy_data};
use crate::replication::{StandbyMessage, WalSenderMessage};

/// Data that the server sends.
#[derive(Debug)]
pub struct CopyOut<'a> {
    client: &'a mut Client,
    ended: bool,
}

impl<'a> CopyOut<'a> {
    pub(super) fn new(client: &'a mut Client) -> CopyOut<'a> {
        CopyOut { client, ended: false }
    }

    /// Next piece; `None` once the server has said that the stream is complete and the command succeeded.
    /// A stream that merely stops, or that ends in an error, is an error: never a short success.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        let doing = "reading a COPY stream";
        if self.ended {
            return Ok(None);
        }
        let end = match self.client.next_message(doing).await {
            Ok(BackendMessage::CopyData(data)) => return Ok(Some(data)),
            // The command can still fail between CopyDone and CommandComplete.
            Ok(BackendMessage::CopyDone) => self.client.read_results().await.map(|_tag| None),
            Ok(other) => Err(unexpected(&other, doing)),
            Err(error) => Err(error),
        };
        self.ended = true;
        match end {
            Ok(end) => Ok(end),
            Err(error) => self.client.fail_query(error).await,
        }
    }
}

/// Data in both directions. The two halves are independent: use them from one task with `select!`, or
/// move them into two.
pub struct CopyBoth {
    /// From the server.
    pub reader: CopyBothReader,
    /// To the server.
    pub writer: CopyBothWriter,
    parameters: BTreeMap<String, String>,
}

/// Receiving half of a [`CopyBoth`].
pub struct CopyBothReader {
    reader: Reader,
}

/// Sending half of a [`CopyBoth`].
pub struct CopyBothWriter {
    writer: Writer,
}

impl std::fmt::Debug for CopyBoth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CopyBoth").finish_non_exhaustive()
    }
}

impl CopyBothReader {
    /// Next piece; `None` when the server has ended its direction in good order: with CopyDone, or, as a walsender does
    /// whose server shuts down, with CommandComplete alone (`WalSndDone` in `walsender.c`).
    /// Cancellation-safe.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, ClientError> {
        let doing = "reading a COPY stream";
        loop {
            match self.reader.read_backend_message().await? {
                None => return Err(ClientError::Closed(doing)),
                Some(BackendMessage::CopyData(data)) => return Ok(Some(data)),
                Some(BackendMessage::CopyDone | BackendMessage::CommandComplete(_)) => {
                    return Ok(None);
                }
                Some(BackendMessage::ErrorResponse(error)) => {
                    return Err(ClientError::Server(Box::new(error)));
                }
                Some(BackendMessage::NoticeResponse(notice)) => tracing::debug!("{notice}"),
                Some(BackendMessage::ParameterStatus { .. } | BackendMessage::Ignored(_)) => {}
                Some(other) => return Err(unexpected(&other, doing)),
            }
        }
    }

    /// Like [`Self::recv`], for a replication stream. Cancellation-safe.
    pub async fn recv_wal(&mut self) -> Result<Option<WalSenderMessage>, ClientError> {
        let payload = self.recv().await?;
        Ok(payload.map(WalSenderMessage::parse).transpose()?)
    }

    /// Reads fail when the server is silent for so long; `None` waits for ever.
    pub fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.reader.set_timeout(timeout);
    }
}

impl CopyBothWriter {
    /// Queues a piece; nothing is sent before [`Self::flush`].
    pub fn send_noflush(&mut self, data: &[u8]) -> Result<(), ClientError> {
        self.send_with_noflush(|buf| {
            buf.extend_from_slice(data);
            Ok(())
        })
    }

    /// Queues a piece that `fill` writes straight into the output buffer.
    pub fn send_with_noflush(
        &mut self,
        fill: impl FnOnce(&mut BytesMut) -> Result<(), ProtocolError>,
    ) -> Result<(), ClientError> {
        Ok(write_copy_data(self.writer.buffer(), fill)?)
    }

    /// Sends a message to a walsender at once.
    pub async fn send_standby(&mut self, message: &StandbyMessage) -> Result<(), ClientError> {
        self.send_with_noflush(|buf| {
            message.write(buf);
            Ok(())
        })?;
        self.flush().await
    }

    /// Bytes that wait to be sent.
    pub fn pending(&self) -> usize {
        self.writer.pending()
    }

    /// Sends everything that is queued. Cancellation-safe: what was not sent stays queued.
    pub async fn flush(&mut self) -> Result<(), ClientError> {
        Ok(self.writer.flush().await?)
    }

    /// Ends this direction in good order.
    pub async fn send_done(&mut self) -> Result<(), ClientError> {
        frontend::copy_done(self.writer.buffer());
        self.flush().await
    }

    /// Ends this direction and says why.
    pub async fn send_fail(&mut self, reason: &str) -> Result<(), ClientError> {
        frontend::copy_fail(reason, self.writer.buffer())?;
        self.flush().await
    }
}

impl CopyBoth {
    pub(super) fn new(client: Client) -> CopyBoth {
        CopyBoth {
            reader: CopyBothReader { reader: client.reader },
            writer: CopyBothWriter { writer: client.writer },
            parameters: client.parameters,
        }
    }

    /// Ends the stream from this side in good order, drops what the server still sends, and returns the
    /// connection for the next command.
    pub async fn finish(mut self) -> Result<Client, ClientError> {
        self.writer.send_done().await?;
        while self.reader.recv().await?.is_some() {}
        let mut client = Client {
            reader: self.reader.reader,
            writer: self.writer.writer,
            parameters: self.parameters,
        };
        match client.read_results().await {
            Ok(_tag) => Ok(client),
            Err(error) => client.fail_query(error).await,
        }
    }
}
