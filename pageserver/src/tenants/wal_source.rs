//! Telling a timeline where its WAL comes from (D8), and running its receiver.

use std::sync::Arc;

use pg_types::{TenantId, TimelineId};
use pg_wire::Endpoint;

use super::metadata::{StateFile, WalSource};
use super::{TenantError, Tenants, run_blocking};
use crate::timeline::Timeline;
use crate::walreceiver;

/// Safekeepers of one timeline at most; a quorum has a handful.
const SAFEKEEPERS_MAX: usize = 64;

impl Tenants {
    /// Sets the safekeepers of a timeline, durably, and lets its receiver begin anew with them. An empty list
    /// stops it.
    pub async fn set_wal_source(
        self: &Arc<Self>,
        tenant_id: TenantId,
        timeline_id: TimelineId,
        source: WalSource,
    ) -> Result<(), TenantError> {
        check(&source)?;
        let timeline = self.timeline(tenant_id, timeline_id)?;
        run_blocking(move || {
            source.save(timeline.dir())?;
            timeline.receiver().set_source(source);
            Ok(())
        })
        .await
    }

    /// Starts the receiver of a timeline, with the source that it has on disk.
    pub(super) fn start_receiver(&self, timeline: &Arc<Timeline>) -> Result<(), TenantError> {
        timeline.receiver().set_source(WalSource::load(timeline.dir())?.unwrap_or_default());
        let settings = walreceiver::Settings {
            timeout: self.config.walreceiver_timeout,
            own_token: self.config.own_token(),
        };
        let receiver = walreceiver::run(Arc::clone(timeline), settings);
        self.tasks.spawn_on(receiver, &self.runtime);
        Ok(())
    }
}

fn check(source: &WalSource) -> Result<(), TenantError> {
    if source.safekeepers.len() > SAFEKEEPERS_MAX {
        let reason = format!("{} safekeepers; at most {SAFEKEEPERS_MAX}", source.safekeepers.len());
        return Err(TenantError::BadRequest(reason));
    }
    for address in &source.safekeepers {
        address.parse::<Endpoint>().map_err(TenantError::BadRequest)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        let source = |safekeepers: &[&str]| WalSource {
            safekeepers: safekeepers.iter().map(|address| (*address).to_owned()).collect(),
        };
        check(&source(&[])).unwrap();
        check(&source(&["localhost:5454", "[::1]:5455"])).unwrap();
        let error = check(&source(&["localhost"])).unwrap_err().to_string();
        assert!(error.contains("\"localhost\""), "{error}");
        check(&source(&["h:1"; 65])).unwrap_err();
    }
}
