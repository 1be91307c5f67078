//! One timeline: its core behind a lock, and what can be known of it without the lock.

pub mod core;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use pg_types::{Lsn, NodeId, TenantId, TimelineId};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use wal_consensus::command::{AcceptorIdentity, AcceptorState, ConnId};

use crate::feedback::Feedback;
use crate::metrics::Metrics;
use crate::wal_storage::{RecentWal, WalReader};
use core::{Broken, CopyState, Core, Outgoing, Progress};

/// Messages for a proposer that are caused by *other* connections: few, so a full queue means that nobody reads.
const LINK_QUEUE: usize = 16;

/// Tenant and timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantTimelineId {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The timeline.
    pub timeline_id: TimelineId,
}

impl fmt::Display for TenantTimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant_id, self.timeline_id)
    }
}

/// Why a timeline does not serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimelineError {
    /// It is out of service until this process starts again; others are not affected.
    #[error("timeline is quarantined: {0}")]
    Quarantined(String),
    /// It is being deleted, or the process stops.
    #[error("timeline is being shut down")]
    Stopping,
}

/// A timeline of this safekeeper.
#[derive(Debug)]
pub struct Timeline {
    id: TenantTimelineId,
    dir: PathBuf,
    core: tokio::sync::Mutex<Core>,
    /// Why it is out of service, once it is.
    broken: OnceLock<String>,
    progress: watch::Sender<Progress>,
    /// The commit position alone, for readers that are not to be woken by each flush before it.
    committed: watch::Sender<Lsn>,
    feedback: Feedback,
    /// WAL below this is in the object store.
    backup_lsn: AtomicU64,
    recent: Arc<RecentWal>,
    /// Connected proposers.
    links: Mutex<HashMap<ConnId, mpsc::Sender<Outgoing>>>,
    next_conn: AtomicU64,
    /// Copies being made of it.
    copies: AtomicUsize,
    /// Ends everything that works on this timeline.
    cancel: CancellationToken,
    tasks: TaskTracker,
}

/// A proposer's connection as the timeline knows it.
#[derive(Debug)]
pub struct Link {
    /// Its number.
    pub conn: ConnId,
    /// What other connections' messages cause for it.
    pub events: mpsc::Receiver<Outgoing>,
}

/// As long as it lives, no WAL is removed.
#[derive(Debug)]
pub struct CopyGuard<'a>(&'a AtomicUsize);

impl CopyGuard<'_> {
    fn new(copies: &AtomicUsize) -> CopyGuard<'_> {
        copies.fetch_add(1, Ordering::SeqCst);
        CopyGuard(copies)
    }
}

impl Drop for CopyGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A panic half-way leaves consensus ahead of the disk, like an error does.
struct QuarantineOnPanic<'a>(&'a Timeline);

impl Drop for QuarantineOnPanic<'_> {
    fn drop(&mut self) {
        self.0.out_of_service("internal error: a change was not finished");
    }
}

fn replace_if_new<T: Copy + PartialEq>(published: &watch::Sender<T>, value: T) {
    published.send_if_modified(|known| std::mem::replace(known, value) != value);
}

impl Timeline {
    /// Loads the timeline in `dir`. Blocking.
    pub fn load(
        dir: &Path,
        node_id: NodeId,
        id: TenantTimelineId,
        metrics: &Metrics,
        cancel: CancellationToken,
    ) -> Result<Timeline, Broken> {
        let TenantTimelineId { tenant_id, timeline_id } = id;
        let identity = AcceptorIdentity { node_id, tenant_id, timeline_id };
        let core = Core::load(dir, identity, metrics.clone())?;
        Ok(Timeline {
            id,
            dir: dir.to_owned(),
            progress: watch::Sender::new(core.progress()),
            committed: watch::Sender::new(core.progress().ladder.commit_lsn),
            feedback: Feedback::new(core.control_file().remote_consistent_lsn),
            backup_lsn: AtomicU64::new(core.control_file().backup_lsn.0),
            recent: core.recent_wal(),
            core: tokio::sync::Mutex::new(core),
            broken: OnceLock::new(),
            links: Mutex::default(),
            next_conn: AtomicU64::new(1),
            copies: AtomicUsize::new(0),
            cancel,
            tasks: TaskTracker::new(),
        })
    }

    /// Which timeline this is.
    pub fn id(&self) -> TenantTimelineId {
        self.id
    }

    /// Cancelled when the timeline goes out of service, is deleted, or the process stops.
    pub fn cancellation(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Why nothing works here any more, if so.
    pub fn check(&self) -> Result<(), TimelineError> {
        match self.broken.get() {
            Some(reason) => Err(TimelineError::Quarantined(reason.clone())),
            None if self.cancel.is_cancelled() => Err(TimelineError::Stopping),
            None => Ok(()),
        }
    }

    /// Registers work on the timeline's files: [`Self::stop`] waits until the token is dropped.
    pub fn enter(&self) -> Result<TaskTrackerToken, TimelineError> {
        let token = self.tasks.token();
        // Checked after the token was taken, so that a stop either sees the token or is seen here.
        self.check()?;
        Ok(token)
    }

    /// Ends all work on the timeline and waits for it.
    pub async fn stop(&self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        // Whoever holds the core without a token (maintenance) is waited for here.
        drop(self.core.lock().await);
    }

    /// Positions as they change.
    pub fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// The commit position as it changes.
    pub fn subscribe_committed(&self) -> watch::Receiver<Lsn> {
        self.committed.subscribe()
    }

    /// Positions as of now.
    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// What readers report.
    pub fn feedback(&self) -> &Feedback {
        &self.feedback
    }

    /// Reads its WAL.
    pub fn reader(&self) -> WalReader {
        WalReader::new(&self.dir, Arc::clone(&self.recent))
    }

    /// Directory of its files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The state of consensus as of now.
    pub async fn state(&self) -> Result<AcceptorState, TimelineError> {
        self.with_core(|core| Ok(core.state().clone())).await
    }

    /// Runs `work` on the core, alone, and publishes the positions that result. An error takes the timeline out
    /// of service (`[SK3]`).
    pub async fn with_core<T>(
        &self,
        work: impl FnOnce(&mut Core) -> Result<T, Broken>,
    ) -> Result<T, TimelineError> {
        let mut core = self.core.lock().await;
        self.check()?;
        let unwinding = QuarantineOnPanic(self);
        let result = work(&mut core);
        std::mem::forget(unwinding);
        if result.is_ok() {
            let progress = core.progress();
            replace_if_new(&self.progress, progress);
            replace_if_new(&self.committed, progress.ladder.commit_lsn);
        }
        result.map_err(|error| self.quarantine(&error))
    }

    fn quarantine(&self, error: &Broken) -> TimelineError {
        TimelineError::Quarantined(self.out_of_service(&error.to_string()))
    }

    fn out_of_service(&self, reason: &str) -> String {
        let reason = self.broken.get_or_init(|| reason.to_owned()).clone();
        tracing::error!(ttid = %self.id, "timeline is taken out of service: {reason}");
        self.cancel.cancel();
        reason
    }

    fn links(&self) -> std::sync::MutexGuard<'_, HashMap<ConnId, mpsc::Sender<Outgoing>>> {
        // Single insertions and removals: a panicked holder leaves nothing half done.
        self.links.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A number for a connection.
    pub fn number_connection(&self) -> ConnId {
        ConnId(self.next_conn.fetch_add(1, Ordering::Relaxed))
    }

    /// Adds a proposer's connection.
    pub fn connect(&self) -> Link {
        let conn = self.number_connection();
        let (sender, events) = mpsc::channel(LINK_QUEUE);
        self.links().insert(conn, sender);
        Link { conn, events }
    }

    /// Removes a proposer's connection.
    pub async fn disconnect(&self, conn: ConnId) {
        self.links().remove(&conn);
        // An error here has been logged, and there is nobody left to be told.
        if let Ok(out) = self.with_core(|core| core.disconnected(conn)).await {
            self.dispatch(out);
        }
    }

    /// Number of connected proposers.
    pub fn connected_proposers(&self) -> usize {
        self.links().len()
    }

    /// Hands messages to the connections they are for. A connection that does not take them is cut off: its
    /// queue is dropped, which it notices.
    pub fn dispatch(&self, out: Vec<Outgoing>) {
        for outgoing in out {
            let conn = outgoing.conn();
            let mut links = self.links();
            if let Some(link) = links.get(&conn)
                && link.try_send(outgoing).is_err()
            {
                links.remove(&conn);
            }
        }
    }

    /// WAL below this is in the object store; perhaps not saved yet.
    pub fn backup_lsn(&self) -> Lsn {
        Lsn(self.backup_lsn.load(Ordering::Acquire))
    }

    /// The object store has acknowledged everything below.
    pub fn note_backup(&self, lsn: Lsn) {
        self.backup_lsn.fetch_max(lsn.0, Ordering::AcqRel);
    }

    /// Saves late positions, removes WAL that is not needed; where there is an object store, only what is in it.
    pub async fn maintain(&self, has_store: bool) -> Result<(), TimelineError> {
        let remote_consistent_lsn = self.feedback.remote_consistent_lsn();
        let backup_lsn = self.backup_lsn();
        // Looked at under the lock of the core: who begins a copy takes its state after this, or is seen here.
        let work = |core: &mut Core| {
            let may_remove = self.copies.load(Ordering::SeqCst) == 0;
            core.maintain(remote_consistent_lsn, backup_lsn, has_store, may_remove)
        };
        self.with_core(work).await
    }

    /// Begins a copy: the state it begins with, and a guard that keeps WAL from being removed meanwhile.
    pub async fn begin_copy(&self) -> Result<(CopyState, CopyGuard<'_>), TimelineError> {
        let guard = CopyGuard::new(&self.copies);
        Ok((self.copy_state().await?, guard))
    }

    /// The state a copy would begin with now.
    pub async fn copy_state(&self) -> Result<CopyState, TimelineError> {
        self.with_core(|core| Ok(core.copy_state())).await
    }
}
