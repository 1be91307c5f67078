//! The voter: one timeline on one safekeeper (requirement L271).
//!
//! [`Acceptor::step`] takes one input and returns what the runtime has to do. Nothing here waits, and no message from
//! outside can make it panic: what is wrong is refused with a [`Refusal`] and closes that one connection.

mod log;
mod voting;

use std::cmp::Ordering;

use bytes::Bytes;
use pg_types::{Lsn, Term};

use crate::command::{AcceptorCommand, AcceptorIdentity, AcceptorState, ConnId};
use crate::ladder::{LadderError, LsnLadder};
use crate::membership::MembershipConf;
use crate::message::{
    AcceptorGreeting, AcceptorMessage, AppendResponse, HotStandbyFeedback, ProposerGreeting,
    ProposerMessage,
};
use crate::mutant::{self, Mutant};
use crate::refusal::{Quarantine, Refusal};

/// What can happen to an acceptor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AcceptorInput {
    /// A message arrived.
    Message {
        /// Over which connection.
        conn: ConnId,
        /// The message.
        message: ProposerMessage,
    },
    /// A connection ended.
    Disconnected {
        /// Which.
        conn: ConnId,
    },
    /// WAL became durable. Not to be reported for a flush that began before the last
    /// [`AcceptorCommand::TruncateWal`].
    Flushed {
        /// End of the last whole record at or below `synced_lsn`.
        flush_lsn: Lsn,
        /// All bytes below are durable.
        synced_lsn: Lsn,
    },
    /// A good moment to save what may be saved late: a timer, a shutdown.
    SaveState,
    /// Promise this term, as if somebody had asked for a vote in it: the step of a membership change that keeps terms
    /// of the old and the new members apart. A lower or equal term changes nothing.
    RaiseTerm {
        /// The term.
        term: Term,
    },
}

/// State of one timeline on one safekeeper.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Acceptor {
    identity: AcceptorIdentity,
    state: AcceptorState,
    ladder: LsnLadder,
    saved_truncate_lsn: Lsn,
    /// Commit position of the elected proposer; above our own while we lag.
    leader_commit_lsn: Lsn,
    /// The connection over which the elected proposer of `state.term` streams.
    streaming: Option<ConnId>,
    /// Nothing may be written before an elected message has cut the log: a truncation may have been under way when the
    /// process died.
    truncation_pending: bool,
    /// Votes whose answers wait for a flush.
    pending_votes: Vec<PendingVote>,
    quarantine: Option<Quarantine>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct PendingVote {
    conn: ConnId,
    granted: Option<Term>,
}

type Commands = Vec<AcceptorCommand>;

impl Acceptor {
    /// An acceptor over a saved state and the log on disk, which was found to end, durably and with a whole record, at
    /// `flush_lsn`. For a timeline without WAL, that is the state's `timeline_start_lsn`.
    ///
    /// # Errors
    /// When log and state contradict each other, for example when committed WAL is missing.
    pub fn new(
        identity: AcceptorIdentity,
        state: AcceptorState,
        flush_lsn: Lsn,
    ) -> Result<Acceptor, LadderError> {
        let ladder = LsnLadder {
            timeline_start_lsn: state.timeline_start_lsn,
            local_start_lsn: state.local_start_lsn,
            truncate_lsn: state.truncate_lsn,
            persisted_commit_lsn: state.commit_lsn,
            commit_lsn: state.commit_lsn,
            flush_lsn,
            synced_lsn: flush_lsn,
            write_lsn: flush_lsn,
        };
        ladder.validate()?;
        Ok(Acceptor {
            identity,
            saved_truncate_lsn: state.truncate_lsn,
            leader_commit_lsn: state.commit_lsn,
            state,
            ladder,
            streaming: None,
            truncation_pending: true,
            pending_votes: Vec::new(),
            quarantine: None,
        })
    }

    /// The state as it would be saved now.
    pub fn state(&self) -> &AcceptorState {
        &self.state
    }

    /// All positions.
    pub fn ladder(&self) -> LsnLadder {
        self.ladder
    }

    /// Term of the last WAL in the log.
    pub fn last_log_term(&self) -> Term {
        self.state.term_history.last_log_term(self.ladder.flush_lsn)
    }

    /// The connection that streams, if any.
    pub fn streaming(&self) -> Option<ConnId> {
        self.streaming
    }

    /// Takes one input and returns the duties that follow from it.
    pub fn step(&mut self, input: AcceptorInput) -> Vec<AcceptorCommand> {
        let mut commands = Vec::new();
        if let Some(reason) = &self.quarantine {
            if let AcceptorInput::Message { conn, .. } = input {
                let refusal = Box::new(Refusal::Quarantined(reason.clone()));
                commands.push(AcceptorCommand::Close { conn, refusal });
            }
            return commands;
        }
        match input {
            AcceptorInput::Message { conn, message } => self.message(conn, message, &mut commands),
            AcceptorInput::Disconnected { conn } => self.disconnected(conn),
            AcceptorInput::Flushed { flush_lsn, synced_lsn } => {
                self.flushed(flush_lsn, synced_lsn, &mut commands);
            }
            AcceptorInput::SaveState => {
                let saved = (self.ladder.persisted_commit_lsn, self.saved_truncate_lsn);
                if saved != (self.ladder.commit_lsn, self.ladder.truncate_lsn) {
                    self.save_state(&mut commands);
                }
            }
            AcceptorInput::RaiseTerm { term } => {
                if self.state.term < term {
                    self.raise_term(term, &mut commands);
                }
            }
        }
        self.check(&mut commands);
        commands
    }

    /// The last thing of every step.
    fn check(&mut self, commands: &mut Commands) {
        let history_term = self.state.term_history.last().map(|entry| entry.term);
        if let Err(error) = self.ladder.validate() {
            self.quarantine(Quarantine::Ladder(error), commands);
        } else if let Some(last) = history_term.filter(|last| self.state.term < *last) {
            let term = self.state.term;
            self.quarantine(Quarantine::HistoryAheadOfTerm { term, last }, commands);
        }
    }

    /// Adopts a configuration that is newer than the current one; the same one again changes nothing. Whoever still
    /// speaks for the older one is closed: no vote and no WAL crosses from one generation to the next (C12).
    ///
    /// # Errors
    /// When it is malformed, older than the current one, does not name this safekeeper, or contradicts the current one
    /// of the same generation.
    pub fn switch_membership(
        &mut self,
        mconf: &MembershipConf,
    ) -> Result<Vec<AcceptorCommand>, Refusal> {
        mconf.validate()?;
        if let Some(reason) = &self.quarantine {
            return Err(Refusal::Quarantined(reason.clone()));
        }
        let current = &self.state.mconf;
        let both = || (Box::new(mconf.clone()), Box::new(current.clone()));
        match mconf.generation.cmp(&current.generation) {
            Ordering::Equal if mconf.same_as(current) => return Ok(Vec::new()),
            Ordering::Equal => {
                let (requested, current) = both();
                return Err(Refusal::ConfConflict { requested, current });
            }
            Ordering::Less => {
                let (requested, current) = both();
                return Err(Refusal::ConfOlder { requested, current });
            }
            Ordering::Greater => {}
        }
        let node_id = self.identity.node_id;
        if !mconf.contains(node_id) {
            return Err(Refusal::NotMember { node_id, generation: mconf.generation });
        }
        let (theirs, ours) = (self.state.mconf.generation, mconf.generation);
        self.state.mconf = mconf.clone();
        let mut commands = Vec::new();
        self.save_state(&mut commands);
        let voters = self.pending_votes.drain(..).map(|vote| vote.conn);
        for conn in self.streaming.take().into_iter().chain(voters) {
            let refusal = Box::new(Refusal::Generation { theirs, ours });
            commands.push(AcceptorCommand::Close { conn, refusal });
        }
        self.check(&mut commands);
        Ok(commands)
    }

    fn message(&mut self, conn: ConnId, message: ProposerMessage, commands: &mut Commands) {
        let outcome = match message {
            ProposerMessage::Greeting(greeting) => self.greeting(conn, &greeting, commands),
            ProposerMessage::VoteRequest(request) => self.vote_request(conn, request, commands),
            ProposerMessage::Elected(elected) => self.elected(conn, elected, commands),
            ProposerMessage::Append(request) => self.append(conn, request, commands),
        };
        if let Err(refusal) = outcome {
            self.disconnected(conn);
            commands.push(AcceptorCommand::Close { conn, refusal: Box::new(refusal) });
        }
    }

    fn disconnected(&mut self, conn: ConnId) {
        if self.streaming == Some(conn) {
            self.streaming = None;
        }
        self.pending_votes.retain(|vote| vote.conn != conn);
    }

    fn greeting(
        &mut self,
        conn: ConnId,
        greeting: &ProposerGreeting,
        commands: &mut Commands,
    ) -> Result<(), Refusal> {
        self.check_greeting(greeting)?;
        commands.extend(self.switch_membership_of_greeting(&greeting.mconf)?);
        let learned = (
            keep_known(self.state.pg_version, greeting.pg_version),
            keep_known(self.state.system_id, greeting.system_id),
            keep_known(self.state.wal_seg_size, greeting.wal_seg_size),
        );
        if learned != (self.state.pg_version, self.state.system_id, self.state.wal_seg_size) {
            (self.state.pg_version, self.state.system_id, self.state.wal_seg_size) = learned;
            self.save_state(commands);
        }
        let message = AcceptorMessage::Greeting(AcceptorGreeting {
            node_id: self.identity.node_id,
            mconf: self.state.mconf.clone(),
            term: self.state.term,
        });
        commands.push(AcceptorCommand::Reply { conn, message });
        Ok(())
    }

    fn check_greeting(&self, greeting: &ProposerGreeting) -> Result<(), Refusal> {
        let (tenant_id, timeline_id) = (greeting.tenant_id, greeting.timeline_id);
        if (tenant_id, timeline_id) != (self.identity.tenant_id, self.identity.timeline_id) {
            return Err(Refusal::WrongTimeline { tenant_id, timeline_id });
        }
        let differs = |ours: u64, theirs: u64| ours != 0 && theirs != 0 && ours != theirs;
        let (theirs, ours) = (greeting.pg_version, self.state.pg_version);
        if differs(u64::from(ours / 10_000), u64::from(theirs / 10_000)) {
            return Err(Refusal::PgVersion { theirs, ours });
        }
        let (theirs, ours) = (greeting.wal_seg_size, self.state.wal_seg_size);
        if differs(u64::from(ours), u64::from(theirs)) {
            return Err(Refusal::WalSegSize { theirs, ours });
        }
        let (theirs, ours) = (greeting.system_id, self.state.system_id);
        if differs(ours, theirs) {
            return Err(Refusal::SystemId { theirs, ours });
        }
        Ok(())
    }

    /// An older configuration is no error in a greeting: the answer tells the proposer the newer one.
    fn switch_membership_of_greeting(
        &mut self,
        mconf: &MembershipConf,
    ) -> Result<Commands, Refusal> {
        if mconf.generation < self.state.mconf.generation {
            return Ok(Vec::new());
        }
        self.switch_membership(mconf)
    }

    /// What a proposer of an older term gets: our term and no positions.
    fn outdated(&self, conn: ConnId) -> AcceptorCommand {
        let response = AppendResponse {
            generation: self.state.mconf.generation,
            term: self.state.term,
            flush_lsn: Lsn::INVALID,
            commit_lsn: Lsn::INVALID,
            hs_feedback: HotStandbyFeedback::default(),
            pageserver_feedback: Bytes::new(),
        };
        AcceptorCommand::Reply { conn, message: AcceptorMessage::AppendResponse(response) }
    }

    fn raise_term(&mut self, term: Term, commands: &mut Commands) {
        self.state.term = term;
        if !mutant::is(Mutant::ForgetsPromise) {
            self.save_state(commands);
        }
        if let Some(conn) = self.streaming.take() {
            // The proposer of the older term learns at once that it is history, with its next heartbeat at the latest.
            commands.push(self.outdated(conn));
        }
    }

    /// Hands streaming over; whoever streamed before is closed.
    fn supersede(&mut self, conn: Option<ConnId>, commands: &mut Commands) {
        let before = std::mem::replace(&mut self.streaming, conn);
        if let Some(before) = before
            && conn != Some(before)
        {
            let refusal = Box::new(Refusal::Superseded(self.state.term));
            commands.push(AcceptorCommand::Close { conn: before, refusal });
        }
    }

    fn check_generation(&self, theirs: pg_types::Generation) -> Result<(), Refusal> {
        let ours = self.state.mconf.generation;
        let same = theirs == ours || mutant::is(Mutant::IgnoresGeneration);
        if same { Ok(()) } else { Err(Refusal::Generation { theirs, ours }) }
    }

    fn save_state(&mut self, commands: &mut Commands) {
        self.state.timeline_start_lsn = self.ladder.timeline_start_lsn;
        self.state.local_start_lsn = self.ladder.local_start_lsn;
        self.state.commit_lsn = self.ladder.commit_lsn;
        self.state.truncate_lsn = self.ladder.truncate_lsn;
        self.ladder.persisted_commit_lsn = self.ladder.commit_lsn;
        self.saved_truncate_lsn = self.ladder.truncate_lsn;
        commands.push(AcceptorCommand::SaveState(Box::new(self.state.clone())));
    }

    /// Nothing that was decided in a step that ends like this may take effect.
    fn quarantine(&mut self, reason: Quarantine, commands: &mut Commands) {
        self.quarantine = Some(reason.clone());
        commands.clear();
        commands.push(AcceptorCommand::Quarantine { reason });
    }
}

/// What is known stays; what is unknown (0) is learned.
fn keep_known<T: Default + PartialEq>(known: T, new: T) -> T {
    if known == T::default() { new } else { known }
}
