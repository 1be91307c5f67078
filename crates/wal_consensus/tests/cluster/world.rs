//! A timeline in memory: safekeepers with disks, computes, walproposers, connections that break. Nothing in it happens by
//! itself; a script or a schedule says what happens next, and everything that happens is written to a trace.

use std::collections::{BTreeMap, VecDeque};

use pg_types::{Lsn, NodeId, Term};
use wal_consensus::acceptor::AcceptorInput;
use wal_consensus::command::ConnId;
use wal_consensus::message::{AcceptorMessage, AppendRequest, ProposerMessage};
use wal_consensus::proposer::{LostReason, ProposerCommand, ProposerInput, SkId};

use crate::checker::Checker;
use crate::compute::{Compute, Walproposer};
use crate::rng::Rng;
use crate::safekeeper::{Out, Safekeeper};
use crate::wal;

/// A connection. Each side learns of its end only after it has read what was under way.
#[derive(Debug)]
pub struct Conn {
    pub proposer: usize,
    pub sk: usize,
    pub to_sk: VecDeque<ProposerMessage>,
    pub to_proposer: VecDeque<AcceptorMessage>,
    pub proposer_open: bool,
    pub sk_open: bool,
}

/// Everything there is.
#[derive(Debug)]
pub struct Cluster {
    pub safekeepers: Vec<Safekeeper>,
    pub computes: Vec<Compute>,
    pub walproposers: BTreeMap<usize, Walproposer>,
    pub conns: BTreeMap<u64, Conn>,
    pub checker: Checker,
    pub trace: Vec<String>,
    pub synced: Option<Lsn>,
    next_conn: u64,
    next_proposer: usize,
}

pub type Outcome = Result<(), String>;

impl Cluster {
    pub fn new(safekeepers: usize) -> Cluster {
        Cluster {
            safekeepers: (1..=safekeepers as u64).map(Safekeeper::new).collect(),
            computes: Vec::new(),
            walproposers: BTreeMap::new(),
            conns: BTreeMap::new(),
            checker: Checker::default(),
            trace: Vec::new(),
            synced: None,
            next_conn: 1,
            next_proposer: 1,
        }
    }

    fn say(&mut self, line: impl Into<String>) {
        self.trace.push(line.into());
    }

    pub fn start_sync(&mut self) -> usize {
        self.add_walproposer(Walproposer::sync(self.safekeepers.len(), Term(0)))
    }

    pub fn start_compute(&mut self, start_lsn: Lsn) -> usize {
        let id = u8::try_from(self.computes.len() + 1).unwrap();
        self.computes.push(Compute::new(id, start_lsn));
        self.computes.len() - 1
    }

    pub fn start_walproposer(&mut self, compute: usize) -> usize {
        let count = self.safekeepers.len();
        self.add_walproposer(Walproposer::stream(count, compute, &self.computes[compute]))
    }

    fn add_walproposer(&mut self, walproposer: Walproposer) -> usize {
        let id = self.next_proposer;
        self.next_proposer += 1;
        self.walproposers.insert(id, walproposer);
        id
    }

    /// Kills a walproposer; what it sent is still under way.
    pub fn kill(&mut self, proposer: usize) {
        self.walproposers.remove(&proposer);
        for conn in self.conns.values_mut().filter(|conn| conn.proposer == proposer) {
            conn.proposer_open = false;
            conn.to_proposer.clear();
        }
    }

    pub fn is_connected(&self, proposer: usize, sk: usize) -> bool {
        self.conns.values().any(|c| c.proposer == proposer && c.sk == sk && c.proposer_open)
    }

    pub fn connect(&mut self, proposer: usize, sk: usize) -> Outcome {
        let conn = Conn {
            proposer,
            sk,
            to_sk: VecDeque::new(),
            to_proposer: VecDeque::new(),
            proposer_open: true,
            sk_open: true,
        };
        let id = self.next_conn;
        self.next_conn += 1;
        self.say(format!("p{proposer} connects to sk{} as c{id}", sk + 1));
        self.conns.insert(id, conn);
        self.step_proposer(proposer, ProposerInput::Connected { sk: SkId(sk) })
    }

    /// The proposer's side of a connection goes away; the safekeeper may still get the first `keep` messages.
    pub fn break_conn(&mut self, id: u64, keep: usize) -> Outcome {
        let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
        conn.to_sk.truncate(keep);
        conn.to_proposer.clear();
        let was_open = std::mem::replace(&mut conn.proposer_open, false);
        let (proposer, sk) = (conn.proposer, conn.sk);
        if was_open && self.walproposers.contains_key(&proposer) {
            self.say(format!("c{id} breaks"));
            self.step_proposer(proposer, ProposerInput::Disconnected { sk: SkId(sk) })?;
        }
        Ok(())
    }

    /// Hands one message, or the end of the connection, to the safekeeper. `false` when there is nothing.
    pub fn deliver_to_sk(&mut self, id: u64, crash_after: Option<usize>) -> Result<bool, String> {
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| conn.sk_open) else {
            return Ok(false);
        };
        let (proposer, sk) = (conn.proposer, conn.sk);
        if self.safekeepers[sk].acceptor.is_none() {
            return Ok(false);
        }
        let Some(message) = conn.to_sk.pop_front() else {
            if conn.proposer_open {
                return Ok(false);
            }
            conn.sk_open = false;
            self.step_sk(sk, AcceptorInput::Disconnected { conn: ConnId(id) }, None)?;
            return Ok(true);
        };
        self.say(format!("c{id} p{proposer} -> sk{}: {}", sk + 1, show_proposer(&message)));
        let written = match &message {
            ProposerMessage::Append(append) => append.header.wal_bytes(),
            _ => 0,
        };
        let decoded = ProposerMessage::decode(message.encode()).map_err(|e| e.to_string())?;
        let input = AcceptorInput::Message { conn: ConnId(id), message: decoded };
        self.step_sk(sk, input, crash_after)?;
        let open = self.conns.get(&id).is_some_and(|conn| conn.proposer_open);
        if written > 0 && open {
            let input = ProposerInput::Written { sk: SkId(sk), wal_bytes: written };
            self.step_proposer(proposer, input)?;
        }
        Ok(true)
    }

    /// Hands one message, or the end of the connection, to the proposer. `false` when there is nothing.
    pub fn deliver_to_proposer(&mut self, id: u64) -> Result<bool, String> {
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| conn.proposer_open) else {
            return Ok(false);
        };
        let (proposer, sk) = (conn.proposer, conn.sk);
        let Some(message) = conn.to_proposer.pop_front() else {
            if conn.sk_open {
                return Ok(false);
            }
            conn.proposer_open = false;
            self.step_proposer(proposer, ProposerInput::Disconnected { sk: SkId(sk) })?;
            return Ok(true);
        };
        self.say(format!("c{id} p{proposer} <- sk{}: {}", sk + 1, show_acceptor(&message)));
        let message = AcceptorMessage::decode(message.encode()).map_err(|e| e.to_string())?;
        self.step_proposer(proposer, ProposerInput::Message { sk: SkId(sk), message })?;
        Ok(true)
    }

    /// Delivers and flushes until nothing is left to do, except that the safekeepers in `deaf` neither hear nor flush.
    pub fn settle(&mut self, deaf: &[usize]) -> Outcome {
        loop {
            let mut busy = false;
            let ids: Vec<u64> = self.conns.keys().copied().collect();
            for id in ids {
                let hears = self.conns.get(&id).is_some_and(|conn| !deaf.contains(&conn.sk));
                while hears && self.deliver_to_sk(id, None)? {
                    busy = true;
                }
                while hears && self.deliver_to_proposer(id)? {
                    busy = true;
                }
            }
            for sk in 0..self.safekeepers.len() {
                let node = &self.safekeepers[sk];
                if !deaf.contains(&sk) && node.acceptor.is_some() && node.flush_wanted {
                    self.flush(sk)?;
                    busy = true;
                }
            }
            self.forget_dead_conns();
            if !busy {
                return self.checker.inspect(&self.safekeepers);
            }
        }
    }

    pub fn forget_dead_conns(&mut self) {
        self.conns.retain(|_, conn| conn.proposer_open || conn.sk_open);
    }

    pub fn flush(&mut self, sk: usize) -> Outcome {
        let input = self.safekeepers[sk].sync();
        self.step_sk(sk, input, None)
    }

    pub fn crash_sk(&mut self, sk: usize, rng: &mut Rng) {
        self.say(format!("sk{} crashes", sk + 1));
        self.safekeepers[sk].crash(rng);
        for conn in self.conns.values_mut().filter(|conn| conn.sk == sk) {
            conn.sk_open = false;
            conn.to_sk.clear();
        }
    }

    pub fn restart_sk(&mut self, sk: usize) -> Outcome {
        self.safekeepers[sk].restart()?;
        let flush_lsn = self.safekeepers[sk].flush_lsn();
        self.say(format!("sk{} starts with {flush_lsn}", sk + 1));
        Ok(())
    }

    fn step_sk(&mut self, sk: usize, input: AcceptorInput, crash_after: Option<usize>) -> Outcome {
        let out = self.safekeepers[sk].step(input, crash_after, &mut self.trace)?;
        let node = NodeId(sk as u64 + 1);
        for out in out {
            match out {
                Out::Reply(ConnId(id), message) => {
                    self.checker.said(node, &message)?;
                    if let Some(conn) = self.conns.get_mut(&id).filter(|conn| conn.proposer_open) {
                        conn.to_proposer.push_back(message);
                    }
                }
                Out::Close(ConnId(id)) => {
                    if let Some(conn) = self.conns.get_mut(&id) {
                        conn.sk_open = false;
                        conn.to_sk.clear();
                    }
                }
            }
        }
        Ok(())
    }

    pub fn step_proposer(&mut self, id: usize, input: ProposerInput) -> Outcome {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let Some(walproposer) = self.walproposers.get_mut(&id) else { return Ok(()) };
            for command in walproposer.proposer.step(input) {
                inputs.extend(self.execute(id, command)?);
            }
        }
        Ok(())
    }

    fn execute(
        &mut self,
        id: usize,
        command: ProposerCommand,
    ) -> Result<Vec<ProposerInput>, String> {
        let Some(walproposer) = self.walproposers.get_mut(&id) else { return Ok(Vec::new()) };
        let compute = walproposer.compute;
        match command {
            ProposerCommand::RecordCampaign { term } => {
                if let Some(compute) = compute {
                    self.computes[compute].campaign_term = term;
                }
            }
            ProposerCommand::RecordElected { term } => {
                if let Some(compute) = compute {
                    self.computes[compute].elected_terms.push(term);
                }
            }
            ProposerCommand::Elected { term, term_start_lsn, donor } => {
                walproposer.elected_at = Some(term_start_lsn);
                walproposer.held_from = term_start_lsn;
                self.say(format!(
                    "  p{id}: elected in term {term} at {term_start_lsn}, donor sk{}",
                    donor.0 + 1
                ));
                self.checker.elected(term, term_start_lsn)?;
                return Ok(self.wal_held(id).into_iter().collect());
            }
            ProposerCommand::Send { sk, message } => self.send(id, sk, message),
            ProposerCommand::Append { sk, header } => {
                let compute = compute.map(|compute| &self.computes[compute]);
                let wal = walproposer.wal_for(sk, &header, compute)?;
                self.send(id, sk, ProposerMessage::Append(AppendRequest { header, wal }));
            }
            ProposerCommand::FetchWal { sk, begin_lsn, end_lsn, donor } => {
                return Ok(self.fetch(id, sk, begin_lsn, end_lsn, donor));
            }
            ProposerCommand::CommitAdvanced { commit_lsn } => self.commit(id, commit_lsn)?,
            ProposerCommand::Synced { end_lsn } => {
                self.say(format!("  p{id}: synced at {end_lsn}"));
                self.checker.synced(end_lsn, &self.safekeepers)?;
                self.synced = Some(end_lsn);
                self.kill(id);
            }
            ProposerCommand::Reconnect { sk, fault } => {
                self.say(format!("  p{id}: reconnect to sk{}: {fault}", sk.0 + 1));
                for conn in self.conns.values_mut() {
                    if conn.proposer == id && conn.sk == sk.0 {
                        conn.proposer_open = false;
                        conn.to_proposer.clear();
                    }
                }
            }
            ProposerCommand::Lost { reason } => self.lost(id, &reason),
        }
        Ok(Vec::new())
    }

    fn lost(&mut self, id: usize, reason: &LostReason) {
        self.say(format!("  p{id}: lost: {reason}"));
        let Some(walproposer) = self.walproposers.get(&id) else { return };
        if let Some(compute) = walproposer.compute
            && matches!(reason, LostReason::ForeignWal { .. })
        {
            self.computes[compute].alive = false;
        }
        self.kill(id);
    }

    fn send(&mut self, id: usize, sk: SkId, message: ProposerMessage) {
        let open = |conn: &&mut Conn| {
            conn.proposer == id && conn.sk == sk.0 && conn.proposer_open && conn.sk_open
        };
        if let Some(conn) = self.conns.values_mut().find(open) {
            conn.to_sk.push_back(message);
        }
    }

    /// The compute's WAL has grown, or the proposer has forgotten some.
    pub fn wal_held(&mut self, id: usize) -> Option<ProposerInput> {
        let walproposer = self.walproposers.get(&id)?;
        walproposer.elected_at?;
        let compute = &self.computes[walproposer.compute?];
        let begin_lsn = walproposer.held_from;
        Some(ProposerInput::WalHeld { begin_lsn, end_lsn: compute.end_lsn().max(begin_lsn) })
    }

    fn fetch(
        &mut self,
        id: usize,
        sk: SkId,
        begin_lsn: Lsn,
        end_lsn: Lsn,
        donor: Option<SkId>,
    ) -> Vec<ProposerInput> {
        let failed = ProposerInput::FetchFailed { sk };
        let Some(walproposer) = self.walproposers.get_mut(&id) else { return vec![failed] };
        let Some(donor) = donor else {
            // From the compute itself, which has everything since its start.
            let compute = walproposer.compute.map(|compute| &self.computes[compute]);
            let has = compute.is_some_and(|compute| compute.start_lsn <= begin_lsn);
            if has {
                walproposer.held_from = walproposer.held_from.min(begin_lsn);
            }
            return vec![self.wal_held(id).filter(|_| has).unwrap_or(failed)];
        };
        let node = &self.safekeepers[donor.0];
        let term = node.acceptor.as_ref().map(|acceptor| acceptor.state().term);
        let end = node.flush_lsn().min(end_lsn);
        if term != Some(walproposer.proposer.term()) || end <= begin_lsn {
            return vec![failed];
        }
        let bytes = &node.disk.wal[wal::offset(begin_lsn)..wal::offset(end)];
        let bytes = bytes::Bytes::copy_from_slice(bytes);
        walproposer.fetched.insert(sk, (begin_lsn, bytes));
        let held = ProposerInput::FetchedHeld { sk, begin_lsn, end_lsn: end };
        if end == end_lsn { vec![held] } else { vec![held, failed] }
    }

    fn commit(&mut self, id: usize, commit_lsn: Lsn) -> Outcome {
        self.say(format!("  p{id}: commit {commit_lsn}"));
        let term = self.walproposers.get(&id).map(|w| w.proposer.term()).unwrap_or_default();
        self.checker.committed(term, commit_lsn);
        let Some(compute) = self.walproposers.get(&id).and_then(|w| w.compute) else {
            return self.checker.committed_elsewhere(commit_lsn, &self.safekeepers);
        };
        let compute = &mut self.computes[compute];
        let from = compute.acked_lsn;
        if from < commit_lsn {
            let wal = compute.slice(from, commit_lsn);
            compute.acked_lsn = commit_lsn;
            self.checker.acknowledged(from, &wal, &self.safekeepers)?;
        }
        Ok(())
    }
}

fn show_proposer(message: &ProposerMessage) -> String {
    match message {
        ProposerMessage::Greeting(_) => "greeting".to_owned(),
        ProposerMessage::VoteRequest(vote) => format!("vote request, term {}", vote.term),
        ProposerMessage::Elected(elected) => format!(
            "elected in term {}, stream from {}, history {}",
            elected.term, elected.start_streaming_at, elected.term_history
        ),
        ProposerMessage::Append(append) => format!(
            "append {}..{}, commit {}, truncate {}",
            append.header.begin_lsn,
            append.header.end_lsn,
            append.header.commit_lsn,
            append.header.truncate_lsn
        ),
    }
}

fn show_acceptor(message: &AcceptorMessage) -> String {
    match message {
        AcceptorMessage::Greeting(greeting) => format!("greeting, term {}", greeting.term),
        AcceptorMessage::VoteResponse(vote) => format!(
            "vote {}, term {}, flush {}, history {}",
            if vote.vote_given { "given" } else { "refused" },
            vote.term,
            vote.flush_lsn,
            vote.term_history
        ),
        AcceptorMessage::AppendResponse(response) => format!(
            "append response, term {}, flush {}, commit {}",
            response.term, response.flush_lsn, response.commit_lsn
        ),
    }
}
