//! How far the safekeepers of a branch are, as a majority of them has it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pg_types::{Lsn, NodeId};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use wal_consensus::membership::{Member, MembershipConf};
use wal_consensus::quorum::majority;

use crate::endpoint;
use crate::environment::{Branch, Environment, SafekeeperNode};
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
pub fn settle(environment: &Environment, branch: &Branch) -> Result<Lsn> {
    let nodes = environment.safekeepers_of(branch);
    let config = walproposer::Config {
        tenant_id: branch.tenant_id,
        timeline_id: branch.timeline_id,
        safekeepers: nodes.iter().map(SafekeeperNode::address).collect(),
        mconf: branch.membership.mconf.clone(),
        auth_token: environment.own_token().map(str::to_owned),
        protocol_version: Default::default(),
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
    /// `None` when less than a majority has answered; in a joint configuration, of either set.
    fn of(answers: &BTreeMap<NodeId, Progress>, mconf: &MembershipConf) -> Option<Quorum> {
        let of_set = |set: &[Member]| -> Option<Quorum> {
            let answers: Vec<&Progress> =
                set.iter().filter_map(|member| answers.get(&member.id)).collect();
            let mut flushed: Vec<Lsn> = answers.iter().map(|answer| answer.flush_lsn).collect();
            flushed.sort_unstable_by(|a, b| b.cmp(a));
            let committed = answers.iter().map(|answer| answer.commit_lsn).max()?;
            // Those that did not answer count as having nothing.
            let flushed = *flushed.get(majority(set.len()).checked_sub(1)?)?;
            Some(Quorum { committed, flushed })
        };
        let old = of_set(&mconf.members)?;
        let Some(new) = &mconf.new_members else { return Some(old) };
        let new = of_set(new)?;
        let committed = old.committed.max(new.committed);
        Some(Quorum { committed, flushed: old.flushed.min(new.flushed) })
    }
}

fn ask_quorum(environment: &Environment, branch: &Branch) -> Result<Quorum> {
    let (mut answers, mut failure) = (BTreeMap::new(), None);
    for node in environment.safekeepers_of(branch) {
        let answer = safekeeper_api(environment, &node).get(&branch.path());
        match answer.and_then(|answer| answer.parse("ask a safekeeper for the newest position")) {
            Ok(progress) => drop(answers.insert(node.id, progress)),
            Err(error) => failure = Some(error),
        }
    }
    Quorum::of(&answers, &branch.membership.mconf).ok_or_else(|| {
        failure.unwrap_or_else(|| CliError::failed("the environment has no safekeeper"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::new_safekeeper;
    use pg_types::Generation;

    #[test]
    fn a_majority_says_what_is_on_disk() {
        let progress = |flush, commit| Progress { flush_lsn: Lsn(flush), commit_lsn: Lsn(commit) };
        let quorum =
            |committed, flushed| Some(Quorum { committed: Lsn(committed), flushed: Lsn(flushed) });
        let all = [progress(30, 10), progress(50, 20), progress(40, 15), progress(35, 5)];
        let of = |count: u64, members: u64, new: Option<std::ops::RangeInclusive<u64>>| {
            let answers = (1..=count).map(NodeId).zip(all).collect();
            let set = |ids: std::ops::RangeInclusive<u64>| {
                ids.map(|id| new_safekeeper(NodeId(id), 1, 1).member()).collect()
            };
            let (members, new_members) = (set(1..=members), new.map(set));
            Quorum::of(
                &answers,
                &MembershipConf { generation: Generation(1), members, new_members },
            )
        };
        assert_eq!(of(3, 3, None), quorum(20, 40));
        assert_eq!(of(2, 3, None), quorum(20, 30));
        assert_eq!(of(1, 3, None), None);
        assert_eq!(of(1, 1, None), quorum(10, 30));
        assert_eq!(of(0, 0, None), None);
        // While the members change, both majorities count.
        assert_eq!(of(4, 3, Some(2..=4)), quorum(20, 40));
        assert_eq!(of(4, 1, Some(2..=4)), quorum(20, 30));
        assert_eq!(of(2, 1, Some(2..=4)), None);
    }
}
