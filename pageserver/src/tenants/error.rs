//! Why something cannot be done with a tenant or a timeline.

use pg_types::{Lsn, TenantId, TimelineId};

use super::layout::LayoutError;
use super::metadata::MetadataError;
use crate::timeline::WaitError;

/// Failure of an administrative request, or of a look-up.
#[derive(Debug, thiserror::Error)]
pub enum TenantError {
    /// No such tenant.
    #[error("tenant {0} does not exist")]
    TenantNotFound(TenantId),
    /// There is one already.
    #[error("tenant {0} exists already")]
    TenantExists(TenantId),
    /// It is going away.
    #[error("tenant {0} is being deleted")]
    TenantDeleting(TenantId),
    /// No such timeline.
    #[error("timeline {timeline_id} does not exist in tenant {tenant_id}")]
    TimelineNotFound {
        /// Tenant.
        tenant_id: TenantId,
        /// Timeline.
        timeline_id: TimelineId,
    },
    /// There is another one of that id.
    #[error("timeline {timeline_id} exists already with other parameters: {difference}")]
    TimelineExists {
        /// Timeline.
        timeline_id: TimelineId,
        /// What differs.
        difference: String,
    },
    /// Something else is going on with it.
    #[error("timeline {timeline_id} is busy: {doing}")]
    TimelineBusy {
        /// Timeline.
        timeline_id: TimelineId,
        /// "creating" or "deleting".
        doing: &'static str,
    },
    /// It could not be loaded.
    #[error("timeline {timeline_id} is broken: {reason}")]
    TimelineBroken {
        /// Timeline.
        timeline_id: TimelineId,
        /// Why.
        reason: String,
    },
    /// Branches hang on it.
    #[error("timeline {timeline_id} has branches: {}", list(.children))]
    HasChildren {
        /// Timeline.
        timeline_id: TimelineId,
        /// Its branches.
        children: Vec<TimelineId>,
    },
    /// The branch point cannot be used.
    #[error("cannot branch {timeline_id} at {lsn}: {reason}")]
    BadBranchPoint {
        /// The ancestor.
        timeline_id: TimelineId,
        /// The branch point.
        lsn: Lsn,
        /// Why.
        reason: String,
    },
    /// WAL up to the branch point did not come.
    #[error("cannot branch {timeline_id}: {source}")]
    BranchPointNotReached {
        /// The ancestor.
        timeline_id: TimelineId,
        /// Cause.
        source: WaitError,
    },
    /// The server is stopping.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// A request that makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// Files of the data directory.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The small files of a timeline.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// Page versions.
    #[error(transparent)]
    Store(#[from] layer_store::StoreError),
    /// Redo cannot be set up.
    #[error(transparent)]
    Redo(#[from] crate::redo::RedoSetupError),
    /// `initdb` failed.
    #[error(transparent)]
    Initdb(#[from] super::initdb::InitdbError),
    /// The new cluster cannot be read in.
    #[error("could not import the new cluster")]
    Import(#[from] crate::import::ImportError),
    /// A defect of this program.
    #[error("internal error: {0}")]
    Internal(String),
}

fn list(ids: &[TimelineId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
