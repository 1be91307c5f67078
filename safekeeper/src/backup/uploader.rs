//! Uploading: one task for each timeline, a few uploads at a time over all of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pg_types::xlog::segment_start;
use pg_types::{Lsn, NodeId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::names::PartialName;
use super::plan::{self, Positions};
use super::store::{StoreError, WalStore};
use crate::durable::FileError;
use crate::metrics::Metrics;
use crate::threads::blocking;
use crate::timeline::{TenantTimelineId, Timeline, TimelineError};
use crate::timelines::Timelines;
use crate::wal_storage::{ReadError, WalReader, damage};

/// New timelines are looked for this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Whether another member has uploaded a segment is looked up this often.
const OTHERS_TURN_PAUSE: Duration = Duration::from_millis(200);
/// Segments in memory at a time.
const UPLOADS_MAX: usize = 4;

/// What all uploads need.
#[derive(Debug, Clone)]
pub struct Uploads {
    /// Where to.
    pub store: WalStore,
    /// Who uploads.
    pub node_id: NodeId,
    /// Quiet time after which the unfinished segment is uploaded.
    pub partial_backup_timeout: Duration,
    /// Where to count.
    pub metrics: Metrics,
    /// One for each upload under way.
    slots: Arc<Semaphore>,
}

#[derive(Debug, thiserror::Error)]
enum UploadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    File(#[from] FileError),
    /// It stays here, for whoever looks after it; another safekeeper may have it whole.
    #[error("WAL in the segment at {segment} is damaged on this disk: {reason}")]
    Damaged {
        /// Start of the segment.
        segment: Lsn,
        /// What is wrong.
        reason: String,
    },
    /// The timeline ends; no failure.
    #[error(transparent)]
    Timeline(#[from] TimelineError),
}

/// What a step came to.
enum Step {
    /// Something was done; there may be more.
    Done,
    /// Nothing to do until WAL is committed or this time has passed.
    Wait(Option<Duration>),
}

impl Uploads {
    /// Nothing runs yet.
    pub fn new(
        store: WalStore,
        node_id: NodeId,
        partial_backup_timeout: Duration,
        metrics: Metrics,
    ) -> Uploads {
        let slots = Arc::new(Semaphore::new(UPLOADS_MAX));
        Uploads { store, node_id, partial_backup_timeout, metrics, slots }
    }

    /// Uploads WAL of all timelines until `stop`.
    pub async fn run(self, timelines: Arc<Timelines>, stop: CancellationToken) {
        let mut running: HashMap<TenantTimelineId, JoinHandle<()>> = HashMap::new();
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            running.retain(|_, task| !task.is_finished());
            for (id, timeline) in timelines.list() {
                if let Ok(timeline) = timeline {
                    running.entry(id).or_insert_with(|| {
                        let span = tracing::info_span!("WAL backup", ttid = %id);
                        let worker = Worker::new(self.clone(), timeline, stop.clone());
                        tokio::spawn(worker.run().instrument(span))
                    });
                }
            }
        }
    }
}

/// Uploads the WAL of one timeline.
struct Worker {
    uploads: Uploads,
    timeline: Arc<Timeline>,
    wal: WalReader,
    stop: CancellationToken,
    /// Unfinished segments that an earlier process uploaded are looked for once.
    cleaned: bool,
    /// The unfinished segment that is in the store.
    partial: Option<PartialName>,
    /// Commit position, and since when it stands there.
    quiet: (Lsn, Instant),
}

impl Worker {
    fn new(uploads: Uploads, timeline: Arc<Timeline>, stop: CancellationToken) -> Worker {
        let wal = timeline.reader();
        let quiet = (Lsn::INVALID, Instant::now());
        Worker { uploads, timeline, wal, stop, cleaned: false, partial: None, quiet }
    }

    /// Until the timeline or the process ends. An upload under way is waited for: cut off, it might appear in the store
    /// after the timeline was deleted there.
    async fn run(mut self) {
        let timeline = Arc::clone(&self.timeline);
        let Ok(_working) = timeline.enter() else { return };
        let mut committed = timeline.subscribe_committed();
        let mut failures = 0;
        loop {
            committed.mark_unchanged();
            let wait = match self.step().await {
                Ok(Step::Done) => {
                    failures = 0;
                    continue;
                }
                Ok(Step::Wait(time)) => time,
                Err(UploadError::Timeline(_)) => return,
                Err(error) => {
                    self.uploads.metrics.backup_errors.inc();
                    tracing::warn!("could not back up WAL: {error}");
                    committed.mark_unchanged();
                    let pause = plan::backoff(failures, super::spread());
                    failures = failures.saturating_add(1);
                    if !self.pause(pause).await {
                        return;
                    }
                    continue;
                }
            };
            tokio::select! {
                changed = committed.changed() => if changed.is_err() { return },
                alive = self.pause(wait.unwrap_or(Duration::MAX)) => if !alive { return },
            }
        }
    }

    /// Waits; `false` when the timeline or the process ends.
    async fn pause(&self, time: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(time) => true,
            () = self.timeline.cancellation().cancelled() => false,
            () = self.stop.cancelled() => false,
        }
    }

    fn positions(&self) -> Positions {
        let ladder = self.timeline.progress().ladder;
        Positions {
            timeline_start_lsn: ladder.timeline_start_lsn,
            local_start_lsn: ladder.local_start_lsn,
            commit_lsn: ladder.commit_lsn,
            backup_lsn: self.timeline.backup_lsn(),
        }
    }

    async fn step(&mut self) -> Result<Step, UploadError> {
        self.timeline.check()?;
        if self.stop.is_cancelled() {
            return Err(TimelineError::Stopping.into());
        }
        let positions = self.positions();
        if positions.commit_lsn != self.quiet.0 {
            self.quiet = (positions.commit_lsn, Instant::now());
        }
        if let Some(segno) = plan::next_segment(positions) {
            return self.whole_segment(segno).await;
        }
        self.unfinished_segment(positions).await
    }

    /// `[BK1]`, `[BK3]`
    async fn whole_segment(&mut self, segno: u64) -> Result<Step, UploadError> {
        let store = self.uploads.store.clone();
        let key = store.segment_key(self.timeline.id(), segno);
        let mut waited = Duration::ZERO;
        let patience = self.patience(segno).await?;
        let mut there = store.size(&key).await? == Some(plan::SEGMENT_BYTES);
        while !there && waited < patience {
            let pause = OTHERS_TURN_PAUSE.min(patience.saturating_sub(waited));
            if !self.pause(pause).await {
                return Err(TimelineError::Stopping.into());
            }
            waited = waited.saturating_add(pause);
            there = store.size(&key).await? == Some(plan::SEGMENT_BYTES);
        }
        if !there {
            let _slot = self.slot().await?;
            let len = usize::try_from(plan::SEGMENT_BYTES).unwrap_or(usize::MAX);
            match blocking(|| self.wal.read(segment_start(segno), len)) {
                Ok(data) => self.upload(&key, segno, data).await?,
                Err(ReadError::Removed(lsn)) => {
                    // It went while no store was configured. Nobody here can ever upload it.
                    tracing::warn!("WAL at {lsn} is neither here nor in the object store");
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.timeline.note_backup(plan::end_of(segno));
        Ok(Step::Done)
    }

    /// Leave to hold a segment in memory.
    async fn slot(&self) -> Result<OwnedSemaphorePermit, UploadError> {
        let slot = Arc::clone(&self.uploads.slots).acquire_owned();
        tokio::select! {
            // The semaphore is never closed.
            slot = slot => slot.map_err(|_| TimelineError::Stopping.into()),
            () = self.timeline.cancellation().cancelled() => Err(TimelineError::Stopping.into()),
        }
    }

    /// How long a segment is left to the members whose turn comes first.
    async fn patience(&self, segno: u64) -> Result<Duration, UploadError> {
        let mconf = self.timeline.state().await?.mconf;
        let members: Vec<NodeId> = mconf.members.iter().map(|member| member.id).collect();
        Ok(plan::patience(self.uploads.node_id, &members, segno))
    }

    /// `[BK7]`
    async fn upload(
        &self,
        key: &object_store::path::Path,
        segno: u64,
        data: Bytes,
    ) -> Result<(), UploadError> {
        let begin = segment_start(segno);
        let local_start_lsn = self.positions().local_start_lsn;
        if let Some(reason) = blocking(|| damage(&data, begin, local_start_lsn)) {
            return Err(UploadError::Damaged { segment: begin, reason });
        }
        let (len, started) = (data.len(), Instant::now());
        tracing::info!("uploading {key}, {len} bytes");
        self.uploads.store.put(key, data).await?;
        let metrics = &self.uploads.metrics;
        metrics.backup_uploads.inc();
        metrics.backup_bytes.inc_by(len as u64);
        tracing::info!("uploaded {key} in {} ms", started.elapsed().as_millis());
        Ok(())
    }

    /// `[BK4]` The beginning of the last segment, once nothing was committed for a while.
    async fn unfinished_segment(&mut self, positions: Positions) -> Result<Step, UploadError> {
        let timeout = self.uploads.partial_backup_timeout;
        let left = timeout.saturating_sub(self.quiet.1.elapsed());
        let progress = self.timeline.progress();
        let (term, flush_lsn) = (progress.last_log_term, progress.ladder.flush_lsn);
        let planned = plan::partial(self.uploads.node_id, term, flush_lsn, positions);
        match planned {
            Some((name, _)) if Some(name) == self.partial && self.cleaned => Ok(Step::Wait(None)),
            _ if !left.is_zero() => Ok(Step::Wait(Some(left))),
            Some((name, len)) if Some(name) != self.partial => {
                let dir = self.uploads.store.partial_dir(self.timeline.id());
                let key = dir.join(name.to_string().as_str());
                // An earlier process may have uploaded it.
                if self.uploads.store.size(&key).await? != Some(len as u64) {
                    let _slot = self.slot().await?;
                    // Whatever is cut off the log and written anew meanwhile is not below the commit position.
                    let begin = segment_start(name.segno);
                    let data = blocking(|| self.wal.read(begin, len))?;
                    self.upload(&key, name.segno, data).await?;
                }
                self.partial = Some(name);
                self.cleaned = false;
                Ok(Step::Done)
            }
            _ if !self.cleaned => {
                self.clean(planned.map(|(name, _)| name)).await?;
                Ok(Step::Done)
            }
            // There is flushed WAL that is not committed; a commit, or an election that cuts it off, ends that.
            _ => Ok(Step::Wait(Some(timeout))),
        }
    }

    /// Removes what the unfinished segment that was uploaded last, or whole ones, took the place of.
    async fn clean(&mut self, current: Option<PartialName>) -> Result<(), UploadError> {
        let dir = self.uploads.store.partial_dir(self.timeline.id());
        let keys = self.uploads.store.list(&dir).await?;
        let names: Vec<&str> = keys.iter().filter_map(|key| key.filename()).collect();
        let outdated = plan::outdated(names, self.uploads.node_id, current);
        let keys = outdated.iter().map(|name| dir.clone().join(name.to_string().as_str()));
        self.uploads.store.delete(keys.collect()).await?;
        self.cleaned = true;
        Ok(())
    }
}
