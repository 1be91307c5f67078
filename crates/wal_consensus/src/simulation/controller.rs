//! Whoever changes the members of the timeline: asks what [`MembershipChange`] says, over a network that loses and delays,
//! and dies now and then. What it stores survives.

use pg_types::Generation;

use super::node::{Disk, Node};
use super::rng::Rng;
use super::world::{Cluster, Outcome, member};
use crate::change::{ChangeGoal, ChangeRequest, MembershipChange, StoredConf};
use crate::membership::Member;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Answered,
    /// Done, but nobody hears of it.
    AnswerLost,
    /// Done some other time, if at all.
    Late,
}

#[derive(Debug, Default)]
pub(super) struct Controller {
    change: Option<MembershipChange>,
    late: Vec<ChangeRequest>,
    /// Copies of the timeline that are under way.
    copies: Vec<(usize, Box<Disk>)>,
}

fn index(member: &Member) -> usize {
    usize::try_from(member.id.0).unwrap() - 1
}

impl Controller {
    pub(super) fn is_busy(&self) -> bool {
        self.change.is_some()
    }

    /// Forgets everything that is not stored.
    pub(super) fn crash(&mut self) {
        self.change = None;
    }

    /// Begins a change, or takes up the one that is stored.
    pub(super) fn begin(&mut self, cluster: &mut Cluster, goal: ChangeGoal) -> Outcome {
        if cluster.store.mconf.members.is_empty() {
            // From addresses to names: the same safekeepers, so every two majorities meet.
            let founders = cluster.nodes.iter().filter(|node| node.disk.is_some());
            let members = founders.map(|node| member(node.id.0)).collect();
            cluster.store.mconf.members = members;
            cluster.store.mconf.generation = Generation(1);
        }
        let change = MembershipChange::new(cluster.store.clone(), goal);
        self.change = Some(change.map_err(|error| error.to_string())?);
        Ok(())
    }

    /// Does one of the things that are due.
    pub(super) fn act(&mut self, cluster: &mut Cluster, pick: usize, fate: Fate) -> Outcome {
        let Some(change) = &self.change else { return Ok(()) };
        let requests = change.requests();
        if requests.is_empty() {
            if cluster.store.mconf == change.stored_conf().mconf {
                cluster.store = change.concluded();
            }
            cluster.say(|| "membership change is done".to_owned());
            self.change = None;
            return Ok(());
        }
        let request = requests[pick % requests.len()].clone();
        self.perform(cluster, request, fate)
    }

    /// Does one of the things that should have been done long ago.
    pub(super) fn act_late(&mut self, cluster: &mut Cluster, rng: &mut Rng) -> Outcome {
        if !self.copies.is_empty() && rng.one_in(2) {
            let (sk, copy) = self.copies.swap_remove(rng.below(self.copies.len()));
            return install(cluster, sk, *copy);
        }
        if self.late.is_empty() {
            return Ok(());
        }
        let request = self.late.swap_remove(rng.below(self.late.len()));
        self.perform(cluster, request, Fate::AnswerLost)
    }

    /// The store has answered, unless the answer is lost: then the change is given up.
    fn stored(&mut self, cluster: &Cluster, fate: Fate) {
        match self.change.as_mut().filter(|_| fate == Fate::Answered) {
            Some(change) => change.stored(cluster.store.clone()),
            None => self.change = None,
        }
    }

    fn perform(&mut self, cluster: &mut Cluster, request: ChangeRequest, fate: Fate) -> Outcome {
        let is_store = matches!(request, ChangeRequest::Store { .. });
        if fate == Fate::Late && !is_store {
            if let ChangeRequest::Pull { member, donors, mconf } = &request {
                // The copy is made now and arrives later.
                if let Some(donor) = donor(cluster, donors, mconf.generation) {
                    let copy = donor.disk.as_ref().map(|disk| disk.snapshot((**mconf).clone()));
                    self.copies.extend(copy.map(|copy| (index(member), Box::new(copy))));
                }
            }
            self.late.push(request);
            return Ok(());
        }
        match request {
            ChangeRequest::Store { expected, conf } => {
                if cluster.store.mconf.generation == expected {
                    cluster.say(|| format!("store {}", conf.mconf));
                    cluster.checker.stored(&conf.mconf, &cluster.nodes)?;
                    cluster.store = *conf;
                }
                self.stored(cluster, fate);
            }
            ChangeRequest::Switch { member, mconf } => {
                let sk = index(&member);
                cluster.say(|| format!("switch sk{} to {mconf}", member.id));
                if let Ok(out) = cluster.nodes[sk].switch(&mconf, &mut cluster.trace)? {
                    cluster.take_out(sk, out)?;
                    self.answered(cluster, sk, fate);
                }
            }
            ChangeRequest::Pull { member, donors, mconf } => {
                let sk = index(&member);
                cluster.say(|| format!("pull to sk{}", member.id));
                if cluster.nodes[sk].disk.is_some() {
                    if let Ok(out) = cluster.nodes[sk].switch(&mconf, &mut cluster.trace)? {
                        cluster.take_out(sk, out)?;
                    }
                } else if let Some(donor) = donor(cluster, &donors, mconf.generation)
                    && let Some(disk) = &donor.disk
                {
                    let copy = disk.snapshot((*mconf).clone());
                    install(cluster, sk, copy)?;
                }
                self.answered(cluster, sk, fate);
            }
            ChangeRequest::RaiseTerm { member, term } => {
                let sk = index(&member);
                cluster.say(|| format!("raise sk{} to term {term}", member.id));
                cluster.raise_term(sk, term)?;
                self.answered(cluster, sk, fate);
            }
            ChangeRequest::Exclude { member, mconf } => {
                let sk = index(&member);
                let node = &cluster.nodes[sk];
                let newer = node
                    .disk
                    .as_ref()
                    .is_some_and(|disk| mconf.generation < disk.state.mconf.generation);
                // A process that is down cannot do it, one without the timeline has nothing to do.
                if mconf.contains(node.id) || newer || node.is_down() {
                    return Ok(());
                }
                cluster.say(|| format!("exclude sk{}", member.id));
                cluster.wipe_sk(sk, mconf.generation);
                if let Some(change) = self.change.as_mut().filter(|_| fate == Fate::Answered) {
                    change.excluded(member.id);
                }
            }
        }
        Ok(())
    }

    fn answered(&mut self, cluster: &Cluster, sk: usize, fate: Fate) {
        let node = &cluster.nodes[sk];
        if let (Some(report), Some(change), Fate::Answered) =
            (node.report(), &mut self.change, fate)
        {
            change.heard(node.id, report);
        }
    }
}

/// The first donor that runs and knows of nothing newer.
fn donor<'a>(cluster: &'a Cluster, donors: &[Member], generation: Generation) -> Option<&'a Node> {
    donors
        .iter()
        .map(|donor| &cluster.nodes[index(donor)])
        .find(|node| node.report().is_some_and(|report| report.generation <= generation))
}

/// A copy has arrived. It does not replace anything, and does not bring back what was excluded.
fn install(cluster: &mut Cluster, sk: usize, copy: Disk) -> Outcome {
    let node = &mut cluster.nodes[sk];
    if node.disk.is_some() || copy.state.mconf.generation <= node.tombstone {
        return Ok(());
    }
    node.disk = Some(copy);
    cluster.restart_sk(sk)
}

/// The goal of whoever takes up what is stored: mostly its end, now and then its beginning.
pub(super) fn resume(stored: &StoredConf, back: bool) -> Option<ChangeGoal> {
    match &stored.mconf.new_members {
        Some(_) if back => Some(ChangeGoal::Abort),
        Some(new) => Some(ChangeGoal::Members(new.clone())),
        None if stored.finished || stored.mconf.members.is_empty() => None,
        None => Some(ChangeGoal::Members(stored.mconf.members.clone())),
    }
}
