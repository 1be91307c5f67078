//! Bodies of requests and answers.

use auth_token::OwnToken;
use pg_types::{Lsn, PG_MAJORVERSION, TenantId, Term, TimelineId};
use serde::{Deserialize, Serialize};
use wal_consensus::membership::MembershipConf;
use wal_consensus::term_history::TermHistory;

use crate::timeline::{TenantTimelineId, Timeline, TimelineError};
use crate::timelines::{CreateTimeline, PullTimeline};

/// Body of a creation.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateRequest {
    tenant_id: TenantId,
    timeline_id: TimelineId,
    #[serde(default)]
    mconf: MembershipConf,
    /// `PG_VERSION_NUM`, or the major version alone.
    pg_version: u32,
    #[serde(default)]
    system_id: Option<u64>,
    #[serde(default)]
    wal_seg_size: Option<u32>,
    start_lsn: Lsn,
    #[serde(default)]
    commit_lsn: Option<Lsn>,
}

const DEFAULT_SEGMENT_SIZE: u32 = 16 * 1024 * 1024;
const _: () = assert!(DEFAULT_SEGMENT_SIZE as u64 == pg_types::xlog::WAL_SEGMENT_SIZE);

impl From<CreateRequest> for CreateTimeline {
    fn from(request: CreateRequest) -> CreateTimeline {
        let major_alone = request.pg_version == PG_MAJORVERSION;
        CreateTimeline {
            id: TenantTimelineId { tenant_id: request.tenant_id, timeline_id: request.timeline_id },
            mconf: request.mconf,
            pg_version: if major_alone { PG_MAJORVERSION * 10_000 } else { request.pg_version },
            system_id: request.system_id.unwrap_or(0),
            wal_seg_size: request.wal_seg_size.unwrap_or(DEFAULT_SEGMENT_SIZE),
            start_lsn: request.start_lsn,
            commit_lsn: request.commit_lsn.unwrap_or(request.start_lsn),
        }
    }
}

/// WAL to make a digest of: from the first position up to the second.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DigestRange {
    pub(super) from_lsn: Lsn,
    pub(super) until_lsn: Lsn,
}

/// Everything about a timeline.
#[derive(Debug, Serialize)]
pub(super) struct TimelineStatus {
    tenant_id: TenantId,
    timeline_id: TimelineId,
    mconf: MembershipConf,
    acceptor_state: AcceptorStateStatus,
    pg_info: PgInfo,
    flush_lsn: Lsn,
    write_lsn: Lsn,
    timeline_start_lsn: Lsn,
    local_start_lsn: Lsn,
    commit_lsn: Lsn,
    peer_horizon_lsn: Lsn,
    remote_consistent_lsn: Lsn,
    backup_lsn: Lsn,
    walsenders: Vec<WalSenderStatus>,
    walreceivers: usize,
}

#[derive(Debug, Serialize)]
struct AcceptorStateStatus {
    term: Term,
    /// Term of the last WAL, under its old name.
    epoch: Term,
    term_history: TermHistory,
}

#[derive(Debug, Serialize)]
struct PgInfo {
    pg_version: u32,
    system_id: u64,
    wal_seg_size: u32,
}

#[derive(Debug, Serialize)]
struct WalSenderStatus {
    application_name: String,
    sent_lsn: Lsn,
    #[serde(skip_serializing_if = "Option::is_none")]
    pageserver: Option<PageserverStatus>,
}

#[derive(Debug, Serialize)]
struct PageserverStatus {
    shard_number: u32,
    last_received_lsn: Lsn,
    disk_consistent_lsn: Lsn,
    remote_consistent_lsn: Lsn,
}

impl TimelineStatus {
    pub(super) async fn of(timeline: &Timeline) -> Result<TimelineStatus, TimelineError> {
        let state = timeline.state().await?;
        let progress = timeline.progress();
        let ladder = progress.ladder;
        let TenantTimelineId { tenant_id, timeline_id } = timeline.id();
        let walsenders = timeline.feedback().readers().into_iter().map(|reader| WalSenderStatus {
            application_name: reader.application_name,
            sent_lsn: reader.sent_lsn,
            pageserver: reader.pageserver.map(|report| PageserverStatus {
                shard_number: report.shard_number,
                last_received_lsn: report.last_received_lsn,
                disk_consistent_lsn: report.disk_consistent_lsn,
                remote_consistent_lsn: report.remote_consistent_lsn,
            }),
        });
        Ok(TimelineStatus {
            tenant_id,
            timeline_id,
            mconf: state.mconf,
            acceptor_state: AcceptorStateStatus {
                term: state.term,
                epoch: progress.last_log_term,
                term_history: state.term_history,
            },
            pg_info: PgInfo {
                pg_version: state.pg_version,
                system_id: state.system_id,
                wal_seg_size: state.wal_seg_size,
            },
            flush_lsn: ladder.flush_lsn,
            write_lsn: ladder.write_lsn,
            timeline_start_lsn: ladder.timeline_start_lsn,
            local_start_lsn: ladder.local_start_lsn,
            commit_lsn: ladder.commit_lsn,
            peer_horizon_lsn: ladder.truncate_lsn,
            remote_consistent_lsn: timeline.feedback().remote_consistent_lsn(),
            backup_lsn: timeline.backup_lsn(),
            walsenders: walsenders.collect(),
            walreceivers: timeline.connected_proposers(),
        })
    }
}

/// Body of a request for a copy.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PullRequest {
    tenant_id: TenantId,
    timeline_id: TimelineId,
    http_hosts: Vec<String>,
    mconf: MembershipConf,
}

impl PullRequest {
    /// Done with this safekeeper's token.
    pub(super) fn with_token(self, own_token: OwnToken) -> PullTimeline {
        let PullRequest { tenant_id, timeline_id, http_hosts, mconf } = self;
        let id = TenantTimelineId { tenant_id, timeline_id };
        PullTimeline { id, http_hosts, mconf, own_token }
    }
}

/// Body of a promise.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TermBumpRequest {
    /// The term; the one after the current one when left out.
    #[serde(default)]
    pub(super) term: Option<Term>,
}

/// Answer to everything about membership: where this safekeeper stands now.
#[derive(Debug, Serialize)]
pub(super) struct MembershipResponse {
    pub(super) previous_conf: MembershipConf,
    pub(super) current_conf: MembershipConf,
    pub(super) previous_term: Term,
    pub(super) term: Term,
    pub(super) last_log_term: Term,
    pub(super) flush_lsn: Lsn,
    /// From whom the timeline was copied, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) safekeeper_host: Option<String>,
}
