//! The judge: sees what was promised and what is on the disks, and knows nothing of how it came about.

use std::collections::BTreeMap;

use pg_types::{Lsn, NodeId, Term};

use super::node::Node;
use super::wal::{lsn_at, offset};
use crate::membership::MembershipConf;
use crate::message::AcceptorMessage;

/// What has been promised so far.
#[derive(Debug, Default)]
pub(super) struct Checker {
    /// Every byte that was acknowledged to a client, from the beginning of the timeline.
    committed: Vec<u8>,
    /// Up to where the durable WAL of each safekeeper is the committed one.
    agreed: BTreeMap<NodeId, usize>,
    terms: BTreeMap<NodeId, Term>,
    votes: BTreeMap<(NodeId, Term), usize>,
    reigns: BTreeMap<Term, Lsn>,
    starts: BTreeMap<Term, Lsn>,
    /// How far each term got.
    commits: BTreeMap<Term, Lsn>,
    /// Whose majority must have everything: the old members while a change is under way.
    members: Vec<NodeId>,
    generations: BTreeMap<NodeId, u32>,
    contents: BTreeMap<u32, MembershipConf>,
}

pub(super) type Verdict = Result<(), String>;

impl Checker {
    pub(super) fn new(members: Vec<NodeId>) -> Checker {
        Checker { members, ..Checker::default() }
    }

    pub(super) fn committed_lsn(&self) -> Lsn {
        lsn_at(self.committed.len())
    }

    /// This configuration is in force from now on.
    pub(super) fn stored(&mut self, mconf: &MembershipConf, nodes: &[Node]) -> Verdict {
        self.members = mconf.members.iter().map(|member| member.id).collect();
        self.majority_has(self.committed.len(), nodes)
    }

    /// A compute was told that its WAL `bytes`, which begins at `begin_lsn`, is durable.
    pub(super) fn acknowledged(
        &mut self,
        begin_lsn: Lsn,
        bytes: &[u8],
        nodes: &mut [Node],
    ) -> Verdict {
        let begin = offset(begin_lsn);
        let end = begin + bytes.len();
        if self.committed.len() < begin {
            return Err(format!("WAL below {begin_lsn} was never acknowledged"));
        }
        let known = &self.committed[begin..end.min(self.committed.len())];
        if known != &bytes[..known.len()] {
            return Err(format!("fork: WAL acknowledged at {begin_lsn} differs from before"));
        }
        self.committed.extend_from_slice(&bytes[known.len()..]);
        nodes.iter_mut().for_each(|node| node.touched = true);
        self.inspect(nodes)
    }

    fn majority_has(&self, end: usize, nodes: &[Node]) -> Verdict {
        let has = |node: &&Node| {
            self.members.contains(&node.id)
                && node.disk.is_some()
                && self.agreed.get(&node.id).is_some_and(|agreed| end <= *agreed)
        };
        let holders = nodes.iter().filter(has).count();
        if self.members.len() / 2 < holders {
            return Ok(());
        }
        let lsn = lsn_at(end);
        Err(format!("lost: {lsn} is acknowledged, but only {holders} members have it"))
    }

    /// A proposer found this to be committed.
    pub(super) fn committed(&mut self, term: Term, commit_lsn: Lsn) {
        self.commits.insert(term, commit_lsn);
    }

    /// Somebody begins to reign. A term that was outvoted before its votes were counted may begin anywhere, since it can
    /// commit nothing; a later term begins where all earlier ones are committed.
    pub(super) fn elected(&mut self, term: Term, term_start_lsn: Lsn) -> Verdict {
        let earlier = self.commits.range(..term).map(|(_, lsn)| *lsn).max();
        if let Some(lsn) = earlier.filter(|lsn| term_start_lsn < *lsn) {
            return Err(format!(
                "term {term} begins at {term_start_lsn}, below the committed {lsn}"
            ));
        }
        match self.reigns.insert(term, term_start_lsn) {
            None => Ok(()),
            Some(_) => Err(format!("two proposers won term {term}")),
        }
    }

    /// A proposer in sync mode found this to be committed. It counts as acknowledged, because the next basebackup is made
    /// from it; a majority must agree on what it is.
    pub(super) fn committed_elsewhere(&mut self, end_lsn: Lsn, nodes: &mut [Node]) -> Verdict {
        if end_lsn <= self.committed_lsn() {
            // True, and perhaps out of date: a later term may have gone on while the answers were under way. Whoever
            // starts a compute from it finds that out when it campaigns.
            return Ok(());
        }
        let end = offset(end_lsn);
        let holds = |node: &Node| -> Option<Vec<u8>> {
            let is_member = self.members.contains(&node.id);
            let bytes = node.disk.as_ref().filter(|_| is_member)?.durable().get(..end)?;
            Some(bytes.to_vec())
        };
        let held: Vec<Vec<u8>> = nodes.iter().filter_map(holds).collect();
        let agree = |bytes: &&Vec<u8>| {
            self.members.len() / 2 < held.iter().filter(|other| other == bytes).count()
        };
        let bytes = held.iter().find(agree);
        let bytes = bytes.ok_or_else(|| format!("sync told {end_lsn}, which no majority has"))?;
        let from = self.committed.len();
        let new = bytes[from..].to_vec();
        self.acknowledged(lsn_at(from), &new, nodes)
    }

    /// Sync has told its result: a majority must have saved that all below is committed, or a page server could wait for
    /// ever for WAL that no safekeeper dares to serve. Members may have changed since they said so.
    pub(super) fn synced(&mut self, end_lsn: Lsn, nodes: &mut [Node], static_: bool) -> Verdict {
        let saved =
            |node: &&Node| node.disk.as_ref().is_some_and(|disk| end_lsn <= disk.state.commit_lsn);
        let saved = nodes.iter().filter(saved).count();
        let enough = if static_ { self.members.len() / 2 < saved } else { 0 < saved };
        if !enough {
            return Err(format!("sync told {end_lsn}, which only {saved} have saved as committed"));
        }
        self.committed_elsewhere(end_lsn, nodes)
    }

    /// A safekeeper said something.
    pub(super) fn said(&mut self, node: NodeId, message: &AcceptorMessage) -> Verdict {
        let (term, vote) = match message {
            AcceptorMessage::Greeting(greeting) => (greeting.term, false),
            AcceptorMessage::VoteResponse(vote) => (vote.term, vote.vote_given),
            AcceptorMessage::AppendResponse(response) => (response.term, false),
        };
        let known = self.terms.entry(node).or_default();
        if term < *known {
            return Err(format!("[C1] safekeeper {node} went back from term {known} to {term}"));
        }
        *known = term;
        if vote {
            let votes = self.votes.entry((node, term)).or_default();
            *votes += 1;
            if *votes > 1 {
                return Err(format!("[C2] safekeeper {node} voted twice in term {term}"));
            }
        }
        Ok(())
    }

    /// A safekeeper has given the timeline up: what it promised is void.
    pub(super) fn excluded(&mut self, node: NodeId) {
        self.terms.remove(&node);
        self.votes.retain(|(voter, _), _| *voter != node);
        self.generations.remove(&node);
        self.agreed.remove(&node);
    }

    /// Looks at the disks that may have changed since the last time.
    pub(super) fn inspect(&mut self, nodes: &mut [Node]) -> Verdict {
        let mut touched = false;
        for node in nodes.iter_mut().filter(|node| node.touched) {
            node.touched = false;
            touched = true;
            self.inspect_one(node)?;
        }
        if touched { self.majority_has(self.committed.len(), nodes) } else { Ok(()) }
    }

    fn inspect_one(&mut self, node: &mut Node) -> Verdict {
        let id = node.id;
        let Some(disk) = &mut node.disk else {
            self.agreed.remove(&id);
            return Ok(());
        };
        let durable_end = disk.durable_end;
        let agreed = self.agreed.entry(id).or_default();
        *agreed = (*agreed).min(disk.cut_at).min(durable_end);
        disk.cut_at = usize::MAX;
        let rest = self.committed[*agreed..].iter().zip(&disk.durable()[*agreed..]);
        *agreed += rest.take_while(|(ours, theirs)| ours == theirs).count();
        if *agreed < offset(disk.state.commit_lsn) {
            return Err(format!("safekeeper {id} serves WAL that was not committed"));
        }
        for entry in disk.state.term_history.entries() {
            let start = *self.starts.entry(entry.term).or_insert(entry.lsn);
            if start != entry.lsn {
                let (term, lsn) = (entry.term, entry.lsn);
                return Err(format!("[C4] term {term} begins at {start} and {lsn}"));
            }
        }
        let mconf = &disk.state.mconf;
        let generation = self.generations.entry(id).or_default();
        if mconf.generation.0 < *generation {
            return Err(format!("[C12] safekeeper {id} went back to generation {mconf}"));
        }
        *generation = mconf.generation.0;
        let content = self.contents.entry(mconf.generation.0).or_insert_with(|| mconf.clone());
        if !content.same_as(mconf) {
            return Err(format!("[C12] generation {mconf} was {content} before"));
        }
        Ok(())
    }
}
