//! All states that the real state machines can reach within small bounds, breadth first.
//!
//! A step is: a safekeeper takes one message and its answers reach the proposer (or are lost with the connection), a leader
//! writes a record, a safekeeper syncs, loses what it has not synced, or is switched to the next configuration. Answers do not
//! wait; the seeded simulation has that, and everything else that does not fit into an exhaustive search.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use pg_types::{Generation, Lsn, NodeId, TenantId, Term, TimelineId};

use crate::acceptor::{Acceptor, AcceptorInput};
use crate::command::{AcceptorCommand, AcceptorIdentity, AcceptorState, ConnId};
use crate::membership::{Member, MembershipConf};
use crate::message::{AcceptorMessage, AppendRequest, ProposerMessage};
use crate::mutant::{self, Mutant};
use crate::proposer::{
    Proposer, ProposerCommand, ProposerConfig, ProposerInput, ProposerMode, SkId,
};
use crate::quorum::majority;
use crate::term_history::{TermHistory, TermLsn};

const TENANT: TenantId = TenantId([1; 16]);
const TIMELINE: TimelineId = TimelineId([2; 16]);
const START: Lsn = Lsn(16);
const RECORD_BYTES: usize = 8;

/// What may happen how often.
#[derive(Clone, Debug)]
struct Bounds {
    safekeepers: u64,
    proposers: usize,
    records: usize,
    /// Lost answers and crashes, together.
    faults: usize,
    /// Configurations that safekeepers may be switched to, in this order.
    confs: Vec<MembershipConf>,
    states: usize,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Sk {
    acceptor: Acceptor,
    saved: AcceptorState,
    /// One byte for each record: the term that wrote it.
    log: Vec<u8>,
    synced: usize,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Candidate {
    proposer: Proposer,
    log: Vec<u8>,
    queues: Vec<VecDeque<ProposerMessage>>,
    connected: Vec<u64>,
    elected: bool,
    written: usize,
    over: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    sks: Vec<Sk>,
    candidates: Vec<Candidate>,
    committed: Vec<u8>,
    winners: Vec<(u64, usize)>,
    faults: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    Exchange { p: usize, sk: usize },
    LoseAnswer { p: usize, sk: usize },
    Connect { p: usize, sk: usize },
    Write { p: usize },
    Sync { sk: usize },
    Crash { sk: usize },
    Switch { sk: usize, conf: usize },
}

fn lsn(records: usize) -> Lsn {
    Lsn(START.0 + (records * RECORD_BYTES) as u64)
}

fn records(lsn: Lsn) -> usize {
    usize::try_from(lsn.0 - START.0).unwrap() / RECORD_BYTES
}

fn acceptor(id: u64, state: AcceptorState, log: usize) -> Result<Acceptor, String> {
    let identity =
        AcceptorIdentity { node_id: NodeId(id), tenant_id: TENANT, timeline_id: TIMELINE };
    Acceptor::new(identity, state, lsn(log)).map_err(|error| error.to_string())
}

impl State {
    fn new(bounds: &Bounds) -> State {
        let history = TermHistory::new(vec![TermLsn { term: Term(0), lsn: START }]).unwrap();
        let mconf = bounds.confs.first().cloned().unwrap_or_default();
        let saved = AcceptorState {
            mconf: mconf.clone(),
            term_history: history,
            pg_version: 170_000,
            system_id: 7,
            wal_seg_size: 1 << 24,
            timeline_start_lsn: START,
            local_start_lsn: START,
            commit_lsn: START,
            truncate_lsn: START,
            ..AcceptorState::default()
        };
        let count = usize::try_from(bounds.safekeepers).unwrap();
        let sk = |id: u64| Sk {
            acceptor: acceptor(id, saved.clone(), 0).unwrap(),
            saved: saved.clone(),
            log: Vec::new(),
            synced: 0,
        };
        let config = ProposerConfig {
            tenant_id: TENANT,
            timeline_id: TIMELINE,
            pg_version: 170_000,
            system_id: 7,
            wal_seg_size: 1 << 24,
            safekeepers: count,
            mconf,
            min_term: Term(0),
            mode: ProposerMode::Stream { start_lsn: START, own_terms: (0..16).map(Term).collect() },
        };
        let candidate = Candidate {
            proposer: Proposer::new(config),
            log: Vec::new(),
            queues: vec![VecDeque::new(); count],
            connected: vec![0; count],
            elected: false,
            written: 0,
            over: false,
        };
        State {
            sks: (1..=bounds.safekeepers).map(sk).collect(),
            candidates: vec![candidate; bounds.proposers],
            committed: Vec::new(),
            winners: Vec::new(),
            faults: 0,
        }
    }

    fn actions(&self, bounds: &Bounds) -> Vec<Action> {
        let mut actions = Vec::new();
        let may_fail = self.faults < bounds.faults;
        for (p, candidate) in self.candidates.iter().enumerate().filter(|(_, c)| !c.over) {
            for sk in 0..self.sks.len() {
                if candidate.connected[sk] == 0 {
                    actions.push(Action::Connect { p, sk });
                } else if !candidate.queues[sk].is_empty() {
                    actions.push(Action::Exchange { p, sk });
                    if may_fail {
                        actions.push(Action::LoseAnswer { p, sk });
                    }
                }
            }
            if candidate.elected && candidate.written < bounds.records {
                actions.push(Action::Write { p });
            }
        }
        for (index, sk) in self.sks.iter().enumerate() {
            if sk.synced < sk.log.len() {
                actions.push(Action::Sync { sk: index });
                if may_fail {
                    actions.push(Action::Crash { sk: index });
                }
            }
            let generation = sk.acceptor.state().mconf.generation;
            let next = bounds.confs.iter().position(|conf| generation < conf.generation);
            if let Some(conf) = next {
                actions.push(Action::Switch { sk: index, conf });
            }
        }
        actions
    }

    fn apply(&mut self, action: Action, bounds: &Bounds) -> Result<(), String> {
        match action {
            Action::Exchange { p, sk } => self.exchange(p, sk, true)?,
            Action::LoseAnswer { p, sk } => {
                self.faults += 1;
                self.exchange(p, sk, false)?;
            }
            Action::Connect { p, sk } => {
                // A number may come back: of its former connection nothing is left.
                self.candidates[p].connected[sk] = (p * 8 + sk + 1) as u64;
                self.candidates[p].queues[sk].clear();
                self.propose(p, ProposerInput::Connected { sk: SkId(sk) })?;
            }
            Action::Write { p } => {
                let candidate = &mut self.candidates[p];
                let term = u8::try_from(candidate.proposer.term().0).unwrap();
                candidate.log.push(term);
                candidate.written += 1;
                self.hold(p)?;
            }
            Action::Sync { sk } => self.sync(sk)?,
            Action::Crash { sk } => {
                self.faults += 1;
                let node = &mut self.sks[sk];
                node.log.truncate(node.synced);
                node.acceptor = acceptor(sk as u64 + 1, node.saved.clone(), node.synced)?;
                self.disconnect_all(sk)?;
            }
            Action::Switch { sk, conf } => {
                let commands = self.sks[sk].acceptor.switch_membership(&bounds.confs[conf]);
                let commands = commands.map_err(|refusal| refusal.to_string())?;
                self.execute(sk, commands, None)?;
            }
        }
        self.check(bounds)
    }

    fn disconnect_all(&mut self, sk: usize) -> Result<(), String> {
        (0..self.candidates.len()).try_for_each(|p| self.disconnect(p, sk))
    }

    fn disconnect(&mut self, p: usize, sk: usize) -> Result<(), String> {
        let conn = ConnId(std::mem::take(&mut self.candidates[p].connected[sk]));
        if conn.0 == 0 {
            return Ok(());
        }
        self.candidates[p].queues[sk].clear();
        self.sks[sk].acceptor.step(AcceptorInput::Disconnected { conn });
        self.propose(p, ProposerInput::Disconnected { sk: SkId(sk) })
    }

    fn exchange(&mut self, p: usize, sk: usize, answered: bool) -> Result<(), String> {
        let candidate = &mut self.candidates[p];
        let Some(message) = candidate.queues[sk].pop_front() else { return Ok(()) };
        let conn = ConnId(candidate.connected[sk]);
        let sent = match &message {
            ProposerMessage::Append(append) => append.header.wal_bytes(),
            _ => 0,
        };
        let commands = self.sks[sk].acceptor.step(AcceptorInput::Message { conn, message });
        self.execute(sk, commands, (!answered).then_some(p))?;
        if answered {
            let input = ProposerInput::Written { sk: SkId(sk), wal_bytes: sent };
            return self.propose(p, input);
        }
        self.disconnect(p, sk)
    }

    fn sync(&mut self, sk: usize) -> Result<(), String> {
        let node = &mut self.sks[sk];
        node.synced = node.log.len();
        let end = lsn(node.synced);
        let input = AcceptorInput::Flushed { flush_lsn: end, synced_lsn: end };
        let commands = node.acceptor.step(input);
        self.execute(sk, commands, None)
    }

    fn execute(
        &mut self,
        sk: usize,
        commands: Vec<AcceptorCommand>,
        deaf: Option<usize>,
    ) -> Result<(), String> {
        for command in commands {
            let node = &mut self.sks[sk];
            match command {
                AcceptorCommand::SaveState(state) => node.saved = *state,
                AcceptorCommand::TruncateWal { end_lsn } => {
                    node.log.truncate(records(end_lsn));
                    node.synced = node.log.len();
                }
                AcceptorCommand::WriteWal { wal, .. } => {
                    node.log.extend(wal.chunks(RECORD_BYTES).map(|record| record[0]));
                }
                AcceptorCommand::FlushWal { may_wait: true }
                | AcceptorCommand::CommitAdvanced { .. } => {}
                AcceptorCommand::FlushWal { may_wait: false } => self.sync(sk)?,
                AcceptorCommand::Reply { conn, message } => {
                    let to = self.candidates.iter().position(|c| c.connected[sk] == conn.0);
                    if let Some(p) = to.filter(|p| Some(*p) != deaf) {
                        self.answer(p, sk, message)?;
                    }
                }
                AcceptorCommand::Close { conn, .. } => {
                    let to = self.candidates.iter().position(|c| c.connected[sk] == conn.0);
                    if let Some(p) = to {
                        self.disconnect(p, sk)?;
                    }
                }
                AcceptorCommand::Quarantine { reason } => return Err(reason.to_string()),
            }
        }
        Ok(())
    }

    fn answer(&mut self, p: usize, sk: usize, message: AcceptorMessage) -> Result<(), String> {
        self.propose(p, ProposerInput::Message { sk: SkId(sk), message })
    }

    fn hold(&mut self, p: usize) -> Result<(), String> {
        let end_lsn = lsn(self.candidates[p].log.len());
        self.propose(p, ProposerInput::WalHeld { begin_lsn: START, end_lsn })
    }

    fn propose(&mut self, p: usize, input: ProposerInput) -> Result<(), String> {
        for command in self.candidates[p].proposer.step(input) {
            match command {
                ProposerCommand::Send { sk, message } => self.queue(p, sk, message),
                ProposerCommand::Append { sk, header } => {
                    let (from, to) = (records(header.begin_lsn), records(header.end_lsn));
                    let log = &self.candidates[p].log[from..to];
                    let wal: Vec<u8> = log.iter().flat_map(|term| [*term; RECORD_BYTES]).collect();
                    let wal = Bytes::from(wal);
                    self.queue(p, sk, ProposerMessage::Append(AppendRequest { header, wal }));
                }
                ProposerCommand::Elected { term, term_start_lsn, donor } => {
                    if self.winners.iter().any(|(won, _)| *won == term.0) {
                        return Err(format!("two proposers won term {term}"));
                    }
                    self.winners.push((term.0, p));
                    let end = records(term_start_lsn);
                    let log = self.sks[donor.0].log.get(..end).ok_or("the donor lacks its log")?;
                    self.candidates[p].log = log.to_vec();
                    self.candidates[p].elected = true;
                    self.hold(p)?;
                }
                ProposerCommand::CommitAdvanced { commit_lsn } => {
                    let end = records(commit_lsn);
                    let log = &self.candidates[p].log[..end];
                    let common = end.min(self.committed.len());
                    if log[..common] != self.committed[..common] {
                        return Err("two histories are committed".to_owned());
                    }
                    let new = log[common..].to_vec();
                    self.committed.extend(new);
                }
                ProposerCommand::Reconnect { sk, .. } => self.disconnect(p, sk.0)?,
                ProposerCommand::Lost { .. } => self.candidates[p].over = true,
                ProposerCommand::FetchWal { .. }
                | ProposerCommand::RecordCampaign { .. }
                | ProposerCommand::RecordElected { .. }
                | ProposerCommand::ConfAdopted { .. }
                | ProposerCommand::Synced { .. } => {}
            }
        }
        if self.candidates[p].over {
            // Its connections end; none of that concerns it any more.
            for sk in 0..self.sks.len() {
                let conn = ConnId(std::mem::take(&mut self.candidates[p].connected[sk]));
                self.candidates[p].queues[sk].clear();
                self.sks[sk].acceptor.step(AcceptorInput::Disconnected { conn });
            }
        }
        Ok(())
    }

    fn queue(&mut self, p: usize, sk: SkId, message: ProposerMessage) {
        if self.candidates[p].connected[sk.0] != 0 {
            self.candidates[p].queues[sk.0].push_back(message);
        }
    }

    /// What is committed is durable on a majority of every set that may decide, and below its commit position everybody has
    /// nothing else.
    fn check(&self, bounds: &Bounds) -> Result<(), String> {
        let has =
            |sk: &Sk| sk.log[..sk.synced].get(..self.committed.len()) == Some(&self.committed);
        for sk in &self.sks {
            let known = records(sk.acceptor.ladder().commit_lsn);
            if sk.log.get(..known) != self.committed.get(..known) {
                return Err("a safekeeper takes for committed what is not".to_owned());
            }
        }
        let old: Vec<u64> = match bounds.confs.first() {
            Some(conf) => conf.members.iter().map(|member| member.id.0).collect(),
            None => (1..=bounds.safekeepers).collect(),
        };
        let holders = self.sks.iter().zip(1u64..).filter(|(sk, id)| old.contains(id) && has(sk));
        if holders.count() < majority(old.len()) {
            return Err("what is committed is not on a majority".to_owned());
        }
        Ok(())
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

/// How many states there are, or the actions that lead to a wrong one.
fn explore(bounds: &Bounds) -> Result<(usize, bool), String> {
    let first = State::new(bounds);
    let mut seen = HashSet::from([first.fingerprint()]);
    let mut parents: HashMap<u64, (u64, Action)> = HashMap::new();
    let mut frontier = VecDeque::from([first]);
    while let Some(state) = frontier.pop_front() {
        let from = state.fingerprint();
        for action in state.actions(bounds) {
            let mut next = state.clone();
            let result = next.apply(action, bounds);
            let to = next.fingerprint();
            if let Err(problem) = result {
                let mut path = vec![action];
                let mut at = from;
                while let Some((parent, action)) = parents.get(&at) {
                    path.push(*action);
                    at = *parent;
                }
                path.reverse();
                return Err(format!("{problem} after {path:#?}"));
            }
            if seen.insert(to) {
                parents.insert(to, (from, action));
                frontier.push_back(next);
            }
        }
        if bounds.states <= seen.len() {
            return Ok((seen.len(), false));
        }
    }
    Ok((seen.len(), true))
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

fn bounds(safekeepers: u64, proposers: usize, records: usize, faults: usize) -> Bounds {
    let states = number("NEON_MODEL_STATES", 150_000);
    Bounds { safekeepers, proposers, records, faults, confs: Vec::new(), states }
}

fn conf(generation: u32, old: &[u64], new: Option<&[u64]>) -> MembershipConf {
    let member = |id: &u64| Member { id: NodeId(*id), host: "sk".into(), pg_port: 1 };
    let set = |ids: &[u64]| ids.iter().map(member).collect();
    MembershipConf {
        generation: Generation(generation),
        members: set(old),
        new_members: new.map(set),
    }
}

fn explored(what: &str, bounds: &Bounds) {
    let (states, all) = explore(bounds).unwrap();
    let how = if all { "all" } else { "the first" };
    println!("{what}: {how} {states} states");
}

#[test]
fn elections_and_truncation() {
    explored("one safekeeper, two proposers, 2 records, 2 faults", &bounds(1, 2, 2, 2));
    explored("two safekeepers, two proposers, 1 record, 1 fault", &bounds(2, 2, 1, 1));
    explored("three safekeepers, two proposers, 1 record, 1 fault", &bounds(3, 2, 1, 1));
}

#[test]
fn membership_change() {
    let confs = vec![conf(1, &[1], None), conf(2, &[1], Some(&[1, 2]))];
    let change = Bounds { confs, safekeepers: 2, ..bounds(2, 2, 1, 1) };
    explored("joint change of 1 to 1 and 2, two proposers, 1 record, 1 fault", &change);
}

/// The search says no where something is wrong.
#[test]
fn mutants_are_found() {
    for (mutant, bounds) in [
        (Mutant::AcknowledgesBeforeSync, bounds(1, 1, 1, 1)),
        (Mutant::VotesTwice, bounds(1, 2, 1, 0)),
        (Mutant::MajorityOneShort, bounds(2, 2, 1, 0)),
    ] {
        let found = mutant::with(mutant, || explore(&bounds)).unwrap_err();
        println!("{mutant:?}: {}", found.lines().next().unwrap());
    }
}
