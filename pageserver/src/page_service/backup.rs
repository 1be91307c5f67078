//! Sending a backup: a blocking writer on one side of a short channel, the connection on the other.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pg_types::Lsn;
use pg_wire::{BeMessage, PostgresBackend, QueryError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::command::backup_name;
use crate::basebackup::{self, BackupKind, BackupRequest, PrevLsn};
use crate::metrics::GLOBAL;
use crate::timeline::Timeline;

/// Payload of one CopyData message.
const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks that wait for a slow client.
const CHANNEL_CHUNKS: usize = 8;

/// Sends the archive; the client sees an error for anything that went wrong, before or within the stream.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send>(
    pgb: &mut PostgresBackend<S>,
    timeline: Arc<Timeline>,
    kind: BackupKind,
    lsn: Option<Lsn>,
) -> Result<(), QueryError> {
    let timer = GLOBAL.basebackup_seconds.with_label_values(&[backup_name(kind)]).start_timer();
    let lsn = lsn.unwrap_or_else(|| timeline.last_record_lsn());
    let lsn = timeline.wait_for_read(lsn, lsn).await.map_err(QueryError::other)?;
    let branch_lsn = timeline.metadata.ancestor.map(|point| point.lsn);
    let prev = PrevLsn::choose(timeline.store().position(), branch_lsn, lsn);
    let request = BackupRequest { kind, lsn, prev };
    let (sender, mut chunks) = mpsc::channel(CHANNEL_CHUNKS);
    let (source, stopped) = (Arc::clone(&timeline), timeline.shutdown_token().clone());
    let writer = tokio::task::spawn_blocking(move || {
        let mut out = ChunkWriter { sender, chunk: BytesMut::new() };
        let summary = basebackup::write(&*source, &request, &mut out)?;
        out.flush().map_err(|source| basebackup::BackupError::Write {
            path: "the end of the archive".to_owned(),
            source,
        })?;
        Ok::<_, basebackup::BackupError>(summary)
    });
    let mut begun = false;
    loop {
        let chunk: Option<Bytes> = tokio::select! {
            biased;
            () = stopped.cancelled() => return Err(QueryError::Reconnect),
            chunk = chunks.recv() => chunk,
        };
        let Some(chunk) = chunk else { break };
        // Not before the first byte: what fails until then is an ordinary error of the command.
        if !std::mem::replace(&mut begun, true) {
            pgb.write_message_noflush(&BeMessage::CopyOutResponse)?;
        }
        pgb.write_message(&BeMessage::CopyData(&chunk)).await?;
    }
    let summary = writer.await.map_err(QueryError::other)?.map_err(QueryError::other)?;
    pgb.write_message_noflush(&BeMessage::CopyDone)?;
    pgb.write_message_noflush(&BeMessage::CommandComplete("COPY"))?;
    let took = Duration::from_secs_f64(timer.stop_and_record());
    tracing::info!(
        start_lsn = %summary.start_lsn, bytes = summary.bytes, entries = summary.entries,
        "{} sent in {took:?}", backup_name(kind)
    );
    Ok(())
}

/// Cuts what is written into chunks. Blocks while the channel is full.
struct ChunkWriter {
    sender: mpsc::Sender<Bytes>,
    chunk: BytesMut,
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CHUNK_BYTES.saturating_sub(self.chunk.len());
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.chunk.extend_from_slice(taken);
        if self.chunk.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = self.chunk.split().freeze();
        self.sender
            .blocking_send(chunk)
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone"))
    }
}
