//! How far the safekeepers of a branch are, as a majority of them has it.

use std::time::{Duration, Instant};

use pg_types::Lsn;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::endpoint;
use crate::environment::{Branch, Environment};
use crate::error::{CliError, Result};
use crate::service_main::{failed, single_threaded};
use crate::services::safekeeper_api;

/// How long safekeepers may take to hear of a commit: a walproposer tells them within milliseconds, and again each second; one
/// that was killed is started again, and campaigns first.
const COMMIT_PATIENCE: Duration = Duration::from_secs(10);
/// The same without a compute.
const SYNC_PATIENCE: Duration = Duration::from_secs(30);
const COMMIT_POLL: Duration = Duration::from_millis(2);

/// The newest position that is committed on the safekeepers: everything a client was told is durable lies
/// below it. The page server waits until it has ingested up to there.
///
/// A minority of the safekeepers may be down. They learn a moment after the client that a commit is one. If a compute runs,
/// that is waited for; if none does (it was killed), an election settles it, as before the start of the next one.
pub fn committed_lsn(environment: &Environment, branch: &Branch) -> Result<Lsn> {
    let give_up = Instant::now() + COMMIT_PATIENCE;
    let mut quorum = ask_quorum(environment, branch)?;
    // What a majority had when this began: under load there is always some WAL more.
    let wanted = quorum.flushed;
    loop {
        if quorum.committed >= wanted {
            return Ok(quorum.committed);
        }
        if !endpoint::any_runs_on(environment, branch.timeline_id)? {
            return settle(environment, branch);
        }
        if Instant::now() > give_up {
            return Err(CliError::failed(format!(
                "the compute of branch \"{}\" does not tell the safekeepers what is committed",
                branch.name
            )));
        }
        std::thread::sleep(COMMIT_POLL);
        quorum = ask_quorum(environment, branch)?;
    }
}

/// Has the safekeepers agree on the end of the branch's WAL. It would fence a compute that runs.
fn settle(environment: &Environment, branch: &Branch) -> Result<Lsn> {
    let nodes = &environment.description.safekeepers;
    let config = walproposer::Config {
        tenant_id: branch.tenant_id,
        timeline_id: branch.timeline_id,
        safekeepers: nodes.iter().map(|node| format!("127.0.0.1:{}", node.pg_port)).collect(),
        mconf: Default::default(),
        auth_token: None,
        compute: None,
    };
    let sync = async {
        let shutdown = CancellationToken::new();
        tokio::time::timeout(SYNC_PATIENCE, walproposer::sync(&config, shutdown)).await
    };
    single_threaded()?
        .block_on(sync)
        .map_err(|_| CliError::failed("a majority of the safekeepers cannot be reached"))?
        .map_err(failed)
}

/// How far one safekeeper is.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Progress {
    flush_lsn: Lsn,
    commit_lsn: Lsn,
}

/// How far a majority is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Quorum {
    /// Known to be committed.
    committed: Lsn,
    /// On the disks of a majority.
    flushed: Lsn,
}

impl Quorum {
    /// `None` when less than a majority of `count` safekeepers has answered.
    fn of(answers: &[Progress], count: usize) -> Option<Quorum> {
        let mut flushed: Vec<Lsn> = answers.iter().map(|answer| answer.flush_lsn).collect();
        flushed.sort_unstable_by(|a, b| b.cmp(a));
        let committed = answers.iter().map(|answer| answer.commit_lsn).max()?;
        // Those that did not answer count as having nothing.
        Some(Quorum { committed, flushed: *flushed.get(count / 2)? })
    }
}

fn ask_quorum(environment: &Environment, branch: &Branch) -> Result<Quorum> {
    let path = format!("/v1/tenant/{}/timeline/{}", branch.tenant_id, branch.timeline_id);
    let nodes = &environment.description.safekeepers;
    let (mut answers, mut failure) = (Vec::new(), None);
    for node in nodes {
        let answer = safekeeper_api(node).get(&path);
        match answer.and_then(|answer| answer.parse("ask a safekeeper for the newest position")) {
            Ok(progress) => answers.push(progress),
            Err(error) => failure = Some(error),
        }
    }
    Quorum::of(&answers, nodes.len()).ok_or_else(|| {
        failure.unwrap_or_else(|| CliError::failed("the environment has no safekeeper"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_says_what_is_on_disk() {
        let progress = |flush, commit| Progress { flush_lsn: Lsn(flush), commit_lsn: Lsn(commit) };
        let quorum =
            |committed, flushed| Some(Quorum { committed: Lsn(committed), flushed: Lsn(flushed) });
        let answers = [progress(30, 10), progress(50, 20), progress(40, 15)];
        assert_eq!(Quorum::of(&answers, 3), quorum(20, 40));
        assert_eq!(Quorum::of(&answers[..2], 3), quorum(20, 30));
        assert_eq!(Quorum::of(&answers[..1], 3), None);
        assert_eq!(Quorum::of(&answers[..1], 1), quorum(10, 30));
        assert_eq!(Quorum::of(&[], 0), None);
    }
}
