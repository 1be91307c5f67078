//! All tenants of this server and their timelines: which exist, in which state, and how that changes.

mod create;
mod delete;
mod error;
pub mod initdb;
pub mod layout;
mod load;
pub mod metadata;
#[cfg(test)]
mod tests;
mod wal_source;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pg_types::{TenantId, TimelineId};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use walredo_sidecar::{PostgresRedoManager, WalRedoEnv};

pub use create::NewTimeline;
pub use error::TenantError;
use layout::Layout;

use crate::config::Config;
use crate::timeline::Timeline;

/// All tenants.
pub struct Tenants {
    config: Arc<Config>,
    layout: Layout,
    shared: layer_store::Shared,
    tenants: Mutex<BTreeMap<TenantId, Arc<Tenant>>>,
    redo: Arc<WalRedoEnv>,
    /// WAL receivers of all timelines.
    tasks: TaskTracker,
    /// Runs them.
    runtime: tokio::runtime::Handle,
    shutdown: CancellationToken,
}

/// One tenant.
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// Replays records for all its timelines.
    redo: Arc<PostgresRedoManager>,
    timelines: Mutex<BTreeMap<TimelineId, Slot>>,
    /// Set once by the deletion: nothing is created in it any more.
    deleting: Mutex<bool>,
}

/// A timeline's place, by state.
#[derive(Clone)]
pub enum Slot {
    /// Serving.
    Active(Arc<Timeline>),
    /// Could not be loaded; others are not affected.
    Broken {
        /// Why.
        reason: String,
        /// What it was branched from, as far as known.
        ancestor: Option<TimelineId>,
    },
    /// Something is done to it that nothing may interfere with.
    Busy {
        /// What: "creating" or "deleting".
        doing: &'static str,
        /// What it is branched from.
        ancestor: Option<TimelineId>,
    },
}

impl Slot {
    /// The timeline that this one needs.
    pub fn ancestor(&self) -> Option<TimelineId> {
        match self {
            Slot::Active(timeline) => timeline.metadata.ancestor.map(|point| point.timeline_id),
            Slot::Broken { ancestor, .. } | Slot::Busy { ancestor, .. } => *ancestor,
        }
    }
}

impl std::fmt::Debug for Tenant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tenant").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Tenant {
    fn timelines(&self) -> MutexGuard<'_, BTreeMap<TimelineId, Slot>> {
        // Each change is one insertion or removal.
        self.timelines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All timelines, by id.
    pub fn list(&self) -> Vec<(TimelineId, Slot)> {
        self.timelines().iter().map(|(id, slot)| (*id, slot.clone())).collect()
    }

    /// A timeline's place.
    pub fn slot(&self, timeline_id: TimelineId) -> Option<Slot> {
        self.timelines().get(&timeline_id).cloned()
    }

    /// A timeline that serves.
    pub fn timeline(&self, timeline_id: TimelineId) -> Result<Arc<Timeline>, TenantError> {
        match self.timelines().get(&timeline_id) {
            Some(Slot::Active(timeline)) => Ok(Arc::clone(timeline)),
            Some(Slot::Broken { reason, .. }) => {
                Err(TenantError::TimelineBroken { timeline_id, reason: reason.clone() })
            }
            Some(Slot::Busy { doing, .. }) => Err(TenantError::TimelineBusy { timeline_id, doing }),
            None => Err(TenantError::TimelineNotFound { tenant_id: self.id, timeline_id }),
        }
    }

    /// Ends redo processes that nobody has used for `age`.
    pub fn quiesce_redo(&self, age: Duration) {
        self.redo.quiesce(age);
    }

    fn active(&self) -> Vec<Arc<Timeline>> {
        let active = |slot: &Slot| match slot {
            Slot::Active(timeline) => Some(Arc::clone(timeline)),
            _ => None,
        };
        self.timelines().values().filter_map(active).collect()
    }
}

impl Tenants {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<TenantId, Arc<Tenant>>> {
        // Each change is one insertion or removal.
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All tenants, by id.
    pub fn list(&self) -> Vec<Arc<Tenant>> {
        self.lock().values().cloned().collect()
    }

    /// A tenant.
    pub fn tenant(&self, id: TenantId) -> Result<Arc<Tenant>, TenantError> {
        self.lock().get(&id).cloned().ok_or(TenantError::TenantNotFound(id))
    }

    /// A timeline that serves.
    pub fn timeline(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> Result<Arc<Timeline>, TenantError> {
        self.tenant(tenant)?.timeline(timeline)
    }

    /// Every timeline that serves.
    pub fn active_timelines(&self) -> Vec<Arc<Timeline>> {
        self.list().iter().flat_map(|tenant| tenant.active()).collect()
    }

    /// Memory budget that all timelines share.
    pub fn shared(&self) -> &layer_store::Shared {
        &self.shared
    }

    /// Stops all WAL receivers and all waits, then writes what is in memory to disk.
    pub async fn stop(self: &Arc<Self>) {
        self.shutdown.cancel();
        let timelines = self.active_timelines();
        timelines.iter().for_each(|timeline| timeline.stop());
        self.tasks.close();
        self.tasks.wait().await;
        let flushed = tokio::task::spawn_blocking(move || {
            for timeline in timelines {
                if let Err(error) = timeline.flush() {
                    let id = timeline.metadata.timeline_id;
                    tracing::error!(timeline_id = %id, "could not flush at shutdown: {error}");
                }
            }
        });
        if let Err(error) = flushed.await {
            tracing::error!("flushing at shutdown failed: {error}");
        }
        let tenants = std::mem::take(&mut *self.lock());
        let ended = tokio::task::spawn_blocking(move || {
            tenants.values().for_each(|tenant| tenant.redo.shutdown());
        });
        if let Err(error) = ended.await {
            tracing::error!("ending redo processes failed: {error}");
        }
    }
}

/// Runs blocking work of an administrative request to its end, even when the request is dropped meanwhile.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TenantError> + Send + 'static,
) -> Result<T, TenantError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(TenantError::Internal(error.to_string())))
}
