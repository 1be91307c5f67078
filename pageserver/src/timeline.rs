//! One branch: its page versions, and who reads, writes and waits for them.

mod backup_source;
mod error;
mod get_page;
mod page_cache;
pub mod read_lsn;
mod relation_sizes;
mod relations;
pub mod status;
#[cfg(test)]
mod tests;
mod wait_lsn;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use layer_store::Store;
use pg_types::{Lsn, TenantId, xlog};
use tokio::runtime::RuntimeFlavor;
use tokio_util::sync::CancellationToken;
use walredo_sidecar::WalRedoManager;

pub use error::{ReadPageError, RequestError};
pub use relations::Answer;
pub use wait_lsn::{WaitError, WaitLsn};

use crate::config::Config;
use crate::metrics::TimelineMetrics;
use crate::tenants::metadata::TimelineMetadata;
use page_cache::PageCache;
use read_lsn::{ReadAt, read_at};
use relation_sizes::RelationSizes;
use status::WalReceiverStatus;

/// Settings that concern reads.
#[derive(Debug, Clone)]
pub struct ReadLimits {
    /// See [`Config::wait_lsn_timeout`].
    pub wait_lsn_timeout: Duration,
    /// See [`Config::page_cache_bytes`].
    pub page_cache_bytes: u64,
    /// See [`Config::page_cache_min_records`].
    pub page_cache_min_records: usize,
    /// See [`Config::relation_size_cache_entries`].
    pub relation_size_cache_entries: usize,
}

impl From<&Config> for ReadLimits {
    fn from(config: &Config) -> ReadLimits {
        ReadLimits {
            wait_lsn_timeout: config.wait_lsn_timeout,
            page_cache_bytes: config.page_cache_bytes,
            page_cache_min_records: config.page_cache_min_records,
            relation_size_cache_entries: config.relation_size_cache_entries,
        }
    }
}

/// One branch. Shared by its readers, its WAL receiver and the flush loop.
pub struct Timeline {
    /// The tenant.
    pub tenant_id: TenantId,
    /// What it is.
    pub metadata: TimelineMetadata,
    dir: PathBuf,
    store: Store,
    ancestor: Option<Arc<Timeline>>,
    redo: Arc<dyn WalRedoManager>,
    last_record: WaitLsn,
    pages: PageCache,
    sizes: RelationSizes,
    limits: ReadLimits,
    metrics: TimelineMetrics,
    receiver: WalReceiverStatus,
    shutdown: CancellationToken,
}

impl std::fmt::Debug for Timeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Timeline")
            .field("tenant_id", &self.tenant_id)
            .field("timeline_id", &self.metadata.timeline_id)
            .field("last_record_lsn", &self.last_record_lsn())
            .finish_non_exhaustive()
    }
}

/// What a timeline is made of.
pub struct Parts {
    /// The tenant.
    pub tenant_id: TenantId,
    /// What it is.
    pub metadata: TimelineMetadata,
    /// Its directory.
    pub dir: PathBuf,
    /// Its page versions, opened.
    pub store: Store,
    /// The timeline that it was branched from.
    pub ancestor: Option<Arc<Timeline>>,
    /// Replays records for the whole tenant.
    pub redo: Arc<dyn WalRedoManager>,
}

impl Timeline {
    /// Puts a timeline together. Nothing runs for it yet.
    pub fn new(parts: Parts, limits: ReadLimits) -> Arc<Timeline> {
        let Parts { tenant_id, metadata, dir, store, ancestor, redo } = parts;
        let metrics = TimelineMetrics::new(tenant_id, metadata.timeline_id);
        let last_record = WaitLsn::new(store.last_record_lsn());
        let timeline = Timeline {
            tenant_id,
            metadata,
            dir,
            store,
            ancestor,
            redo,
            last_record,
            pages: PageCache::new(limits.page_cache_bytes),
            sizes: RelationSizes::new(limits.relation_size_cache_entries),
            limits,
            metrics,
            receiver: WalReceiverStatus::default(),
            shutdown: CancellationToken::new(),
        };
        timeline.publish_positions();
        Arc::new(timeline)
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its page versions.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Its measurements.
    pub fn metrics(&self) -> &TimelineMetrics {
        &self.metrics
    }

    /// What its WAL receiver does.
    pub fn receiver(&self) -> &WalReceiverStatus {
        &self.receiver
    }

    /// Cancelled when the timeline stops.
    pub fn shutdown_token(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// WAL up to here was ingested and can be read.
    pub fn last_record_lsn(&self) -> Lsn {
        self.last_record.current()
    }

    /// WAL up to here survives a crash of this server.
    pub fn disk_consistent_lsn(&self) -> Lsn {
        self.store.disk_consistent_lsn()
    }

    /// WAL up to here is not needed from safekeepers any more. Without an object store this server's disk is
    /// the last resort, so it is the position on disk.
    pub fn remote_consistent_lsn(&self) -> Lsn {
        self.disk_consistent_lsn()
    }

    /// The first position that can be read.
    pub fn oldest_lsn(&self) -> Lsn {
        self.metadata.initdb_lsn
    }

    /// Tells waiters and metrics how far the store has come; called after each batch that was put into it.
    pub fn publish_positions(&self) {
        let lsn = self.store.last_record_lsn();
        self.last_record.advance(lsn);
        self.metrics.set_positions(lsn, self.store.disk_consistent_lsn());
    }

    /// Stops waits of readers and everything that runs for this timeline.
    pub fn stop(&self) {
        self.shutdown.cancel();
        self.last_record.close();
    }

    /// Decides at which position a request is answered, and waits until that position is there.
    ///
    /// # Errors
    /// Positions that make no sense, and WAL that does not come in time.
    pub async fn wait_for_read(
        &self,
        request_lsn: Lsn,
        not_modified_since: Lsn,
    ) -> Result<Lsn, RequestError> {
        let last = self.last_record_lsn();
        let since = self.reachable(not_modified_since);
        let lsn = match read_at(request_lsn, since, last, self.oldest_lsn())? {
            ReadAt::Now(lsn) => lsn,
            ReadAt::After(lsn) => {
                self.wait_lsn(lsn).await?;
                lsn
            }
        };
        self.wait_for_ancestors().await?;
        Ok(lsn)
    }

    /// Whether [`Timeline::wait_for_read`] would answer at once.
    pub fn is_ready_for(&self, not_modified_since: Lsn) -> bool {
        self.reachable(not_modified_since) <= self.last_record_lsn()
    }

    /// The position that a record can end at, for one that a client may name: just behind a WAL page's header
    /// none does, so a wait for that would not end.
    pub fn reachable(&self, lsn: Lsn) -> Lsn {
        let reachable = xlog::before_page_header(lsn);
        if reachable < self.oldest_lsn() { lsn } else { reachable }
    }

    /// Returns once a reader has begun to wait for WAL since the last call.
    pub(crate) async fn wal_demanded(&self) {
        self.last_record.demanded().await;
    }

    /// Whether a reader waits for WAL.
    pub(crate) fn is_wal_awaited(&self) -> bool {
        self.last_record.waiting() > 0
    }

    /// Waits until WAL up to `lsn` was ingested.
    pub async fn wait_lsn(&self, lsn: Lsn) -> Result<(), WaitError> {
        if self.last_record_lsn() >= lsn {
            return Ok(());
        }
        let _timer = self.metrics.wait_lsn_seconds.start_timer();
        self.last_record.wait_for(lsn, self.limits.wait_lsn_timeout).await
    }

    /// After a crash an ancestor may have to ingest again what this branch reads below its branch point.
    async fn wait_for_ancestors(&self) -> Result<(), WaitError> {
        let mut child = self;
        while let (Some(parent), Some(branch)) = (&child.ancestor, &child.metadata.ancestor) {
            parent.wait_lsn(branch.lsn).await?;
            child = parent;
        }
        Ok(())
    }

    /// Adds up the sizes of all relations, for feedback and display: one small read for each. Blocks.
    pub fn add_up_sizes(&self) {
        match self.logical_size(self.last_record_lsn()) {
            Ok(bytes) => self.metrics.set_logical_size(u64::try_from(bytes).unwrap_or(0)),
            Err(error) => {
                let id = self.metadata.timeline_id;
                tracing::warn!(timeline_id = %id, "could not add up relation sizes: {error}");
            }
        }
    }

    /// Writes all versions in memory to a layer file. Blocks.
    pub fn flush(&self) -> Result<(), layer_store::StoreError> {
        let timer = self.metrics.flush_seconds.start_timer();
        self.store.flush()?;
        timer.observe_duration();
        self.publish_positions();
        Ok(())
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        self.metrics.remove();
    }
}

/// Runs something that blocks for longer than a few system calls, on a runtime's worker or elsewhere: other
/// tasks of the worker move on meanwhile.
pub(crate) fn may_block<T>(work: impl FnOnce() -> T) -> T {
    let on_runtime = tokio::runtime::Handle::try_current()
        .is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
    if on_runtime { tokio::task::block_in_place(work) } else { work() }
}
