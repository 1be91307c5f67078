//! The blocking end of a WAL stream: bytes to records to the store.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use layer_store::{PutError, ReadError, RecordPosition, WriteBatch};
use pg_types::{Key, Lsn};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use wal_decoder::WalStream;

use super::connection::WalChunk;
use crate::ingest::{Ingest, IngestError, IngestLimits, PageReader, Storage};
use crate::metrics::GLOBAL;
use crate::timeline::Timeline;

/// Why ingest ended before its stream did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SinkError {
    /// The WAL is wrong: the same bytes would fail again.
    BadWal(String),
    /// Storage failed, perhaps for a while only.
    Storage(String),
}

impl From<IngestError> for SinkError {
    fn from(error: IngestError) -> SinkError {
        match error {
            IngestError::Put(PutError::Flush(_)) | IngestError::Read(ReadError::Io(_)) => {
                SinkError::Storage(with_causes(&error))
            }
            _ => SinkError::BadWal(with_causes(&error)),
        }
    }
}

/// A running ingest.
pub(super) struct Worker {
    task: JoinHandle<Result<(), SinkError>>,
    progress: watch::Receiver<Lsn>,
}

impl Worker {
    /// Waits for records to become readable; `Err` when ingest has ended.
    pub(super) async fn progressed(&mut self) -> Result<(), ()> {
        self.progress.changed().await.map_err(drop)
    }

    /// Waits for the end, which comes when the channel is closed.
    pub(super) async fn join(self) -> Result<(), SinkError> {
        self.task
            .await
            .unwrap_or_else(|error| Err(SinkError::BadWal(format!("ingest failed: {error}"))))
    }
}

/// Starts ingest at `start`, which is where the timeline stands.
pub(super) fn spawn(
    timeline: Arc<Timeline>,
    start: Lsn,
    chunks: mpsc::Receiver<WalChunk>,
) -> Worker {
    let (progress_sender, progress) = watch::channel(start);
    let task =
        tokio::task::spawn_blocking(move || ingest(&timeline, start, chunks, &progress_sender));
    Worker { task, progress }
}

fn ingest(
    timeline: &Arc<Timeline>,
    start: Lsn,
    mut chunks: mpsc::Receiver<WalChunk>,
    progress: &watch::Sender<Lsn>,
) -> Result<(), SinkError> {
    let storage = PublishingStorage { timeline: Arc::clone(timeline) };
    let pages: Arc<dyn PageReader> = Arc::new(Pages { timeline: Arc::clone(timeline) });
    let mut ingest = Ingest::new(storage, Some(pages), IngestLimits::default())?;
    let mut stream = wal_stream(start, timeline.store().position());
    while let Some(WalChunk { start, data }) = chunks.blocking_recv() {
        feed(&mut stream, start, data)?;
        loop {
            match stream.poll() {
                Ok(Some(record)) => {
                    ingest.ingest(&record)?;
                    GLOBAL.wal_ingested_records.inc();
                }
                Ok(None) => break,
                Err(error) => {
                    // What came before is right, and worth reading.
                    ingest.commit()?;
                    return Err(SinkError::BadWal(error.to_string()));
                }
            }
        }
        // Readers wait for the last record that came; while more is there already, batches fill up instead.
        if chunks.is_empty() {
            ingest.commit()?;
        }
        let position = timeline.last_record_lsn();
        progress.send_if_modified(|last| std::mem::replace(last, position) != position);
    }
    ingest.commit()?;
    Ok(())
}

fn wal_stream(start: Lsn, position: RecordPosition) -> WalStream {
    let stream = WalStream::new(start);
    match position.prev_record_lsn {
        Lsn::INVALID => stream,
        prev_lsn => stream.with_prev_lsn(prev_lsn),
    }
}

/// WAL must follow on what is there: bytes that are there already are dropped, a gap is an error.
fn feed(stream: &mut WalStream, start: Lsn, mut data: Bytes) -> Result<(), SinkError> {
    let expected = stream.feed_lsn();
    if start > expected {
        let gap = format!("WAL is missing: got {start}, expected {expected}");
        return Err(SinkError::BadWal(gap));
    }
    let known = usize::try_from(expected.saturating_sub(start)).unwrap_or(usize::MAX);
    data.advance(known.min(data.len()));
    stream.feed(data);
    Ok(())
}

/// The timeline's store; each batch that becomes readable wakes whom it reaches.
struct PublishingStorage {
    timeline: Arc<Timeline>,
}

impl Storage for PublishingStorage {
    fn position(&self) -> RecordPosition {
        self.timeline.store().position()
    }

    fn put(&self, batch: WriteBatch, position: RecordPosition) -> Result<(), PutError> {
        self.timeline.store().put(batch, position)?;
        self.timeline.publish_positions();
        Ok(())
    }

    fn get_image(&self, key: Key, lsn: Lsn) -> Result<Option<Bytes>, ReadError> {
        Storage::get_image(self.timeline.store(), key, lsn)
    }

    fn scan_keys(&self, range: std::ops::Range<Key>, lsn: Lsn) -> Result<Vec<Key>, ReadError> {
        Storage::scan_keys(self.timeline.store(), range, lsn)
    }
}

/// Pages for records that copy them.
struct Pages {
    timeline: Arc<Timeline>,
}

impl PageReader for Pages {
    fn page_at(&self, key: Key, lsn: Lsn) -> Result<Option<Bytes>, String> {
        self.timeline.page_at(key, lsn, lsn).map_err(|error| with_causes(&error))
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wal_that_is_there_already_is_dropped_and_a_gap_is_refused() {
        let start = Lsn(0x100_0028);
        let mut stream = WalStream::new(start);
        feed(&mut stream, start, Bytes::from_static(&[0; 16])).unwrap();
        let end = stream.feed_lsn();
        assert_eq!(end, Lsn(start.0 + 16));
        feed(&mut stream, start, Bytes::from_static(&[0; 8])).unwrap();
        assert_eq!(stream.feed_lsn(), end);
        feed(&mut stream, Lsn(start.0 + 8), Bytes::from_static(&[0; 16])).unwrap();
        assert_eq!(stream.feed_lsn(), Lsn(start.0 + 24));
        let error = feed(&mut stream, Lsn(start.0 + 32), Bytes::from_static(&[0; 8])).unwrap_err();
        let SinkError::BadWal(text) = error else { panic!() };
        assert_eq!(text, "WAL is missing: got 0/1000048, expected 0/1000040");
    }
}
