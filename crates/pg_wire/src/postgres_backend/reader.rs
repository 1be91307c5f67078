//! The reading half of a split connection.

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadHalf};

use super::CopyStreamEnd;
use super::copy::copy_payload;
use crate::framed::{ConnectionError, FramedReader};
use crate::pq_proto::FeMessage;

/// The reading half of a [`super::PostgresBackend`], for COPY streams in both directions (L264).
#[derive(Debug)]
pub struct PostgresBackendReader<S> {
    reader: FramedReader<ReadHalf<S>>,
    /// An earlier error or end of stream: the socket is not read again (L258). Without this flag a read
    /// after a timeout would wait for the same dead peer once more.
    closed: bool,
}

impl<S: AsyncRead + Unpin> PostgresBackendReader<S> {
    pub(super) fn new(reader: FramedReader<ReadHalf<S>>, closed: bool) -> Self {
        PostgresBackendReader { reader, closed }
    }

    pub(super) fn into_parts(self) -> (FramedReader<ReadHalf<S>>, bool) {
        (self.reader, self.closed)
    }
}

impl<S: AsyncRead + tokio::io::AsyncWrite + Unpin> PostgresBackendReader<S> {
    /// Next message of the client; `None` at the end of the stream, or after an earlier error.
    pub async fn read_message(&mut self) -> Result<Option<FeMessage>, ConnectionError> {
        if self.closed {
            return Ok(None);
        }
        let result = self.reader.read_message().await;
        self.closed |= !matches!(result, Ok(Some(_)));
        result
    }

    /// Next piece of the COPY stream, or how the stream ended.
    pub async fn read_copy_data(&mut self) -> Result<Bytes, CopyStreamEnd> {
        loop {
            let message = self.read_message().await?;
            if let Some(data) = copy_payload(message)? {
                return Ok(data);
            }
        }
    }

    /// A piece of the COPY stream that has already been received whole, or `None`, without waiting.
    /// Anything but data is an end of the stream, as for [`Self::read_copy_data`].
    pub fn buffered_copy_data(&mut self) -> Result<Option<Bytes>, CopyStreamEnd> {
        while !self.closed {
            let message =
                match self.reader.buffered_frame().map(|frame| frame.map(FeMessage::parse)) {
                    Ok(None) => return Ok(None),
                    Ok(Some(Ok(message))) => message,
                    Ok(Some(Err(error))) => return Err(self.fail(error.into())),
                    Err(error) => return Err(self.fail(error)),
                };
            if let Some(data) = copy_payload(Some(message))? {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    fn fail(&mut self, error: ConnectionError) -> CopyStreamEnd {
        self.closed = true;
        CopyStreamEnd::Disconnected(error)
    }

    /// Lets the silence that counts toward the read timeout begin now.
    pub fn restart_read_timeout(&mut self) {
        self.reader.restart_timeout();
    }
}
