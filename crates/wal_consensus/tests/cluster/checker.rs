//! The judge: sees what was promised and what is on the disks, and knows nothing of how it came about.

use std::collections::BTreeMap;

use pg_types::{Lsn, NodeId, Term};
use wal_consensus::message::AcceptorMessage;

use crate::safekeeper::Safekeeper;
use crate::wal::{lsn_at, offset};

/// What has been promised so far.
#[derive(Debug, Default)]
pub struct Checker {
    /// Every byte that was acknowledged to a client, from the beginning of the timeline.
    committed: Vec<u8>,
    terms: BTreeMap<NodeId, Term>,
    votes: BTreeMap<(NodeId, Term), usize>,
    reigns: BTreeMap<Term, Lsn>,
    /// How far each term got.
    commits: BTreeMap<Term, Lsn>,
}

type Verdict = Result<(), String>;

impl Checker {
    pub fn committed_lsn(&self) -> Lsn {
        lsn_at(self.committed.len())
    }

    /// A compute was told that its WAL `bytes`, which begins at `begin_lsn`, is durable.
    pub fn acknowledged(&mut self, begin_lsn: Lsn, bytes: &[u8], disks: &[Safekeeper]) -> Verdict {
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
        self.majority_has(end, disks)
    }

    fn majority_has(&self, end: usize, disks: &[Safekeeper]) -> Verdict {
        let has = |sk: &&Safekeeper| sk.durable().get(..end) == Some(&self.committed[..end]);
        let holders = disks.iter().filter(has).count();
        if disks.len() / 2 < holders {
            return Ok(());
        }
        Err(format!(
            "lost: {} is acknowledged, but only {holders} safekeepers have it",
            lsn_at(end)
        ))
    }

    /// A proposer found this to be committed.
    pub fn committed(&mut self, term: Term, commit_lsn: Lsn) {
        self.commits.insert(term, commit_lsn);
    }

    /// Somebody begins to reign. A term that was outvoted before its votes were counted may begin anywhere, since it can
    /// commit nothing; a later term begins where all earlier ones are committed.
    pub fn elected(&mut self, term: Term, term_start_lsn: Lsn) -> Verdict {
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
    pub fn committed_elsewhere(&mut self, end_lsn: Lsn, disks: &[Safekeeper]) -> Verdict {
        if end_lsn <= self.committed_lsn() {
            // True, and perhaps out of date: a later term may have gone on while the answers were under way. Whoever
            // starts a compute from it finds that out when it campaigns.
            return Ok(());
        }
        let end = offset(end_lsn);
        let agree = |sk: &&Safekeeper| {
            let bytes = sk.durable().get(..end);
            let same = disks.iter().filter(|other| other.durable().get(..end) == bytes).count();
            bytes.is_some() && disks.len() / 2 < same
        };
        let holder = disks.iter().find(agree);
        let holder = holder.ok_or_else(|| format!("sync told {end_lsn}, which no majority has"))?;
        let from = self.committed.len();
        let bytes = holder.durable()[from..offset(end_lsn)].to_vec();
        self.acknowledged(lsn_at(from), &bytes, disks)
    }

    /// Sync has told its result: a majority must have saved that all below is committed, or a page server could wait for
    /// ever for WAL that no safekeeper dares to serve.
    pub fn synced(&mut self, end_lsn: Lsn, disks: &[Safekeeper]) -> Verdict {
        let saved = disks.iter().filter(|sk| end_lsn <= sk.disk.state.commit_lsn).count();
        if saved <= disks.len() / 2 {
            return Err(format!("sync told {end_lsn}, which only {saved} have saved as committed"));
        }
        self.committed_elsewhere(end_lsn, disks)
    }

    /// A safekeeper said something.
    pub fn said(&mut self, node: NodeId, message: &AcceptorMessage) -> Verdict {
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

    /// Looks at all disks.
    pub fn inspect(&self, disks: &[Safekeeper]) -> Verdict {
        self.majority_has(self.committed.len(), disks)?;
        let mut starts: BTreeMap<Term, Lsn> = BTreeMap::new();
        for (index, sk) in disks.iter().enumerate() {
            let commit = offset(sk.disk.state.commit_lsn);
            if self.committed.get(..commit) != sk.durable().get(..commit) {
                return Err(format!("safekeeper {} serves WAL that was not committed", index + 1));
            }
            for entry in sk.disk.state.term_history.entries() {
                let start = *starts.entry(entry.term).or_insert(entry.lsn);
                if start != entry.lsn {
                    return Err(format!(
                        "[C4] term {} begins at {start} and {}",
                        entry.term, entry.lsn
                    ));
                }
            }
        }
        Ok(())
    }
}
