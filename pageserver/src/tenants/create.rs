//! Creating tenants and timelines.
//!
//! A timeline exists when its `metadata` file does, which is written last: what a crash leaves before is
//! removed at the next start.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use layer_store::Store;
use pg_launch::PgInstall;
use pg_types::{Lsn, PG_MAJORVERSION, TenantId, TimelineId, xlog};
use walredo_sidecar::WalRedoManager;

use super::initdb::{self, InitdbError, InitdbOptions};
use super::layout::{IoContext, create_dir_durably, sync_dir};
use super::metadata::{Ancestor, StateFile, TimelineMetadata};
use super::{Slot, Tenant, TenantError, Tenants, run_blocking};
use crate::timeline::{Parts, ReadLimits, Timeline};

/// What a timeline is created from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewTimeline {
    /// Id, chosen by the caller.
    pub timeline_id: TimelineId,
    /// The timeline to branch; none makes a new cluster.
    pub ancestor_timeline_id: Option<TimelineId>,
    /// Where to branch; the newest position when left out.
    pub ancestor_start_lsn: Option<Lsn>,
    /// Major version of PostgreSQL for a new cluster.
    pub pg_version: u32,
}

/// Takes a timeline's place while it is made, and frees it when making fails.
struct Claim<'a> {
    tenant: &'a Tenant,
    timeline_id: TimelineId,
    done: bool,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.tenant.timelines().remove(&self.timeline_id);
        }
    }
}

impl Claim<'_> {
    fn fulfil(mut self, timeline: Arc<Timeline>) {
        self.done = true;
        self.tenant.timelines().insert(self.timeline_id, Slot::Active(timeline));
    }
}

impl Tenants {
    /// Creates a tenant without timelines.
    pub async fn create_tenant(self: &Arc<Self>, id: TenantId) -> Result<Arc<Tenant>, TenantError> {
        let tenants = Arc::clone(self);
        run_blocking(move || {
            // Under the lock: two creations of one id must not both find it missing.
            let mut map = tenants.lock();
            if map.contains_key(&id) {
                return Err(TenantError::TenantExists(id));
            }
            create_dir_durably(&tenants.layout.timelines_dir(id))?;
            let tenant = Arc::new(tenants.make_tenant(id));
            map.insert(id, Arc::clone(&tenant));
            Ok(tenant)
        })
        .await
    }

    /// Creates a timeline, or finds it when it was created with the same parameters before (then the second
    /// part of the answer is `false`).
    pub async fn create_timeline(
        self: &Arc<Self>,
        tenant_id: TenantId,
        new: NewTimeline,
    ) -> Result<(Arc<Timeline>, bool), TenantError> {
        if self.shutdown.is_cancelled() {
            return Err(TenantError::ShuttingDown);
        }
        let tenant = self.tenant(tenant_id)?;
        if new.ancestor_timeline_id.is_none() && new.ancestor_start_lsn.is_some() {
            let reason = "ancestor_start_lsn without ancestor_timeline_id";
            return Err(TenantError::BadRequest(reason.to_owned()));
        }
        // Its own task: a client that goes away does not leave a creation half done.
        let tenants = Arc::clone(self);
        let creation = tokio::spawn(async move {
            match tenants.existing(&tenant, new)? {
                Some(timeline) => Ok((timeline, false)),
                None => tenants.create_claimed(&tenant, new).await.map(|timeline| (timeline, true)),
            }
        });
        creation.await.unwrap_or_else(|error| Err(TenantError::Internal(error.to_string())))
    }

    fn existing(
        &self,
        tenant: &Tenant,
        new: NewTimeline,
    ) -> Result<Option<Arc<Timeline>>, TenantError> {
        let timeline = match tenant.timeline(new.timeline_id) {
            Ok(timeline) => timeline,
            Err(TenantError::TimelineNotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        match difference(&timeline.metadata, new) {
            None => Ok(Some(timeline)),
            Some(difference) => {
                Err(TenantError::TimelineExists { timeline_id: new.timeline_id, difference })
            }
        }
    }

    async fn create_claimed(
        self: &Arc<Self>,
        tenant: &Arc<Tenant>,
        new: NewTimeline,
    ) -> Result<Arc<Timeline>, TenantError> {
        let claim = claim(tenant, new)?;
        let timeline = match new.ancestor_timeline_id {
            Some(ancestor) => self.branch(tenant, new, ancestor).await?,
            None => self.bootstrap(tenant, new).await?,
        };
        claim.fulfil(Arc::clone(&timeline));
        Ok(timeline)
    }

    async fn bootstrap(
        self: &Arc<Self>,
        tenant: &Arc<Tenant>,
        new: NewTimeline,
    ) -> Result<Arc<Timeline>, TenantError> {
        let (tenants, tenant) = (Arc::clone(self), Arc::clone(tenant));
        run_blocking(move || {
            let install = tenants.install(new.pg_version)?;
            let scratch = Scratch::new(&tenants.layout.tmp_dir(), new.timeline_id)?;
            let pgdata = scratch.path.join("pgdata");
            let options = InitdbOptions {
                superuser: tenants.config.superuser.clone(),
                locale: tenants.config.locale.clone(),
            };
            initdb::run(&install, &pgdata, &options)?;
            if let Err(error) = tenants.redo.offer_cluster(new.pg_version, &pgdata) {
                tracing::warn!("no redo template from this cluster: {error}");
            }
            let dir = tenants.fresh_timeline_dir(tenant.id, new.timeline_id)?;
            let store_dir = tenants.layout.store_dir(tenant.id, new.timeline_id);
            let (store, summary) =
                crate::import::import_data_directory(&pgdata, &store_dir, &tenants.shared)?;
            let metadata = TimelineMetadata {
                timeline_id: new.timeline_id,
                ancestor: None,
                pg_version: new.pg_version,
                initdb_lsn: summary.start_lsn,
            };
            tenants.finish_creation(&tenant, dir, store, None, metadata)
        })
        .await
    }

    async fn branch(
        self: &Arc<Self>,
        tenant: &Arc<Tenant>,
        new: NewTimeline,
        ancestor_id: TimelineId,
    ) -> Result<Arc<Timeline>, TenantError> {
        let ancestor = tenant.timeline(ancestor_id)?;
        let lsn = branch_point(&ancestor, new.ancestor_start_lsn).await?;
        let (tenants, tenant) = (Arc::clone(self), Arc::clone(tenant));
        run_blocking(move || {
            // What the branch needs of its ancestor survives a crash of this server from now on.
            if ancestor.disk_consistent_lsn() < lsn {
                ancestor.flush()?;
            }
            let dir = tenants.fresh_timeline_dir(tenant.id, new.timeline_id)?;
            let store_dir = tenants.layout.store_dir(tenant.id, new.timeline_id);
            let parent = layer_store::Ancestor { store: ancestor.store().clone(), lsn };
            let store = Store::create(&store_dir, lsn, Some(parent), &tenants.shared)?;
            let metadata = TimelineMetadata {
                timeline_id: new.timeline_id,
                ancestor: Some(Ancestor { timeline_id: ancestor_id, lsn }),
                pg_version: ancestor.metadata.pg_version,
                initdb_lsn: ancestor.metadata.initdb_lsn,
            };
            tenants.finish_creation(&tenant, dir, store, Some(ancestor), metadata)
        })
        .await
    }

    /// The empty directory of a timeline that does not exist; what an earlier attempt left is removed.
    fn fresh_timeline_dir(
        &self,
        tenant: TenantId,
        timeline: TimelineId,
    ) -> Result<PathBuf, TenantError> {
        let dir = self.layout.timeline_dir(tenant, timeline);
        if dir.exists() {
            fs::remove_dir_all(&dir).doing("remove", &dir)?;
        }
        create_dir_durably(&dir)?;
        Ok(dir)
    }

    /// Makes what was prepared in `dir` a timeline.
    fn finish_creation(
        self: &Arc<Self>,
        tenant: &Tenant,
        dir: PathBuf,
        store: Store,
        ancestor: Option<Arc<Timeline>>,
        metadata: TimelineMetadata,
    ) -> Result<Arc<Timeline>, TenantError> {
        sync_dir(&dir)?;
        metadata.save(&dir)?;
        let redo: Arc<dyn WalRedoManager> = tenant.redo.clone();
        let parts = Parts { tenant_id: tenant.id, metadata, dir, store, ancestor, redo };
        let timeline = Timeline::new(parts, ReadLimits::from(&*self.config));
        timeline.add_up_sizes();
        self.start_receiver(&timeline)?;
        Ok(timeline)
    }

    fn install(&self, version: u32) -> Result<PgInstall, InitdbError> {
        let root = self
            .config
            .pg_install_dirs
            .get(&version.to_string())
            .filter(|_| version == PG_MAJORVERSION)
            .ok_or(InitdbError::NoInstall { version })?;
        Ok(PgInstall::new(root.clone())?)
    }
}

/// Takes the place of a timeline that does not exist.
fn claim(tenant: &Tenant, new: NewTimeline) -> Result<Claim<'_>, TenantError> {
    let timeline_id = new.timeline_id;
    let deleting = tenant.deleting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if *deleting {
        return Err(TenantError::TenantDeleting(tenant.id));
    }
    let mut timelines = tenant.timelines();
    if timelines.contains_key(&timeline_id) {
        return Err(TenantError::TimelineBusy { timeline_id, doing: "creating" });
    }
    // Under the same lock as the deletion of the ancestor looks for branches.
    let ancestor = new.ancestor_timeline_id;
    if let Some(id) = ancestor.filter(|id| !matches!(timelines.get(id), Some(Slot::Active(_)))) {
        return Err(TenantError::TimelineNotFound { tenant_id: tenant.id, timeline_id: id });
    }
    timelines.insert(timeline_id, Slot::Busy { doing: "creating", ancestor });
    Ok(Claim { tenant, timeline_id, done: false })
}

/// How an existing timeline differs from what is asked for.
fn difference(metadata: &TimelineMetadata, new: NewTimeline) -> Option<String> {
    match (metadata.ancestor, new.ancestor_timeline_id) {
        (None, None) if metadata.pg_version != new.pg_version => {
            Some(format!("it has version {}", metadata.pg_version))
        }
        (None, None) => None,
        (Some(ancestor), Some(wanted)) if ancestor.timeline_id == wanted => {
            let same = new
                .ancestor_start_lsn
                .is_none_or(|lsn| xlog::normalize(lsn) == xlog::normalize(ancestor.lsn));
            (!same).then(|| format!("it was branched at {}", ancestor.lsn))
        }
        (Some(ancestor), _) => Some(format!("it is a branch of {}", ancestor.timeline_id)),
        (None, Some(_)) => Some("it is no branch".to_owned()),
    }
}

/// The position to branch at: aligned, within the ancestor's own history, and reached by it.
async fn branch_point(ancestor: &Timeline, wanted: Option<Lsn>) -> Result<Lsn, TenantError> {
    let timeline_id = ancestor.metadata.timeline_id;
    let bad = |lsn, reason: String| TenantError::BadBranchPoint { timeline_id, lsn, reason };
    let Some(lsn) = wanted else { return Ok(ancestor.last_record_lsn()) };
    if !lsn.is_valid() || lsn == Lsn::MAX {
        return Err(bad(lsn, "that is no position".to_owned()));
    }
    let lsn = ancestor.reachable(lsn.align());
    let oldest = ancestor.oldest_lsn();
    if lsn < oldest {
        return Err(bad(lsn, format!("its history begins at {oldest}")));
    }
    if let Some(grandparent) = ancestor.metadata.ancestor.filter(|point| lsn < point.lsn) {
        let reason = format!(
            "it was itself branched off {} at {}; branch that one",
            grandparent.timeline_id, grandparent.lsn
        );
        return Err(bad(lsn, reason));
    }
    // Ingest on the branch needs sizes and pages of the ancestor below this position.
    ancestor
        .wait_lsn(lsn)
        .await
        .map_err(|source| TenantError::BranchPointNotReached { timeline_id, source })?;
    Ok(lsn)
}

/// A directory for temporary things of one creation.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new(tmp_dir: &Path, timeline_id: TimelineId) -> Result<Scratch, TenantError> {
        let path = tmp_dir.join(format!("initdb-{timeline_id}"));
        if path.exists() {
            fs::remove_dir_all(&path).doing("remove", &path)?;
        }
        fs::create_dir(&path).doing("create", &path)?;
        Ok(Scratch { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Left-overs are removed at the next start.
        let _ = fs::remove_dir_all(&self.path);
    }
}
