//! Bodies of requests and answers.

use std::io::Read;

use pg_types::{Lsn, PG_MAJORVERSION, TenantId, TimelineId};
use serde::{Deserialize, Serialize};

use crate::tenants::{NewTimeline, Slot, Tenant, TenantError};
use crate::timeline::Timeline;
use crate::timeline::status::ReceiverState;

/// Answer of `/v1/status`.
#[derive(Debug, Serialize)]
pub struct ServerStatus {
    /// Always "running": a server that does not run does not answer.
    pub state: &'static str,
    /// Version of the program.
    pub version: &'static str,
}

/// Body of a tenant's creation.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateTenant {
    /// Its id; chosen at random when left out.
    pub new_tenant_id: Option<TenantId>,
}

/// Body of a timeline's creation.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateTimeline {
    /// Its id.
    pub new_timeline_id: TimelineId,
    /// The timeline to branch; a new cluster is made when left out.
    pub ancestor_timeline_id: Option<TimelineId>,
    /// Where to branch; the ancestor's newest position when left out.
    pub ancestor_start_lsn: Option<Lsn>,
    /// Major version of a new cluster; 17 when left out.
    pub pg_version: Option<u32>,
}

impl From<CreateTimeline> for NewTimeline {
    fn from(body: CreateTimeline) -> NewTimeline {
        NewTimeline {
            timeline_id: body.new_timeline_id,
            ancestor_timeline_id: body.ancestor_timeline_id,
            ancestor_start_lsn: body.ancestor_start_lsn,
            pg_version: body.pg_version.unwrap_or(PG_MAJORVERSION),
        }
    }
}

/// A tenant.
#[derive(Debug, Serialize)]
pub struct TenantInfo {
    /// Its id.
    pub id: TenantId,
    /// Its timelines.
    pub timelines: Vec<TimelineId>,
}

impl TenantInfo {
    /// Describes a tenant.
    pub fn of(tenant: &Tenant) -> TenantInfo {
        let timelines = tenant.list().into_iter().map(|(id, _)| id).collect();
        TenantInfo { id: tenant.id, timelines }
    }
}

/// A timeline, in any state.
#[derive(Debug, Serialize)]
pub struct TimelineInfo {
    /// Tenant.
    pub tenant_id: TenantId,
    /// Timeline.
    pub timeline_id: TimelineId,
    /// "Active", "Broken", or what is going on with it.
    pub state: &'static str,
    /// Why it is broken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broken_reason: Option<String>,
    /// What it was branched from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ancestor_timeline_id: Option<TimelineId>,
    /// What only an active timeline has.
    #[serde(flatten)]
    pub active: Option<ActiveInfo>,
}

/// Positions, sizes and the WAL receiver of an active timeline.
#[derive(Debug, Serialize)]
pub struct ActiveInfo {
    /// Branch point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ancestor_lsn: Option<Lsn>,
    /// Where the history of this branch and its ancestors begins.
    pub initdb_lsn: Lsn,
    /// WAL ingested up to here.
    pub last_record_lsn: Lsn,
    /// Start of the last record; none at a position whose record is not known, such as a branch point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev_record_lsn: Option<Lsn>,
    /// WAL received up to here.
    pub last_received_lsn: Lsn,
    /// WAL in layer files up to here.
    pub disk_consistent_lsn: Lsn,
    /// WAL not needed from safekeepers up to here.
    pub remote_consistent_lsn: Lsn,
    /// The same: there is no generation that could be found invalid.
    pub remote_consistent_lsn_visible: Lsn,
    /// Oldest readable position: the lower one of applied and planned cutoff (L210).
    pub gc_cutoff_lsn: Lsn,
    /// Position of the last garbage collection (L211).
    pub applied_gc_cutoff_lsn: Lsn,
    /// The older name of that (L212).
    pub latest_gc_cutoff_lsn: Lsn,
    /// Bytes of all relations, as of a moment ago.
    pub current_logical_size: u64,
    /// Bytes of the layer files.
    pub current_physical_size: u64,
    /// Bytes in memory that no layer file has yet.
    pub memtable_size: u64,
    /// Number of layer files.
    pub layer_count: usize,
    /// Major version of PostgreSQL.
    pub pg_version: u32,
    /// What the WAL receiver does.
    pub walreceiver: ReceiverState,
    /// Where WAL comes from.
    pub wal_source: Vec<String>,
}

impl TimelineInfo {
    /// Describes a timeline in any state.
    pub fn of(tenant_id: TenantId, timeline_id: TimelineId, slot: &Slot) -> TimelineInfo {
        let (state, broken_reason) = match slot {
            Slot::Active(timeline) => return TimelineInfo::active(timeline),
            Slot::Broken { reason, .. } => ("Broken", Some(reason.clone())),
            Slot::Busy { doing, .. } => (*doing, None),
        };
        let ancestor_timeline_id = slot.ancestor();
        TimelineInfo {
            tenant_id,
            timeline_id,
            state,
            broken_reason,
            ancestor_timeline_id,
            active: None,
        }
    }

    /// Describes a timeline that serves.
    pub fn active(timeline: &Timeline) -> TimelineInfo {
        let metadata = &timeline.metadata;
        TimelineInfo {
            tenant_id: timeline.tenant_id,
            timeline_id: metadata.timeline_id,
            state: "Active",
            broken_reason: None,
            ancestor_timeline_id: metadata.ancestor.map(|point| point.timeline_id),
            active: Some(active_info(timeline)),
        }
    }
}

fn active_info(timeline: &Timeline) -> ActiveInfo {
    let metadata = &timeline.metadata;
    let layers = timeline.store().layers();
    let position = timeline.store().position();
    let remote_consistent_lsn = timeline.remote_consistent_lsn();
    let oldest = timeline.oldest_lsn();
    ActiveInfo {
        ancestor_lsn: metadata.ancestor.map(|point| point.lsn),
        initdb_lsn: metadata.initdb_lsn,
        last_record_lsn: position.last_record_lsn,
        prev_record_lsn: Some(position.prev_record_lsn).filter(|lsn| lsn.is_valid()),
        last_received_lsn: timeline.receiver().received_lsn().max(position.last_record_lsn),
        disk_consistent_lsn: timeline.disk_consistent_lsn(),
        remote_consistent_lsn,
        remote_consistent_lsn_visible: remote_consistent_lsn,
        gc_cutoff_lsn: oldest,
        applied_gc_cutoff_lsn: oldest,
        latest_gc_cutoff_lsn: oldest,
        current_logical_size: timeline.metrics().logical_size(),
        current_physical_size: layers.iter().map(|layer| layer.bytes).sum(),
        memtable_size: timeline.store().memtable_bytes(),
        layer_count: layers.len(),
        pg_version: metadata.pg_version,
        walreceiver: timeline.receiver().state(),
        wal_source: timeline.receiver().source().safekeepers,
    }
}

/// An id that nobody else has chosen.
pub(super) fn random_tenant_id() -> Result<TenantId, TenantError> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| TenantError::Internal(format!("no random numbers: {error}")))?;
    Ok(TenantId(bytes))
}
