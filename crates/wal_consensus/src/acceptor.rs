//! The voter: one timeline on one safekeeper (requirement L271).
//!
//! [`Acceptor::step`] takes one input and returns what the runtime has to do. Nothing here waits, and no message from
//! outside can make it panic: what is wrong is refused with a [`Refusal`] and closes that one connection.

use bytes::Bytes;
use pg_types::{Lsn, Term};

use crate::command::{AcceptorCommand, AcceptorIdentity, AcceptorState, ConnId};
use crate::ladder::{LadderError, LsnLadder};
use crate::membership::MembershipConf;
use crate::message::{
    AcceptorGreeting, AcceptorMessage, AppendRequest, AppendResponse, HotStandbyFeedback,
    ProposerElected, ProposerGreeting, ProposerMessage, VoteRequest, VoteResponse,
};
use crate::refusal::{Quarantine, Refusal};
use crate::term_history::common_point;

/// What can happen to an acceptor.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

/// State of one timeline on one safekeeper.
#[derive(Clone, Debug)]
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

#[derive(Clone, Copy, Debug)]
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
        }
        if let Err(error) = self.ladder.validate() {
            self.quarantine(Quarantine::Ladder(error), &mut commands);
        }
        commands
    }

    /// Adopts a configuration if it is newer than the current one; an equal or older one changes nothing.
    ///
    /// # Errors
    /// When it is malformed, does not name this safekeeper, or contradicts the current one of the same generation.
    pub fn switch_membership(
        &mut self,
        mconf: &MembershipConf,
    ) -> Result<Vec<AcceptorCommand>, Refusal> {
        mconf.validate()?;
        let mut commands = Vec::new();
        if mconf.generation == self.state.mconf.generation && *mconf != self.state.mconf {
            return Err(Refusal::ConfConflict(mconf.generation));
        }
        if self.state.mconf.generation < mconf.generation {
            let node_id = self.identity.node_id;
            if !mconf.contains(node_id) {
                return Err(Refusal::NotMember { node_id, generation: mconf.generation });
            }
            self.state.mconf = mconf.clone();
            self.save_state(&mut commands);
        }
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

    fn vote_request(
        &mut self,
        conn: ConnId,
        request: VoteRequest,
        commands: &mut Commands,
    ) -> Result<(), Refusal> {
        self.check_generation(request.generation)?;
        let mut granted = None;
        if self.state.term < request.term {
            // Raised before the flush, so that no WAL of an older proposer can come in behind it.
            self.raise_term(request.term, commands);
            granted = Some(request.term);
        } else if self.state.term == request.term {
            // The elected proposer comes back over a new connection; what is still on its way over the old one must
            // not change the log that the answer describes.
            self.supersede(None, commands);
        }
        let vote = PendingVote { conn, granted };
        if self.ladder.synced_lsn < self.ladder.write_lsn {
            self.pending_votes.push(vote);
            commands.push(AcceptorCommand::FlushWal { may_wait: false });
        } else {
            commands.push(self.vote_response(vote));
        }
        Ok(())
    }

    fn vote_response(&self, vote: PendingVote) -> AcceptorCommand {
        let message = AcceptorMessage::VoteResponse(VoteResponse {
            generation: self.state.mconf.generation,
            term: self.state.term,
            // A higher term may have come while the flush ran: then this vote is worth nothing any more.
            vote_given: vote.granted == Some(self.state.term),
            flush_lsn: self.ladder.flush_lsn,
            truncate_lsn: self.ladder.truncate_lsn,
            term_history: self.state.term_history.up_to(self.ladder.flush_lsn),
        });
        AcceptorCommand::Reply { conn: vote.conn, message }
    }

    fn elected(
        &mut self,
        conn: ConnId,
        elected: ProposerElected,
        commands: &mut Commands,
    ) -> Result<(), Refusal> {
        self.check_generation(elected.generation)?;
        if elected.term < self.state.term {
            commands.push(self.outdated(conn));
            return Ok(());
        }
        let start_lsn = self.check_elected(&elected)?;
        if self.state.term < elected.term {
            self.raise_term(elected.term, commands);
        }
        self.supersede(Some(conn), commands);
        if self.truncation_pending || self.ladder.write_lsn != start_lsn {
            // Before the new history is saved: a crash in between must not make old bytes look like new ones.
            commands.push(AcceptorCommand::TruncateWal { end_lsn: start_lsn });
            self.truncation_pending = false;
            self.ladder.flush_lsn = start_lsn;
            self.ladder.synced_lsn = start_lsn;
            self.ladder.write_lsn = start_lsn;
        }
        self.state.term_history = elected.term_history;
        if !self.ladder.timeline_start_lsn.is_valid() {
            // The first WAL ever: below it there is nothing, so all of that is committed.
            self.ladder.timeline_start_lsn = start_lsn;
            self.ladder.local_start_lsn = start_lsn;
            self.ladder.commit_lsn = self.ladder.commit_lsn.max(start_lsn);
        }
        self.leader_commit_lsn = self.ladder.commit_lsn;
        self.save_state(commands);
        Ok(())
    }

    fn check_elected(&self, elected: &ProposerElected) -> Result<Lsn, Refusal> {
        let flush_lsn = self.ladder.flush_lsn;
        let ours = common_point(&elected.term_history, &self.state.term_history, flush_lsn)?;
        let last = elected.term_history.last().map(|entry| entry.term).unwrap_or_default();
        if last != elected.term {
            return Err(Refusal::HistoryOfOtherTerm { term: elected.term, last });
        }
        let start_lsn = elected.start_streaming_at;
        if start_lsn != ours {
            return Err(Refusal::StartMismatch { theirs: start_lsn, ours });
        }
        let commit_lsn = self.ladder.commit_lsn;
        if start_lsn < commit_lsn {
            return Err(Refusal::TruncatesCommitted { start_lsn, commit_lsn });
        }
        Ok(start_lsn)
    }

    fn append(
        &mut self,
        conn: ConnId,
        request: AppendRequest,
        commands: &mut Commands,
    ) -> Result<(), Refusal> {
        let header = request.header;
        self.check_generation(header.generation)?;
        if header.term < self.state.term {
            commands.push(self.outdated(conn));
            return Ok(());
        }
        if self.state.term < header.term {
            return Err(Refusal::NotElected { theirs: header.term, ours: self.state.term });
        }
        if self.streaming != Some(conn) {
            return Err(Refusal::NotStreaming(header.term));
        }
        check_position(&request, self.ladder.write_lsn)?;
        self.leader_commit_lsn = self.leader_commit_lsn.max(header.commit_lsn);
        if !request.wal.is_empty() {
            self.ladder.write_lsn = header.end_lsn;
            commands.push(AcceptorCommand::WriteWal {
                begin_lsn: header.begin_lsn,
                wal: request.wal.clone(),
            });
        }
        self.advance_commit(commands);
        self.ladder.truncate_lsn =
            self.ladder.truncate_lsn.max(header.truncate_lsn.min(self.ladder.commit_lsn));
        self.state.truncate_lsn = self.ladder.truncate_lsn;
        if request.wal.is_empty() {
            commands.push(self.append_response(conn));
        } else {
            commands.push(AcceptorCommand::FlushWal { may_wait: true });
        }
        Ok(())
    }

    fn flushed(&mut self, flush_lsn: Lsn, synced_lsn: Lsn, commands: &mut Commands) {
        let ladder = &mut self.ladder;
        let possible = flush_lsn <= synced_lsn
            && synced_lsn <= ladder.write_lsn
            && ladder.flush_lsn <= flush_lsn
            && ladder.synced_lsn <= synced_lsn;
        if !possible {
            let reason = Quarantine::FlushReport {
                flush_lsn,
                synced_lsn,
                write_lsn: ladder.write_lsn,
                known_lsn: ladder.synced_lsn,
            };
            self.quarantine(reason, commands);
            return;
        }
        ladder.flush_lsn = flush_lsn;
        ladder.synced_lsn = synced_lsn;
        self.advance_commit(commands);
        if self.ladder.synced_lsn == self.ladder.write_lsn {
            for vote in std::mem::take(&mut self.pending_votes) {
                commands.push(self.vote_response(vote));
            }
        } else if !self.pending_votes.is_empty() {
            commands.push(AcceptorCommand::FlushWal { may_wait: false });
        }
        if let Some(conn) = self.streaming {
            commands.push(self.append_response(conn));
        }
    }

    /// The rule of the leader's commit position on a log that may be shorter: what is committed and here.
    fn advance_commit(&mut self, commands: &mut Commands) {
        let commit_lsn = self.leader_commit_lsn.min(self.ladder.flush_lsn);
        if commit_lsn <= self.ladder.commit_lsn {
            return;
        }
        self.ladder.commit_lsn = commit_lsn;
        let term_start_lsn = self.state.term_history.last().map(|e| e.lsn).unwrap_or_default();
        let saved_lsn = self.ladder.persisted_commit_lsn;
        // Saved at once when the log of the new term becomes the committed one, because the start of a compute
        // waits for exactly this; otherwise once per segment, so that recovery has little to scan.
        let crosses_term = saved_lsn < term_start_lsn && term_start_lsn <= commit_lsn;
        let segment = u64::from(self.state.wal_seg_size).max(1 << 20);
        if crosses_term || segment <= commit_lsn.saturating_sub(saved_lsn) {
            self.save_state(commands);
        }
        commands.push(AcceptorCommand::CommitAdvanced { commit_lsn });
    }

    fn append_response(&self, conn: ConnId) -> AcceptorCommand {
        let response = AppendResponse {
            generation: self.state.mconf.generation,
            term: self.state.term,
            flush_lsn: self.ladder.flush_lsn,
            commit_lsn: self.ladder.persisted_commit_lsn,
            hs_feedback: HotStandbyFeedback::default(),
            pageserver_feedback: Bytes::new(),
        };
        AcceptorCommand::Reply { conn, message: AcceptorMessage::AppendResponse(response) }
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
        self.save_state(commands);
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
        if theirs == ours { Ok(()) } else { Err(Refusal::Generation { theirs, ours }) }
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

fn check_position(request: &AppendRequest, write_lsn: Lsn) -> Result<(), Refusal> {
    let (begin_lsn, end_lsn) = (request.header.begin_lsn, request.header.end_lsn);
    let wal_bytes = request.wal.len();
    if end_lsn.checked_sub(begin_lsn) != u64::try_from(wal_bytes).ok() {
        return Err(Refusal::WalLength { begin_lsn, end_lsn, wal_bytes });
    }
    match begin_lsn.cmp(&write_lsn) {
        std::cmp::Ordering::Less => Err(Refusal::Rewrite { begin_lsn, write_lsn }),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(Refusal::Gap { begin_lsn, write_lsn }),
    }
}

/// What is known stays; what is unknown (0) is learned.
fn keep_known<T: Default + PartialEq>(known: T, new: T) -> T {
    if known == T::default() { new } else { known }
}
