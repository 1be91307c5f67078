//! Leaving a membership: the timeline goes from this disk, and from nowhere else (L242).

use std::sync::Arc;

use wal_consensus::membership::MembershipConf;
use wal_consensus::refusal::Refusal;

use super::{Entry, TenantTimelineId, Timelines, TimelinesError, Tombstone};
use crate::control_file::ControlFile;

impl Timelines {
    /// Removes a timeline whose members are those of `mconf`, without this safekeeper; says whether there was one.
    /// Repeating it is fine.
    ///
    /// # Errors
    /// [`TimelinesError::StillMember`] when `mconf` names this safekeeper, [`Refusal::ConfOlder`] when the timeline has
    /// a newer configuration.
    pub async fn exclude(
        self: &Arc<Timelines>,
        id: TenantTimelineId,
        mconf: MembershipConf,
    ) -> Result<bool, TimelinesError> {
        mconf.validate()?;
        if mconf.contains(self.node_id) {
            return Err(TimelinesError::StillMember { node_id: self.node_id, mconf });
        }
        let _alone = self.change(id).await;
        let entry = self.entries().get(&id).cloned();
        if let Some(Entry::Loaded(timeline)) = &entry {
            if let Ok(state) = timeline.state().await {
                refuse_newer(&mconf, &state.mconf)?;
            }
            // From here on nobody can switch it.
            timeline.stop().await;
            if let Err(refusal) = self.refuse_newer_on_disk(id, &mconf) {
                self.load_one(id)?;
                return Err(refusal);
            }
        }
        let generation = mconf.generation;
        if self.tombstone(id)?.is_none_or(|tombstone| tombstone.allows(generation)) {
            self.bury(id, Tombstone::Excluded { generation })?;
        }
        let existed = self.remove(id, entry).await?;
        tracing::info!(ttid = %id, %mconf, "timeline has left this safekeeper");
        Ok(existed)
    }

    /// A control file that cannot be read keeps nobody from leaving.
    fn refuse_newer_on_disk(
        &self,
        id: TenantTimelineId,
        mconf: &MembershipConf,
    ) -> Result<(), TimelinesError> {
        match ControlFile::load(&self.dir(id), id.tenant_id, id.timeline_id) {
            Ok(control) => refuse_newer(mconf, &control.acceptor_state.mconf),
            Err(error) => {
                tracing::warn!(ttid = %id, "leaving without a control file: {error}");
                Ok(())
            }
        }
    }
}

fn refuse_newer(
    requested: &MembershipConf,
    current: &MembershipConf,
) -> Result<(), TimelinesError> {
    if requested.generation < current.generation {
        let (requested, current) = (Box::new(requested.clone()), Box::new(current.clone()));
        return Err(Refusal::ConfOlder { requested, current }.into());
    }
    Ok(())
}
