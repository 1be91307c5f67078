//! Reading WAL wherever it is: on this disk, else in the object store.

use std::time::Duration;

use bytes::Bytes;
use pg_types::Lsn;
use pg_types::xlog::{WAL_SEGMENT_SIZE, segment_number, segment_offset};

use super::plan;
use super::store::{StoreError, WalStore};
use crate::metrics::Metrics;
use crate::timeline::{TenantTimelineId, Timeline};
use crate::wal_storage::{ReadError, WalReader};

/// Bytes that are fetched at a time.
const FETCH_BYTES: u64 = 1024 * 1024;
/// Times that a piece is asked for.
const ATTEMPTS: u32 = 4;

/// Why WAL cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not on this disk, and not in a store.
    #[error(transparent)]
    Local(#[from] ReadError),
    /// The store did not give it.
    #[error("WAL at {lsn} is not on this safekeeper any more, and {source}")]
    Store {
        /// Where.
        lsn: Lsn,
        /// Why not.
        source: StoreError,
    },
}

/// Reads the WAL of one timeline.
#[derive(Debug)]
pub struct BackedUpWal {
    id: TenantTimelineId,
    local: WalReader,
    store: Option<WalStore>,
    metrics: Metrics,
    /// A piece of the store and where it begins.
    fetched: (Lsn, Bytes),
}

impl BackedUpWal {
    /// Reads what `timeline` has, and what it had.
    pub fn new(timeline: &Timeline, store: Option<WalStore>, metrics: Metrics) -> BackedUpWal {
        let (id, local) = (timeline.id(), timeline.reader());
        BackedUpWal { id, local, store, metrics, fetched: (Lsn::INVALID, Bytes::new()) }
    }

    /// Like [`WalReader::read`]: up to `len` bytes at `lsn`, at least one.
    pub async fn read(&mut self, lsn: Lsn, len: usize) -> Result<Bytes, FetchError> {
        if let Some(data) = self.buffered(lsn, len) {
            return Ok(data);
        }
        match self.local.read(lsn, len) {
            Err(ReadError::Removed(removed)) => {
                let Some(store) = self.store.clone() else {
                    return Err(ReadError::Removed(removed).into());
                };
                let piece = self.fetch(&store, lsn).await?;
                self.fetched = (lsn, piece);
                let empty = || ReadError::Removed(lsn).into();
                self.buffered(lsn, len).ok_or_else(empty)
            }
            result => Ok(result?),
        }
    }

    fn buffered(&self, lsn: Lsn, len: usize) -> Option<Bytes> {
        let (begin, piece) = &self.fetched;
        let skip = usize::try_from(lsn.0.checked_sub(begin.0)?).ok()?;
        let end = skip.saturating_add(len).min(piece.len());
        (skip < end).then(|| piece.slice(skip..end))
    }

    async fn fetch(&self, store: &WalStore, lsn: Lsn) -> Result<Bytes, FetchError> {
        let key = store.segment_key(self.id, segment_number(lsn));
        let offset = segment_offset(lsn);
        let range = offset..offset.saturating_add(FETCH_BYTES).min(WAL_SEGMENT_SIZE);
        let mut failures = 0;
        loop {
            match store.read(&key, range.clone()).await {
                Ok(data) => {
                    self.metrics.backup_fetched_bytes.inc_by(data.len() as u64);
                    return Ok(data);
                }
                Err(StoreError::NotFound(_)) => return Err(ReadError::Removed(lsn).into()),
                Err(error @ (StoreError::Stopping | StoreError::NoS3)) => {
                    return Err(FetchError::Store { lsn, source: error });
                }
                Err(error) if failures + 1 < ATTEMPTS => {
                    tracing::warn!("could not fetch WAL at {lsn}: {error}");
                    let pause: Duration = plan::backoff(failures + 4, super::spread());
                    tokio::time::sleep(pause).await;
                    failures += 1;
                }
                Err(source) => return Err(FetchError::Store { lsn, source }),
            }
        }
    }
}
