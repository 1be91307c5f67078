//! A timeline in memory: safekeepers with disks, computes, walproposers, connections that break. Nothing in it happens by
//! itself; a script or a schedule says what happens next, and everything that happens is written to a trace.

use std::collections::{BTreeMap, VecDeque};

use pg_types::{Generation, Lsn, NodeId};

use super::checker::Checker;
use super::compute::{Compute, Walproposer};
use super::node::{Crash, Node, Out, Trouble};
use super::rng::Rng;
use super::trace::Trace;
use super::{show, wal, wire};
use crate::acceptor::AcceptorInput;
use crate::change::StoredConf;
use crate::command::ConnId;
use crate::membership::{Member, MembershipConf};
use crate::message::{AcceptorMessage, AppendRequest, ProposerMessage};
use crate::proposer::{LostReason, ProposerCommand, ProposerInput, SkId};

/// A connection. Each side learns of its end only after it has read what was under way.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) proposer: usize,
    pub(super) sk: usize,
    pub(super) to_sk: VecDeque<ProposerMessage>,
    pub(super) to_proposer: VecDeque<AcceptorMessage>,
    pub(super) proposer_open: bool,
    pub(super) sk_open: bool,
}

/// Everything there is.
#[derive(Debug)]
pub(super) struct Cluster {
    /// All safekeepers there are, members or not.
    pub(super) nodes: Vec<Node>,
    /// The durable memory of membership.
    pub(super) store: StoredConf,
    /// Safekeepers at the beginning: the addresses a proposer without configuration is given.
    founders: usize,
    pub(super) computes: Vec<Compute>,
    pub(super) walproposers: BTreeMap<usize, Walproposer>,
    pub(super) conns: BTreeMap<u64, Conn>,
    pub(super) checker: Checker,
    pub(super) trace: Trace,
    pub(super) synced: Option<Lsn>,
    next_conn: u64,
    next_proposer: usize,
}

/// What came of handing over a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivered {
    Nothing,
    Yes,
    /// The safekeeper does not survive it.
    Deadly,
}

/// How the proposers reach safekeeper `id`.
pub(super) fn member(id: u64) -> Member {
    Member { id: NodeId(id), host: format!("sk{id}"), pg_port: 5454 }
}

pub(super) type Outcome = Result<(), String>;

impl Cluster {
    /// `founders` have the timeline from the beginning, `others` may come to it later. With `named`, they have a
    /// membership configuration; without, they are just those at the proposer's addresses.
    pub(super) fn new(founders: usize, others: usize, named: bool) -> Cluster {
        let set: Vec<Member> = (1..=founders as u64).map(member).collect();
        let named_conf =
            MembershipConf { generation: Generation(1), members: set.clone(), new_members: None };
        let mconf = if named { named_conf } else { MembershipConf::default() };
        let node = |id: u64| {
            let has_timeline = id <= founders as u64;
            Node::new(id, has_timeline.then(|| mconf.clone()))
        };
        Cluster {
            nodes: (1..=(founders + others) as u64).map(node).collect(),
            store: StoredConf { mconf: mconf.clone(), ..StoredConf::default() },
            founders,
            computes: Vec::new(),
            walproposers: BTreeMap::new(),
            conns: BTreeMap::new(),
            checker: Checker::new(set.iter().map(|member| member.id).collect()),
            trace: Trace::default(),
            synced: None,
            next_conn: 1,
            next_proposer: 1,
        }
    }

    pub(super) fn say(&mut self, line: impl FnOnce() -> String) {
        self.trace.say(line);
    }

    pub(super) fn start_sync(&mut self, mconf: MembershipConf) -> usize {
        let count = self.addresses(&mconf);
        self.add_walproposer(Walproposer::sync(count, mconf))
    }

    /// Whether a proposer has the address of a safekeeper: of the founders, and of everybody once it knows members.
    pub(super) fn knows(&self, proposer: usize, sk: usize) -> bool {
        let walproposer = self.walproposers.get(&proposer);
        walproposer.is_some_and(|walproposer| sk < self.addresses(walproposer.proposer.mconf()))
    }

    fn addresses(&self, mconf: &MembershipConf) -> usize {
        if mconf.members.is_empty() { self.founders } else { self.nodes.len() }
    }

    pub(super) fn start_compute(&mut self, start_lsn: Lsn) -> usize {
        let id = u8::try_from(self.computes.len() + 1).unwrap();
        self.computes.push(Compute::new(id, start_lsn));
        self.computes.len() - 1
    }

    pub(super) fn start_walproposer(&mut self, compute: usize, mconf: MembershipConf) -> usize {
        let count = self.addresses(&mconf);
        self.add_walproposer(Walproposer::stream(count, mconf, compute, &self.computes[compute]))
    }

    fn add_walproposer(&mut self, walproposer: Walproposer) -> usize {
        let id = self.next_proposer;
        self.next_proposer += 1;
        self.walproposers.insert(id, walproposer);
        id
    }

    /// Kills a walproposer; what it sent is still under way.
    pub(super) fn kill(&mut self, proposer: usize) {
        self.walproposers.remove(&proposer);
        for conn in self.conns.values_mut().filter(|conn| conn.proposer == proposer) {
            conn.proposer_open = false;
            conn.to_proposer.clear();
        }
    }

    pub(super) fn is_connected(&self, proposer: usize, sk: usize) -> bool {
        self.conns.values().any(|c| c.proposer == proposer && c.sk == sk && c.proposer_open)
    }

    pub(super) fn connect(&mut self, proposer: usize, sk: usize) -> Outcome {
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
        self.say(|| format!("p{proposer} connects to sk{} as c{id}", sk + 1));
        self.conns.insert(id, conn);
        self.step_proposer(proposer, ProposerInput::Connected { sk: SkId(sk) })
    }

    /// The proposer's side of a connection goes away; the safekeeper may still get the first `keep` messages.
    pub(super) fn break_conn(&mut self, id: u64, keep: usize) -> Outcome {
        let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
        conn.to_sk.truncate(keep);
        conn.to_proposer.clear();
        let was_open = std::mem::replace(&mut conn.proposer_open, false);
        let (proposer, sk) = (conn.proposer, conn.sk);
        if was_open && self.walproposers.contains_key(&proposer) {
            self.say(|| format!("c{id} breaks"));
            self.step_proposer(proposer, ProposerInput::Disconnected { sk: SkId(sk) })?;
        }
        Ok(())
    }

    /// Hands one message, or the end of the connection, to the safekeeper. `false` when there is nothing.
    pub(super) fn deliver_to_sk(&mut self, id: u64, trouble: Trouble) -> Result<Delivered, String> {
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| conn.sk_open) else {
            return Ok(Delivered::Nothing);
        };
        let (proposer, sk) = (conn.proposer, conn.sk);
        if !self.nodes[sk].is_up() {
            return Ok(Delivered::Nothing);
        }
        let Some(message) = conn.to_sk.pop_front() else {
            if conn.proposer_open {
                return Ok(Delivered::Nothing);
            }
            conn.sk_open = false;
            let input = AcceptorInput::Disconnected { conn: ConnId(id) };
            self.step_sk(sk, input, Trouble::default())?;
            return Ok(Delivered::Yes);
        };
        self.say(|| {
            let message = show::proposer_message(&message);
            format!("c{id} p{proposer} -> sk{}: {message}", sk + 1)
        });
        let written = match &message {
            ProposerMessage::Append(append) => append.header.wal_bytes(),
            _ => 0,
        };
        let decoded = wire::to_sk(id, &message)?;
        let input = AcceptorInput::Message { conn: ConnId(id), message: decoded };
        let lives = self.step_sk(sk, input, trouble)?;
        let open = self.conns.get(&id).is_some_and(|conn| conn.proposer_open);
        if written > 0 && open {
            let input = ProposerInput::Written { sk: SkId(sk), wal_bytes: written };
            self.step_proposer(proposer, input)?;
        }
        Ok(if lives { Delivered::Yes } else { Delivered::Deadly })
    }

    /// Hands one message, or the end of the connection, to the proposer. `false` when there is nothing.
    pub(super) fn deliver_to_proposer(&mut self, id: u64) -> Result<bool, String> {
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
        self.say(|| {
            let message = show::acceptor_message(&message);
            format!("c{id} p{proposer} <- sk{}: {message}", sk + 1)
        });
        let message = wire::to_proposer(id, &message)?;
        self.step_proposer(proposer, ProposerInput::Message { sk: SkId(sk), message })?;
        Ok(true)
    }

    /// Delivers and flushes until nothing is left to do, except that the safekeepers in `deaf` neither hear nor flush.
    pub(super) fn settle(&mut self, deaf: &[usize]) -> Outcome {
        let mut told = false;
        loop {
            let mut busy = false;
            let ids: Vec<u64> = self.conns.keys().copied().collect();
            for id in ids {
                let hears = self.conns.get(&id).is_some_and(|conn| !deaf.contains(&conn.sk));
                while hears && self.deliver_to_sk(id, Trouble::default())? != Delivered::Nothing {
                    busy = true;
                }
                while hears && self.deliver_to_proposer(id)? {
                    busy = true;
                }
            }
            for sk in 0..self.nodes.len() {
                let node = &self.nodes[sk];
                if !deaf.contains(&sk) && node.is_up() && node.flush_wanted {
                    self.flush(sk, Trouble::default())?;
                    busy = true;
                }
            }
            self.forget_dead_conns();
            if busy {
                told = false;
            } else if told {
                return self.checker.inspect(&mut self.nodes);
            } else {
                told = true;
                let ids: Vec<usize> = self.walproposers.keys().copied().collect();
                ids.into_iter()
                    .try_for_each(|id| self.step_proposer(id, ProposerInput::TellCommit))?;
            }
        }
    }

    pub(super) fn forget_dead_conns(&mut self) {
        self.conns.retain(|_, conn| conn.proposer_open || conn.sk_open);
    }

    /// `false` when the safekeeper does not survive it.
    pub(super) fn flush(&mut self, sk: usize, mut trouble: Trouble) -> Result<bool, String> {
        match self.nodes[sk].sync(&mut trouble) {
            Some(input) => self.step_sk(sk, input, Trouble::default()),
            None => Ok(false),
        }
    }

    pub(super) fn crash_sk(&mut self, sk: usize, crash: Crash, rng: &mut Rng) {
        self.say(|| format!("sk{} crashes", sk + 1));
        self.nodes[sk].crash(crash, rng);
        self.close_conns(sk);
    }

    fn close_conns(&mut self, sk: usize) {
        for conn in self.conns.values_mut().filter(|conn| conn.sk == sk) {
            conn.sk_open = false;
            conn.to_sk.clear();
        }
    }

    pub(super) fn restart_sk(&mut self, sk: usize) -> Outcome {
        self.nodes[sk].start()?;
        let flush_lsn = self.nodes[sk].flush_lsn();
        self.say(|| format!("sk{} starts with {flush_lsn}", sk + 1));
        Ok(())
    }

    /// A safekeeper gives the timeline up for good.
    pub(super) fn wipe_sk(&mut self, sk: usize, generation: Generation) {
        let node = &mut self.nodes[sk];
        node.disk = None;
        node.acceptor = None;
        node.touched = true;
        node.tombstone = node.tombstone.max(generation);
        self.checker.excluded(node.id);
        self.close_conns(sk);
    }

    /// `false` when the process does not survive it.
    fn step_sk(
        &mut self,
        sk: usize,
        input: AcceptorInput,
        trouble: Trouble,
    ) -> Result<bool, String> {
        let (out, lives) = self.nodes[sk].step(input, trouble, &mut self.trace)?;
        self.take_out(sk, out)?;
        Ok(lives)
    }

    pub(super) fn raise_term(&mut self, sk: usize, term: pg_types::Term) -> Outcome {
        self.step_sk(sk, AcceptorInput::RaiseTerm { term }, Trouble::default()).map(|_| ())
    }

    pub(super) fn save_sk(&mut self, sk: usize) -> Outcome {
        self.step_sk(sk, AcceptorInput::SaveState, Trouble::default()).map(|_| ())
    }

    /// What a safekeeper says, and whom it closes.
    pub(super) fn take_out(&mut self, sk: usize, out: Vec<Out>) -> Outcome {
        let node = self.nodes[sk].id;
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

    pub(super) fn step_proposer(&mut self, id: usize, input: ProposerInput) -> Outcome {
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
                self.say(|| {
                    let donor = donor.0 + 1;
                    format!("  p{id}: elected in term {term} at {term_start_lsn}, donor sk{donor}")
                });
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
                self.say(|| format!("  p{id}: synced at {end_lsn}"));
                let unchanged = self.store.mconf.generation <= Generation(1);
                self.checker.synced(end_lsn, &mut self.nodes, unchanged)?;
                self.synced = Some(end_lsn);
                self.kill(id);
            }
            ProposerCommand::Reconnect { sk, fault } => {
                self.say(|| format!("  p{id}: reconnect to sk{}: {fault}", sk.0 + 1));
                for conn in self.conns.values_mut() {
                    if conn.proposer == id && conn.sk == sk.0 {
                        conn.proposer_open = false;
                        conn.to_proposer.clear();
                    }
                }
            }
            ProposerCommand::ConfAdopted { mconf } => {
                self.say(|| format!("  p{id}: adopts membership {mconf}"));
            }
            ProposerCommand::Lost { reason } => self.lost(id, &reason),
        }
        Ok(Vec::new())
    }

    fn lost(&mut self, id: usize, reason: &LostReason) {
        self.say(|| format!("  p{id}: lost: {reason}"));
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
    pub(super) fn wal_held(&mut self, id: usize) -> Option<ProposerInput> {
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
        let node = &self.nodes[donor.0];
        let term = node.acceptor.as_ref().map(|acceptor| acceptor.state().term);
        let end = node.flush_lsn().min(end_lsn);
        if term != Some(walproposer.proposer.term()) || end <= begin_lsn {
            return vec![failed];
        }
        let Some(disk) = &node.disk else { return vec![failed] };
        let bytes = &disk.wal[wal::offset(begin_lsn)..wal::offset(end)];
        let bytes = bytes::Bytes::copy_from_slice(bytes);
        walproposer.fetched.insert(sk, (begin_lsn, bytes));
        let held = ProposerInput::FetchedHeld { sk, begin_lsn, end_lsn: end };
        if end == end_lsn { vec![held] } else { vec![held, failed] }
    }

    fn commit(&mut self, id: usize, commit_lsn: Lsn) -> Outcome {
        self.say(|| format!("  p{id}: commit {commit_lsn}"));
        let term = self.walproposers.get(&id).map(|w| w.proposer.term()).unwrap_or_default();
        self.checker.committed(term, commit_lsn);
        let Some(compute) = self.walproposers.get(&id).and_then(|w| w.compute) else {
            return self.checker.committed_elsewhere(commit_lsn, &mut self.nodes);
        };
        let compute = &mut self.computes[compute];
        let from = compute.acked_lsn;
        if from < commit_lsn {
            let wal = compute.slice(from, commit_lsn);
            compute.acked_lsn = commit_lsn;
            self.checker.acknowledged(from, &wal, &mut self.nodes)?;
        }
        Ok(())
    }
}
