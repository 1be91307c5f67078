//! Loading what is on disk at start. A timeline that cannot be loaded is set aside with the reason; the others
//! serve.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use layer_store::Store;
use pg_types::{TenantId, TimelineId};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use walredo_sidecar::PostgresRedoManager;

use super::layout::{IoContext, Layout, create_dir_durably, live_directories, sync_dir};
use super::metadata::{StateFile, TimelineMetadata};
use super::{Slot, Tenant, TenantError, Tenants};
use crate::config::Config;
use crate::metrics::GLOBAL;
use crate::timeline::{Parts, ReadLimits, Timeline};

impl Tenants {
    /// Reads the data directory, making it when missing, and starts the receivers of what it holds. Blocks;
    /// receivers run on the current runtime.
    ///
    /// # Errors
    /// When the directory itself cannot be read; never because of one tenant or timeline.
    pub fn load(
        config: Arc<Config>,
        shutdown: CancellationToken,
    ) -> Result<Arc<Tenants>, TenantError> {
        let layout = Layout::open_or_create(&config.data_dir)?;
        let options = layer_store::Options {
            memtable_bytes: config.memtable_bytes,
            memtable_flush_bytes: (config.memtable_bytes / 2).max(1),
            ..layer_store::Options::default()
        };
        let tenants = Arc::new(Tenants {
            shared: layer_store::Shared::new(options),
            redo: crate::redo::environment(&config, &layout.tmp_dir())?,
            config,
            layout,
            tenants: Mutex::default(),
            tasks: TaskTracker::new(),
            runtime: tokio::runtime::Handle::current(),
            shutdown,
        });
        for (name, path) in live_directories(&tenants.layout.tenants_dir())? {
            let Ok(id) = name.parse::<TenantId>() else {
                tracing::warn!("{} is no tenant and is left alone", path.display());
                continue;
            };
            match tenants.load_tenant(id) {
                Ok(tenant) => drop(tenants.lock().insert(id, Arc::new(tenant))),
                Err(error) => tracing::error!(tenant_id = %id, "tenant is not loaded: {error}"),
            }
        }
        Ok(tenants)
    }

    /// A tenant without timelines, its directory made already.
    pub(super) fn make_tenant(&self, id: TenantId) -> Tenant {
        let dir = self.layout.tenant_dir(id);
        Tenant {
            id,
            redo: Arc::new(PostgresRedoManager::new(Arc::clone(&self.redo), id, dir)),
            timelines: Mutex::default(),
            deleting: Mutex::new(false),
        }
    }

    fn load_tenant(&self, id: TenantId) -> Result<Tenant, TenantError> {
        let tenant = self.make_tenant(id);
        let dir = self.layout.timelines_dir(id);
        create_dir_durably(&dir)?;
        let mut found = BTreeMap::new();
        for (name, path) in live_directories(&dir)? {
            let Ok(timeline_id) = name.parse::<TimelineId>() else {
                tracing::warn!("{} is no timeline and is left alone", path.display());
                continue;
            };
            match read_metadata(&path, timeline_id) {
                Ok(Some(metadata)) => drop(found.insert(timeline_id, metadata)),
                Ok(None) => {
                    tracing::info!(%timeline_id, "removing what is left of an unfinished creation");
                    fs::remove_dir_all(&path).doing("remove", &path)?;
                    sync_dir(&dir)?;
                }
                Err(error) => set_aside(&tenant, timeline_id, None, &error.to_string()),
            }
        }
        self.open_all(&tenant, found);
        Ok(tenant)
    }

    /// Opens timelines, ancestors before their branches.
    fn open_all(&self, tenant: &Tenant, mut found: BTreeMap<TimelineId, TimelineMetadata>) {
        while let Some(next) = next_to_open(&found) {
            let Some(metadata) = found.remove(&next) else { break };
            let ancestor = metadata.ancestor.map(|point| point.timeline_id);
            match self.open(tenant, metadata) {
                Ok(timeline) => drop(tenant.timelines().insert(next, Slot::Active(timeline))),
                Err(error) => set_aside(tenant, next, ancestor, &error.to_string()),
            }
        }
        // Only a ring of ancestors is left, which no creation makes.
        for (timeline_id, metadata) in found {
            let ancestor = metadata.ancestor.map(|point| point.timeline_id);
            set_aside(tenant, timeline_id, ancestor, "it is its own ancestor");
        }
    }

    fn open(
        &self,
        tenant: &Tenant,
        metadata: TimelineMetadata,
    ) -> Result<Arc<Timeline>, TenantError> {
        let timeline_id = metadata.timeline_id;
        let ancestor = metadata
            .ancestor
            .map(|ancestor| {
                tenant.timeline(ancestor.timeline_id).map(|timeline| (timeline, ancestor.lsn))
            })
            .transpose()?;
        let parent = ancestor.as_ref().map(|(timeline, lsn)| layer_store::Ancestor {
            store: timeline.store().clone(),
            lsn: *lsn,
        });
        let store_dir = self.layout.store_dir(tenant.id, timeline_id);
        let store = Store::open(&store_dir, parent, &self.shared)?;
        let parts = Parts {
            tenant_id: tenant.id,
            dir: self.layout.timeline_dir(tenant.id, timeline_id),
            metadata,
            store,
            ancestor: ancestor.map(|(timeline, _)| timeline),
            redo: tenant.redo.clone(),
        };
        let timeline = Timeline::new(parts, ReadLimits::from(&*self.config));
        self.start_receiver(&timeline)?;
        Ok(timeline)
    }
}

/// `None`: the creation never finished.
fn read_metadata(
    dir: &Path,
    timeline_id: TimelineId,
) -> Result<Option<TimelineMetadata>, TenantError> {
    let Some(metadata) = TimelineMetadata::load(dir)? else { return Ok(None) };
    if metadata.timeline_id != timeline_id {
        let reason = format!("its metadata is that of {}", metadata.timeline_id);
        return Err(TenantError::TimelineBroken { timeline_id, reason });
    }
    Ok(Some(metadata))
}

/// A timeline whose ancestor is not waiting to be opened.
fn next_to_open(found: &BTreeMap<TimelineId, TimelineMetadata>) -> Option<TimelineId> {
    let is_ready = |metadata: &TimelineMetadata| {
        metadata.ancestor.is_none_or(|ancestor| !found.contains_key(&ancestor.timeline_id))
    };
    found.iter().find(|(_, metadata)| is_ready(metadata)).map(|(id, _)| *id)
}

fn set_aside(tenant: &Tenant, timeline_id: TimelineId, ancestor: Option<TimelineId>, reason: &str) {
    tracing::error!(tenant_id = %tenant.id, %timeline_id, "timeline is set aside: {reason}");
    GLOBAL.broken_timelines.inc();
    let broken = Slot::Broken { reason: reason.to_owned(), ancestor };
    tenant.timelines().insert(timeline_id, broken);
}
