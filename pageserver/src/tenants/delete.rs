//! Deleting tenants and timelines: stop, decide by one rename, remove.

use std::sync::{Arc, PoisonError};

use pg_types::{TenantId, TimelineId};

use super::layout::{mark_deleted, remove_marked};
use super::{Slot, Tenant, TenantError, Tenants, run_blocking};
use crate::timeline::Timeline;

impl Tenants {
    /// Deletes a timeline that has no branches; one that is broken too.
    pub async fn delete_timeline(
        self: &Arc<Self>,
        tenant_id: TenantId,
        timeline_id: TimelineId,
    ) -> Result<(), TenantError> {
        let tenant = self.tenant(tenant_id)?;
        let slot = claim_for_deletion(&tenant, timeline_id)?;
        let tenants = Arc::clone(self);
        // Its own task: once begun, the deletion goes on without its client.
        let deletion = tokio::spawn(async move {
            if let Slot::Active(timeline) = &slot {
                stop_and_wait(timeline).await;
            }
            let dir = tenants.layout.timeline_dir(tenant_id, timeline_id);
            let marked = run_blocking(move || Ok(mark_deleted(&dir)?)).await;
            match marked {
                Ok(marked) => {
                    tenant.timelines().remove(&timeline_id);
                    drop(slot);
                    run_blocking(move || Ok(remove_marked(&marked)?)).await
                }
                Err(error) => {
                    // It was stopped and cannot simply serve again; it is still on disk.
                    let reason = format!("its deletion failed: {error}");
                    let broken = Slot::Broken { reason, ancestor: slot.ancestor() };
                    tenant.timelines().insert(timeline_id, broken);
                    Err(error)
                }
            }
        });
        deletion.await.unwrap_or_else(|error| Err(TenantError::Internal(error.to_string())))
    }

    /// Deletes a tenant with all its timelines.
    pub async fn delete_tenant(self: &Arc<Self>, id: TenantId) -> Result<(), TenantError> {
        let tenant = self.tenant(id)?;
        {
            let mut deleting = tenant.deleting.lock().unwrap_or_else(PoisonError::into_inner);
            let busy = tenant.timelines().iter().find_map(|(id, slot)| match slot {
                Slot::Busy { doing, .. } => Some((*id, *doing)),
                _ => None,
            });
            if let Some((timeline_id, doing)) = busy {
                return Err(TenantError::TimelineBusy { timeline_id, doing });
            }
            if std::mem::replace(&mut *deleting, true) {
                return Err(TenantError::TenantDeleting(id));
            }
        }
        let tenants = Arc::clone(self);
        let deletion = tokio::spawn(async move {
            for timeline in tenant.active() {
                stop_and_wait(&timeline).await;
            }
            let dir = tenants.layout.tenant_dir(id);
            let marked = run_blocking(move || Ok(mark_deleted(&dir)?)).await?;
            tenants.lock().remove(&id);
            tenant.timelines().clear();
            run_blocking(move || Ok(remove_marked(&marked)?)).await
        });
        deletion.await.unwrap_or_else(|error| Err(TenantError::Internal(error.to_string())))
    }
}

/// Takes a timeline out of service for its deletion; refused while branches need it.
fn claim_for_deletion(tenant: &Tenant, timeline_id: TimelineId) -> Result<Slot, TenantError> {
    let mut timelines = tenant.timelines();
    let children: Vec<TimelineId> = timelines
        .iter()
        .filter(|(_, slot)| slot.ancestor() == Some(timeline_id))
        .map(|(id, _)| *id)
        .collect();
    if !children.is_empty() {
        return Err(TenantError::HasChildren { timeline_id, children });
    }
    match timelines.get(&timeline_id) {
        None => Err(TenantError::TimelineNotFound { tenant_id: tenant.id, timeline_id }),
        Some(Slot::Busy { doing, .. }) => Err(TenantError::TimelineBusy { timeline_id, doing }),
        Some(slot @ (Slot::Active(_) | Slot::Broken { .. })) => {
            let slot = slot.clone();
            let busy = Slot::Busy { doing: "deleting", ancestor: slot.ancestor() };
            timelines.insert(timeline_id, busy);
            Ok(slot)
        }
    }
}

/// Stops everything that runs for a timeline.
async fn stop_and_wait(timeline: &Arc<Timeline>) {
    timeline.stop();
    timeline.receiver().wait_stopped().await;
}
