//! Changing the members of a running timeline: from one set over a joint configuration to another one.
//!
//! [`MembershipChange::requests`] says what is to be asked of whom, as a function of what is stored and what was heard.
//! Requests may be lost, repeated and answered late; the one who asks may die at any point and begin again from what is
//! stored ([`StoredConf`]). Nothing here waits.
//!
//! ```text
//! 1  store the joint configuration            [old | new], generation + 1
//! 2  switch the old members to it             a majority, whose newest log is the *sync point*
//! 3  pull the timeline to the added members
//! 4  raise the term of the new members        a majority, to the highest term of the old majority
//! 5  wait for the logs of the new members     a majority, to the sync point
//! 6  store the final configuration            [new], generation + 2, and who leaves
//! 7  switch the new members to it             a majority
//! 8  exclude those who leave, and bring the timeline to new members that were not reached yet
//! ```
//!
//! After step 2 nothing is committed by the old majority alone. After step 5 the new majority alone has everything that
//! ever was. Step 4 keeps a leader whom only the old members know from sharing its term with one whom only the new
//! members know.

use std::collections::BTreeMap;

use pg_types::{Generation, Lsn, NodeId, Term};
use serde::{Deserialize, Serialize};

use crate::membership::{Member, MembershipConf, MembershipError, same_set};
use crate::mutant::{self, Mutant};
use crate::quorum::majority;

/// What is kept durably for a timeline, replaced only by compare-and-swap on its generation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StoredConf {
    /// The configuration.
    pub mconf: MembershipConf,
    /// Safekeepers of earlier configurations that may still hold the timeline and are to be excluded.
    #[serde(default)]
    pub leavers: Vec<Member>,
    /// Whether all steps for this configuration were done ([`MembershipChange::concluded`]). Without it, who comes after
    /// one that died cannot tell whether the members have heard of the configuration at all.
    #[serde(default)]
    pub finished: bool,
}

/// Where the change is to lead.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ChangeGoal {
    /// These members, and no others.
    Members(Vec<Member>),
    /// Back from a joint configuration to the members before it.
    Abort,
}

/// What a safekeeper says of itself, as answer to every request but exclusion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemberReport {
    /// Generation of its configuration.
    pub generation: Generation,
    /// Its promise.
    pub term: Term,
    /// Term of the last WAL in its log.
    pub last_log_term: Term,
    /// End of its log.
    pub flush_lsn: Lsn,
}

impl MemberReport {
    fn log_position(&self) -> (Term, Lsn) {
        (self.last_log_term, self.flush_lsn)
    }
}

/// One thing to do. All of [`MembershipChange::requests`] may be done at once and in any order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ChangeRequest {
    /// Replace what is stored, if its generation is `expected`; then tell it with [`MembershipChange::stored`].
    Store {
        /// The generation before.
        expected: Generation,
        /// What comes in its place.
        conf: Box<StoredConf>,
    },
    /// Switch a safekeeper to a configuration, or learn that it has it, and how far its log is.
    Switch {
        /// Whom.
        member: Member,
        /// To what.
        mconf: Box<MembershipConf>,
    },
    /// Copy the timeline to a safekeeper, from the best of the donors, together with the configuration. On one that has
    /// the timeline it is a switch.
    Pull {
        /// To whom.
        member: Member,
        /// Members that have it, the newest log first.
        donors: Vec<Member>,
        /// The configuration it begins with.
        mconf: Box<MembershipConf>,
    },
    /// Raise a safekeeper's term ([`AcceptorInput::RaiseTerm`](crate::acceptor::AcceptorInput::RaiseTerm)).
    RaiseTerm {
        /// Whose.
        member: Member,
        /// To what.
        term: Term,
    },
    /// Take the timeline from a safekeeper that is not in the configuration; tell it with
    /// [`MembershipChange::excluded`].
    Exclude {
        /// From whom.
        member: Member,
        /// The configuration that does not name it. A timeline of a higher generation stays.
        mconf: Box<MembershipConf>,
    },
}

/// Why a change cannot be begun.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ChangeError {
    /// What is stored, or what is wanted, is malformed.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The empty configuration has no members to change.
    #[error("the timeline has no membership configuration yet")]
    NoConfiguration,
    /// Another change has not ended.
    #[error("a change of {stored} is under way")]
    UnderWay {
        /// The joint configuration.
        stored: Box<MembershipConf>,
    },
    /// There is nothing to go back from.
    #[error("no change is under way: {stored} is final")]
    NothingToAbort {
        /// The final configuration.
        stored: Box<MembershipConf>,
    },
    /// All generations are used up.
    #[error("there is no membership generation above {0}")]
    GenerationsExhausted(Generation),
}

/// See the module's description.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MembershipChange {
    stored: StoredConf,
    target: Vec<Member>,
    reports: BTreeMap<NodeId, MemberReport>,
    /// What a majority of the old members had when it had the joint configuration; fixed once known.
    sync_point: Option<SyncPoint>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct SyncPoint {
    term: Term,
    log_position: (Term, Lsn),
}

impl MembershipChange {
    /// Begins a change, or takes up the one that is stored.
    ///
    /// # Errors
    /// When the change is impossible from here.
    pub fn new(stored: StoredConf, goal: ChangeGoal) -> Result<MembershipChange, ChangeError> {
        stored.mconf.validate()?;
        let conf = &stored.mconf;
        if conf.members.is_empty() {
            return Err(ChangeError::NoConfiguration);
        }
        let target = match (goal, &conf.new_members) {
            (ChangeGoal::Members(target), None) => target,
            (ChangeGoal::Members(target), Some(new)) if same_set(&target, new) => target,
            (ChangeGoal::Abort, Some(_)) => conf.members.clone(),
            (ChangeGoal::Members(_), Some(_)) => {
                return Err(ChangeError::UnderWay { stored: Box::new(conf.clone()) });
            }
            (ChangeGoal::Abort, None) => {
                return Err(ChangeError::NothingToAbort { stored: Box::new(conf.clone()) });
            }
        };
        let change =
            MembershipChange { stored, target, reports: BTreeMap::new(), sync_point: None };
        change.conf_of_next_generation(change.target.clone(), None)?.validate()?;
        Ok(change)
    }

    /// What is stored now.
    pub fn stored_conf(&self) -> &StoredConf {
        &self.stored
    }

    /// Something was stored: by us, or by somebody else, who then carries on.
    pub fn stored(&mut self, conf: StoredConf) {
        if self.stored != conf {
            self.stored = conf;
            self.reports.clear();
            self.sync_point = None;
        }
    }

    /// A safekeeper has answered.
    pub fn heard(&mut self, node: NodeId, report: MemberReport) {
        self.reports.insert(node, report);
        let conf = &self.stored.mconf;
        if conf.is_joint() && self.sync_point.is_none() {
            let switched: Vec<MemberReport> = self.switched(&conf.members).copied().collect();
            if majority(conf.members.len()) <= switched.len() {
                self.sync_point = Some(SyncPoint {
                    term: switched.iter().map(|report| report.term).max().unwrap_or_default(),
                    log_position: switched
                        .iter()
                        .map(MemberReport::log_position)
                        .max()
                        .unwrap_or_default(),
                });
            }
        }
    }

    /// A safekeeper has given the timeline up.
    pub fn excluded(&mut self, node: NodeId) {
        self.stored.leavers.retain(|member| member.id != node);
    }

    /// What may be stored in place of [`MembershipChange::stored_conf`], without a new generation: those who are known to
    /// have left are forgotten, and if nothing is left to do, it says so.
    pub fn concluded(&self) -> StoredConf {
        StoredConf { finished: self.is_done(), ..self.stored.clone() }
    }

    /// Whether nothing is left to do.
    pub fn is_done(&self) -> bool {
        self.requests().is_empty()
    }

    /// What is to be done now. Empty at the end.
    pub fn requests(&self) -> Vec<ChangeRequest> {
        let conf = &self.stored.mconf;
        match &conf.new_members {
            None if same_set(&conf.members, &self.target) => self.finish(),
            None => {
                let joint = self.conf_of_next_generation(conf.members.clone(), Some(&self.target));
                self.store(joint, self.stored.leavers.clone())
            }
            Some(new) if same_set(new, &self.target) => self.join(new),
            // Back to the old members: they have had every say all the time.
            Some(new) => self.store_final(&conf.members, new),
        }
    }

    fn conf_of_next_generation(
        &self,
        members: Vec<Member>,
        new_members: Option<&[Member]>,
    ) -> Result<MembershipConf, ChangeError> {
        let generation = self.stored.mconf.generation;
        let next = generation.0.checked_add(1);
        let next = next.ok_or(ChangeError::GenerationsExhausted(generation))?;
        let new_members = new_members.map(<[Member]>::to_vec);
        Ok(MembershipConf { generation: Generation(next), members, new_members })
    }

    fn store(
        &self,
        mconf: Result<MembershipConf, ChangeError>,
        leavers: Vec<Member>,
    ) -> Vec<ChangeRequest> {
        let expected = self.stored.mconf.generation;
        let request = |mconf| ChangeRequest::Store {
            expected,
            conf: Box::new(StoredConf { mconf, leavers, finished: false }),
        };
        mconf.map(request).into_iter().collect()
    }

    /// Steps 2 to 6.
    fn join(&self, new: &[Member]) -> Vec<ChangeRequest> {
        let conf = &self.stored.mconf;
        let mut requests = Vec::new();
        for member in conf.members.iter().filter(|member| self.report(member.id).is_none()) {
            requests.push(self.switch(member));
        }
        if mutant::is(Mutant::FinishesBeforeOldMembersKnow) {
            return self.store_final(new, &conf.members);
        }
        let Some(sync_point) = self.sync_point else { return requests };
        let mut level = 0;
        for member in new {
            match self.report(member.id) {
                // Even an old member may never have had the timeline: an earlier change needed a majority only.
                None => {
                    requests.retain(|request| *request != self.switch(member));
                    requests.push(self.pull(member));
                }
                Some(report) => {
                    let raised = sync_point.term <= report.term || mutant::is(Mutant::RaisesNoTerm);
                    let synced = sync_point.log_position <= report.log_position()
                        || mutant::is(Mutant::FinishesBeforeNewMembersAreLevel);
                    if raised && synced {
                        level += 1;
                    } else if raised {
                        // A leader brings it level; asking again tells when.
                        requests.push(self.switch(member));
                    } else {
                        let (member, term) = (member.clone(), sync_point.term);
                        requests.push(ChangeRequest::RaiseTerm { member, term });
                    }
                }
            }
        }
        if majority(new.len()) <= level {
            return self.store_final(new, &conf.members);
        }
        requests
    }

    /// Step 6: `members` stay, whoever is in `others` alone leaves.
    fn store_final(&self, members: &[Member], others: &[Member]) -> Vec<ChangeRequest> {
        let mut leavers = self.stored.leavers.clone();
        for other in others {
            let leaves = !members.iter().any(|member| member.id == other.id);
            if leaves && !leavers.iter().any(|leaver| leaver.id == other.id) {
                leavers.push(other.clone());
            }
        }
        leavers.retain(|leaver| !members.iter().any(|member| member.id == leaver.id));
        self.store(self.conf_of_next_generation(members.to_vec(), None), leavers)
    }

    /// Steps 7 and 8.
    fn finish(&self) -> Vec<ChangeRequest> {
        let conf = &self.stored.mconf;
        let switched = self.switched(&conf.members).count();
        let missing = conf.members.iter().filter(|member| self.report(member.id).is_none());
        if switched < majority(conf.members.len()) {
            return missing.map(|member| self.switch(member)).collect();
        }
        // The others have time, but without them the loss of fewer than half would stop everything.
        let mut requests: Vec<ChangeRequest> = missing.map(|member| self.pull(member)).collect();
        let exclude = |member: &Member| ChangeRequest::Exclude {
            member: member.clone(),
            mconf: Box::new(conf.clone()),
        };
        requests.extend(self.stored.leavers.iter().map(exclude));
        requests
    }

    /// Whether the new members are in charge: what is left is tidying up, which need not be waited for.
    pub fn is_effective(&self) -> bool {
        let conf = &self.stored.mconf;
        !conf.is_joint()
            && same_set(&conf.members, &self.target)
            && majority(conf.members.len()) <= self.switched(&conf.members).count()
    }

    fn switch(&self, member: &Member) -> ChangeRequest {
        let (member, mconf) = (member.clone(), Box::new(self.stored.mconf.clone()));
        ChangeRequest::Switch { member, mconf }
    }

    fn pull(&self, member: &Member) -> ChangeRequest {
        let reported = self.stored.mconf.members.iter();
        let mut donors: Vec<(&Member, (Term, Lsn))> = reported
            .filter_map(|donor| Some((donor, self.report(donor.id)?.log_position())))
            .collect();
        donors.sort_by_key(|(_, position)| std::cmp::Reverse(*position));
        ChangeRequest::Pull {
            member: member.clone(),
            donors: donors.into_iter().map(|(donor, _)| donor.clone()).collect(),
            mconf: Box::new(self.stored.mconf.clone()),
        }
    }

    /// What a safekeeper said since it has the stored configuration.
    fn report(&self, node: NodeId) -> Option<&MemberReport> {
        let generation = self.stored.mconf.generation;
        self.reports.get(&node).filter(|report| report.generation == generation)
    }

    fn switched<'a>(&'a self, set: &'a [Member]) -> impl Iterator<Item = &'a MemberReport> {
        set.iter().filter_map(|member| self.report(member.id))
    }
}

#[cfg(test)]
mod tests;
