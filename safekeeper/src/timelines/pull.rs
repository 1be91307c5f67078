//! Bringing a timeline here from a safekeeper that has it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use auth_token::OwnToken;
use pg_types::{Lsn, Term};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use ureq::Agent;
use wal_consensus::membership::MembershipConf;
use wal_consensus::refusal::Refusal;

use super::{Entry, TenantTimelineId, Timelines, TimelinesError};
use crate::copy;
use crate::durable;
use crate::timeline::Timeline;

/// How long a donor may take to say how far it is.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a copy may take in all. Whoever asked for it asks again.
const COPY_TIMEOUT: Duration = Duration::from_secs(600);

/// A request to have a timeline here.
#[derive(Debug, Clone)]
pub struct PullTimeline {
    /// Which one.
    pub id: TenantTimelineId,
    /// HTTP addresses, `host:port`, of safekeepers that may have it.
    pub http_hosts: Vec<String>,
    /// The membership it is in here; must name this safekeeper.
    pub mconf: MembershipConf,
    /// What is shown to them.
    pub own_token: OwnToken,
}

/// What is read of a donor's timeline status.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct DonorStatus {
    mconf: MembershipConf,
    acceptor_state: DonorAcceptor,
    flush_lsn: Lsn,
    commit_lsn: Lsn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
struct DonorAcceptor {
    term: Term,
    /// Term of the last WAL.
    epoch: Term,
}

impl DonorStatus {
    /// The newest log first of all.
    fn rank(&self) -> (Term, Lsn, Term, Lsn) {
        (self.acceptor_state.epoch, self.flush_lsn, self.acceptor_state.term, self.commit_lsn)
    }
}

impl Timelines {
    /// Copies a timeline from the best of the donors, with the given membership. On a safekeeper that has the timeline it is
    /// a switch of the membership and nothing else. Says from whom it was copied.
    ///
    /// # Errors
    /// When a tombstone forbids it, no donor has it, or a donor is in a newer configuration than the requested one.
    pub async fn pull(
        self: &Arc<Timelines>,
        request: PullTimeline,
    ) -> Result<(Arc<Timeline>, Option<String>), TimelinesError> {
        let id = request.id;
        let mconf = &request.mconf;
        mconf.validate()?;
        if !mconf.contains(self.node_id) {
            let (node_id, generation) = (self.node_id, mconf.generation);
            return Err(Refusal::NotMember { node_id, generation }.into());
        }
        let _alone = self.change(id).await;
        match self.get(id) {
            Ok(timeline) => {
                let out = timeline.with_core(|core| core.switch_membership(mconf)).await??;
                timeline.dispatch(out);
                return Ok((timeline, None));
            }
            Err(TimelinesError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
        self.check_tombstone(id, mconf.generation)?;
        let timelines = Arc::clone(self);
        let work = move || timelines.copy_from_best(&request);
        let (timeline, donor) = tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| TimelinesError::Pull(format!("it was aborted: {error}")))??;
        let timeline = Arc::new(timeline);
        self.insert(id, Entry::Loaded(Arc::clone(&timeline)));
        tracing::info!(ttid = %id, donor, "timeline copied");
        Ok((timeline, Some(donor)))
    }

    /// The directory appears whole or not at all.
    fn copy_from_best(&self, request: &PullTimeline) -> Result<(Timeline, String), TimelinesError> {
        let id = request.id;
        let (donor, status) = best_donor(request)?;
        let dir = self.dir(id);
        let under_construction = durable::temporary_beside(&dir);
        durable::remove_dir_all(&under_construction)?;
        durable::create_dir_all(&under_construction)?;
        let pulled =
            |error: &dyn std::fmt::Display| TimelinesError::Pull(format!("from {donor}: {error}"));
        let snapshot = format!("{}/snapshot", path(id));
        let stream = get(&donor, &snapshot, &request.own_token, COPY_TIMEOUT)
            .map_err(|error| pulled(&error))?;
        copy::receive(stream, &under_construction, |control| {
            control.check_identity(id.tenant_id, id.timeline_id)?;
            control.acceptor_state.mconf = request.mconf.clone();
            Ok(())
        })
        .map_err(|error| pulled(&error))?;
        let flush_lsn = self.check_copy(id, &under_construction)?;
        if flush_lsn < status.commit_lsn {
            let behind = format!("its log ends at {flush_lsn}, below {}", status.commit_lsn);
            return Err(pulled(&behind));
        }
        durable::rename(&under_construction, &dir)?;
        Ok((self.open(id)?, donor))
    }

    /// Loads the copy as a start would; the end of its log.
    fn check_copy(&self, id: TenantTimelineId, dir: &Path) -> Result<Lsn, TimelinesError> {
        let cancel = CancellationToken::new();
        let timeline = Timeline::load(dir, self.node_id, id, &self.metrics, cancel)?;
        Ok(timeline.progress().ladder.flush_lsn)
    }
}

fn best_donor(request: &PullTimeline) -> Result<(String, DonorStatus), TimelinesError> {
    let mut failures = Vec::new();
    let mut best: Option<(String, DonorStatus)> = None;
    for host in &request.http_hosts {
        match ask(host, request) {
            Ok(status) if request.mconf.generation < status.mconf.generation => {
                let (requested, current) = (request.mconf.clone(), status.mconf);
                let (requested, current) = (Box::new(requested), Box::new(current));
                return Err(Refusal::ConfOlder { requested, current }.into());
            }
            Ok(status) => {
                if best.as_ref().is_none_or(|(_, known)| known.rank() < status.rank()) {
                    best = Some((host.clone(), status));
                }
            }
            Err(error) => failures.push(format!("{host}: {error}")),
        }
    }
    best.ok_or_else(|| TimelinesError::Pull(format!("no donor has it ({})", failures.join("; "))))
}

fn ask(host: &str, request: &PullTimeline) -> io::Result<DonorStatus> {
    let answer = get(host, &path(request.id), &request.own_token, ASK_TIMEOUT)?;
    serde_json::from_reader(answer).map_err(io::Error::from)
}

fn path(id: TenantTimelineId) -> String {
    format!("/v1/tenant/{}/timeline/{}", id.tenant_id, id.timeline_id)
}

/// The body of an answer with a good status.
fn get(
    host: &str,
    path: &str,
    own_token: &OwnToken,
    timeout: Duration,
) -> io::Result<impl io::Read + use<>> {
    let config = Agent::config_builder().timeout_global(Some(timeout)).build();
    let host = host.strip_prefix("http://").unwrap_or(host).trim_end_matches('/');
    let mut request = Agent::new_with_config(config).get(format!("http://{host}{path}"));
    if let Some(token) = own_token.read().map_err(io::Error::other)? {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    Ok(request.call().map_err(ureq::Error::into_io)?.into_body().into_reader())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_log_is_the_best_and_a_longer_old_one_is_not() {
        let status = |epoch, flush, term| DonorStatus {
            mconf: MembershipConf::default(),
            acceptor_state: DonorAcceptor { term: Term(term), epoch: Term(epoch) },
            flush_lsn: Lsn(flush),
            commit_lsn: Lsn(0),
        };
        assert!(status(2, 50, 2).rank() > status(1, 90, 9).rank());
        assert!(status(2, 60, 2).rank() > status(2, 50, 9).rank());
    }
}
