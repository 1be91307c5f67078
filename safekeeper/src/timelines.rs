//! All timelines of this safekeeper: loading, creation, copying from others, deletion.
//!
//! ```text
//! DATA_DIR/safekeeper.id                      number of the safekeeper this directory belongs to
//! DATA_DIR/TENANT/TIMELINE/                   safekeeper.control and WAL segments
//! DATA_DIR/TENANT/TIMELINE.deleted            tombstone: never again, or not in an old membership
//! DATA_DIR/TENANT/TIMELINE.tmp/               under construction or destruction; removed at load
//! ```

mod exclude;
mod pull;
mod tombstone;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use pg_types::{Generation, Lsn, NodeId};
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;
use wal_consensus::command::AcceptorState;
use wal_consensus::membership::{MembershipConf, MembershipError};
use wal_consensus::refusal::Refusal;
use wal_consensus::term_history::{TermHistory, TermHistoryError};

use crate::control_file::{ControlFile, ControlFileError};
use crate::durable::{self, Context, FileError, TEMPORARY_SUFFIX};
use crate::metrics::Metrics;
use crate::timeline::core::Broken;
use crate::timeline::{TenantTimelineId, Timeline, TimelineError};

pub use pull::PullTimeline;
use tombstone::Tombstone;

/// A request to create a timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateTimeline {
    /// Which one.
    pub id: TenantTimelineId,
    /// Safekeepers that may vote; empty while memberships are not used.
    pub mconf: MembershipConf,
    /// `PG_VERSION_NUM`.
    pub pg_version: u32,
    /// `system_identifier`, 0 when not known.
    pub system_id: u64,
    /// Bytes in a WAL segment.
    pub wal_seg_size: u32,
    /// First position; a record starts there.
    pub start_lsn: Lsn,
    /// Committed up to here from the beginning; `start_lsn` but for repairs.
    pub commit_lsn: Lsn,
}

/// Why something with timelines did not work.
#[derive(Debug, thiserror::Error)]
pub enum TimelinesError {
    /// There is none.
    #[error("timeline {0} does not exist on this safekeeper")]
    NotFound(TenantTimelineId),
    /// It was deleted, and that is for ever.
    #[error("timeline {0} was deleted")]
    Deleted(TenantTimelineId),
    /// It exists with other properties.
    #[error("timeline {id} exists and begins at {start_lsn}")]
    Exists {
        /// Which.
        id: TenantTimelineId,
        /// Where it begins.
        start_lsn: Lsn,
    },
    /// It left with a membership configuration that is not older than the wanted one.
    #[error(
        "timeline {id} left this safekeeper in membership generation {left}, wanted is generation {wanted}"
    )]
    Excluded {
        /// Which.
        id: TenantTimelineId,
        /// Generation of the configuration that did not name this safekeeper.
        left: Generation,
        /// Generation of the request.
        wanted: Generation,
    },
    /// It cannot leave: the configuration names this safekeeper.
    #[error("membership configuration {mconf} names this safekeeper, {node_id}")]
    StillMember {
        /// This safekeeper.
        node_id: NodeId,
        /// The configuration of the request.
        mconf: MembershipConf,
    },
    /// The membership configuration of the request cannot be taken.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It could not be copied from another safekeeper.
    #[error("could not pull the timeline: {0}")]
    Pull(String),
    /// The request makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// It is out of service.
    #[error(transparent)]
    Timeline(#[from] TimelineError),
    /// It could not be loaded.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The control file could not be made.
    #[error(transparent)]
    ControlFile(#[from] ControlFileError),
    /// The directory belongs to another safekeeper.
    #[error("{} belongs to safekeeper {found}, this one is {id}", .dir.display())]
    OtherSafekeeper {
        /// The data directory.
        dir: PathBuf,
        /// Number in its `safekeeper.id`.
        found: String,
        /// Number in the configuration.
        id: NodeId,
    },
}

impl From<MembershipError> for TimelinesError {
    fn from(error: MembershipError) -> TimelinesError {
        TimelinesError::BadRequest(error.to_string())
    }
}

impl From<TermHistoryError> for TimelinesError {
    fn from(error: TermHistoryError) -> TimelinesError {
        TimelinesError::BadRequest(error.to_string())
    }
}

#[derive(Debug, Clone)]
enum Entry {
    Loaded(Arc<Timeline>),
    /// Could not be loaded; why.
    Quarantined(String),
}

/// The map of timelines.
#[derive(Debug)]
pub struct Timelines {
    data_dir: PathBuf,
    node_id: NodeId,
    metrics: Metrics,
    shutdown: CancellationToken,
    entries: RwLock<BTreeMap<TenantTimelineId, Entry>>,
    /// Creations, copies and deletions under way: of one timeline one at a time, of several at once, since a copy may take
    /// long.
    changes: Mutex<HashMap<TenantTimelineId, Arc<tokio::sync::Mutex<()>>>>,
}

impl Timelines {
    /// Loads every timeline below `data_dir`. One that cannot be loaded is quarantined; the others serve.
    pub fn load(
        data_dir: &Path,
        node_id: NodeId,
        metrics: Metrics,
        shutdown: CancellationToken,
    ) -> Result<Timelines, TimelinesError> {
        durable::create_dir_all(data_dir)?;
        check_identity(data_dir, node_id)?;
        let timelines = Timelines {
            data_dir: data_dir.to_owned(),
            node_id,
            metrics,
            shutdown,
            entries: RwLock::default(),
            changes: Mutex::default(),
        };
        for tenant in directories(data_dir)? {
            let Ok(tenant_id) = tenant.parse() else { continue };
            for name in directories(&data_dir.join(&tenant))? {
                if let Ok(timeline_id) = name.parse() {
                    timelines.load_one(TenantTimelineId { tenant_id, timeline_id })?;
                } else if name.ends_with(TEMPORARY_SUFFIX) {
                    durable::remove_if_there(&data_dir.join(&tenant).join(name))?;
                }
            }
        }
        Ok(timelines)
    }

    fn load_one(&self, id: TenantTimelineId) -> Result<(), TimelinesError> {
        if self.is_dead(id)? {
            // The process died between the tombstone and the removal.
            durable::remove_dir_all(&self.dir(id))?;
            return Ok(());
        }
        let entry = match self.open(id) {
            Ok(timeline) => Entry::Loaded(Arc::new(timeline)),
            Err(error) => {
                tracing::error!(ttid = %id, "timeline is not loaded: {error}");
                Entry::Quarantined(error.to_string())
            }
        };
        self.insert(id, entry);
        Ok(())
    }

    fn open(&self, id: TenantTimelineId) -> Result<Timeline, Broken> {
        let cancel = self.shutdown.child_token();
        Timeline::load(&self.dir(id), self.node_id, id, &self.metrics, cancel)
    }

    fn dir(&self, id: TenantTimelineId) -> PathBuf {
        self.data_dir.join(id.tenant_id.to_string()).join(id.timeline_id.to_string())
    }

    /// Whether a tombstone says that the directory of a timeline is rubbish. One that came back in a newer membership
    /// generation is not.
    fn is_dead(&self, id: TenantTimelineId) -> Result<bool, TimelinesError> {
        Ok(match self.tombstone(id)? {
            None => false,
            Some(Tombstone::Deleted) => true,
            Some(tombstone) => {
                let (dir, TenantTimelineId { tenant_id, timeline_id }) = (self.dir(id), id);
                // What cannot be read is kept, and quarantined with its reason.
                ControlFile::load(&dir, tenant_id, timeline_id)
                    .is_ok_and(|control| !tombstone.allows(control.acceptor_state.mconf.generation))
            }
        })
    }

    fn insert(&self, id: TenantTimelineId, entry: Entry) {
        // Single insertions and removals: a panicked holder leaves nothing half done.
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.insert(id, entry);
    }

    /// Waits until no other change of the timeline is under way, and keeps others out.
    async fn change(&self, id: TenantTimelineId) -> OwnedMutexGuard<()> {
        let lock = {
            // A panicked holder leaves nothing half done: entries come and go whole.
            let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever holds one or waits for it has a clone.
            changes.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(changes.entry(id).or_default())
        };
        lock.lock_owned().await
    }

    fn entries(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<TenantTimelineId, Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A timeline that serves.
    pub fn get(&self, id: TenantTimelineId) -> Result<Arc<Timeline>, TimelinesError> {
        match self.entries().get(&id) {
            None => Err(TimelinesError::NotFound(id)),
            Some(Entry::Quarantined(reason)) => {
                Err(TimelineError::Quarantined(reason.clone()).into())
            }
            Some(Entry::Loaded(timeline)) => {
                timeline.check()?;
                Ok(Arc::clone(timeline))
            }
        }
    }

    /// All timelines, with the reason for those that do not serve.
    pub fn list(&self) -> Vec<(TenantTimelineId, Result<Arc<Timeline>, TimelineError>)> {
        let entries = self.entries();
        let state = |entry: &Entry| match entry {
            Entry::Quarantined(reason) => Err(TimelineError::Quarantined(reason.clone())),
            Entry::Loaded(timeline) => timeline.check().map(|()| Arc::clone(timeline)),
        };
        entries.iter().map(|(id, entry)| (*id, state(entry))).collect()
    }

    /// Creates a timeline; the boolean says whether it is new. Doing it again with the same request is fine.
    pub async fn create(
        self: &Arc<Timelines>,
        request: CreateTimeline,
    ) -> Result<(Arc<Timeline>, bool), TimelinesError> {
        let id = request.id;
        let _alone = self.change(id).await;
        match self.get(id) {
            Ok(timeline) => {
                let state = timeline.state().await?;
                let same = state.timeline_start_lsn == request.start_lsn
                    && state.pg_version / 10_000 == request.pg_version / 10_000;
                let start_lsn = state.timeline_start_lsn;
                return if same {
                    Ok((timeline, false))
                } else {
                    Err(TimelinesError::Exists { id, start_lsn })
                };
            }
            Err(TimelinesError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
        let timelines = Arc::clone(self);
        let timeline =
            tokio::task::spawn_blocking(move || timelines.create_files(&request)).await.map_err(
                |error| TimelinesError::BadRequest(format!("creation was aborted: {error}")),
            )??;
        let timeline = Arc::new(timeline);
        self.insert(id, Entry::Loaded(Arc::clone(&timeline)));
        tracing::info!(ttid = %id, "timeline created");
        Ok((timeline, true))
    }

    /// The directory appears whole or not at all.
    fn create_files(&self, request: &CreateTimeline) -> Result<Timeline, TimelinesError> {
        let id = request.id;
        self.check_tombstone(id, request.mconf.generation)?;
        let control = initial_control_file(request)?;
        let dir = self.dir(id);
        let under_construction = durable::temporary_beside(&dir);
        durable::remove_dir_all(&under_construction)?;
        durable::create_dir_all(&under_construction)?;
        control.save(&under_construction)?;
        durable::rename(&under_construction, &dir)?;
        Ok(self.open(id)?)
    }

    /// `[SK7]` Deletes a timeline for ever, tombstone first; `false` when it was deleted before.
    pub async fn delete(
        self: &Arc<Timelines>,
        id: TenantTimelineId,
    ) -> Result<bool, TimelinesError> {
        let _alone = self.change(id).await;
        let entry = self.entries().get(&id).cloned();
        if entry.is_none() {
            return match self.tombstone(id)? {
                Some(Tombstone::Deleted) => Ok(false),
                // It may come back here no more.
                Some(Tombstone::Excluded { .. }) => {
                    self.bury(id, Tombstone::Deleted)?;
                    Ok(false)
                }
                None => Err(TimelinesError::NotFound(id)),
            };
        }
        self.bury(id, Tombstone::Deleted)?;
        let existed = self.remove(id, entry).await?;
        tracing::info!(ttid = %id, "timeline deleted");
        Ok(existed)
    }

    /// Ends a timeline that has its tombstone, and removes its files.
    async fn remove(
        self: &Arc<Timelines>,
        id: TenantTimelineId,
        entry: Option<Entry>,
    ) -> Result<bool, TimelinesError> {
        if let Some(Entry::Loaded(timeline)) = &entry {
            timeline.stop().await;
        }
        let dir = self.dir(id);
        let existed =
            tokio::task::spawn_blocking(move || durable::remove_dir_all(&dir)).await.map_err(
                |error| TimelinesError::BadRequest(format!("removal was aborted: {error}")),
            )??;
        self.entries.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        Ok(existed)
    }
}

fn initial_control_file(request: &CreateTimeline) -> Result<ControlFile, TimelinesError> {
    let bad = |reason: &str| Err(TimelinesError::BadRequest(reason.to_owned()));
    if !request.start_lsn.is_valid() || !request.start_lsn.is_aligned() {
        return bad("start_lsn must be a position at which a record starts");
    }
    if request.commit_lsn != request.start_lsn {
        return bad("commit_lsn must be start_lsn: this safekeeper has no WAL in between");
    }
    if u64::from(request.wal_seg_size) != pg_types::xlog::WAL_SEGMENT_SIZE {
        return bad("wal_seg_size must be 16777216");
    }
    request.mconf.validate()?;
    Ok(ControlFile {
        tenant_id: request.id.tenant_id,
        timeline_id: request.id.timeline_id,
        acceptor_state: AcceptorState {
            mconf: request.mconf.clone(),
            term_history: TermHistory::new(vec![(0, request.start_lsn.0).into()])?,
            pg_version: request.pg_version,
            system_id: request.system_id,
            wal_seg_size: request.wal_seg_size,
            timeline_start_lsn: request.start_lsn,
            local_start_lsn: request.start_lsn,
            commit_lsn: request.commit_lsn,
            truncate_lsn: request.start_lsn,
            ..AcceptorState::default()
        },
        remote_consistent_lsn: Lsn::INVALID,
        backup_lsn: Lsn::INVALID,
    })
}

/// Names of the directories in a directory.
fn directories(dir: &Path) -> Result<Vec<String>, FileError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).context("list", dir)? {
        let entry = entry.context("list", dir)?;
        let is_dir = entry.file_type().context("inspect", &entry.path())?.is_dir();
        if let Ok(name) = entry.file_name().into_string()
            && is_dir
        {
            names.push(name);
        }
    }
    Ok(names)
}

/// `[SK9]` A data directory belongs to one safekeeper for ever: two with one number would vote twice.
fn check_identity(data_dir: &Path, id: NodeId) -> Result<(), TimelinesError> {
    let path = data_dir.join("safekeeper.id");
    match fs::read_to_string(&path) {
        Ok(text) if text.trim() == id.to_string() => Ok(()),
        Ok(text) => {
            let (dir, found) = (data_dir.to_owned(), text.trim().to_owned());
            Err(TimelinesError::OtherSafekeeper { dir, found, id })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(durable::replace(&path, format!("{id}\n").as_bytes())?)
        }
        Err(source) => Err(FileError { action: "read", path, source }.into()),
    }
}

#[cfg(test)]
mod tests;
