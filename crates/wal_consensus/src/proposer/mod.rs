//! The leader: one compute's side of the quorum (facts of L271, L300).
//!
//! One [`Proposer`] is one campaign and, if it wins, one reign. Whatever ends it is final ([`ProposerCommand::Lost`]):
//! the runtime makes a new one, with a higher term, or gives up. That keeps every state reachable by few paths.

mod election;
mod following;
mod streaming;

use std::collections::BTreeMap;

use pg_types::{Generation, Lsn, NodeId, TenantId, Term, TimelineId};

use crate::limits::MEMBERS_MAX;
use crate::membership::MembershipConf;
use crate::message::{AcceptorMessage, AppendHeader, ProposerMessage};
use crate::quorum::Electorate;
use crate::term_history::{TermHistory, TermHistoryError};

/// A safekeeper by its place in the proposer's list of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SkId(pub usize);

/// What a proposer knows from the beginning.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProposerConfig {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The timeline.
    pub timeline_id: TimelineId,
    /// `PG_VERSION_NUM` of the compute.
    pub pg_version: u32,
    /// `system_identifier` of the compute; 0 when there is no data directory yet.
    pub system_id: u64,
    /// Bytes in a WAL segment.
    pub wal_seg_size: u32,
    /// How many safekeepers the runtime connects to. More may be [connected](ProposerInput::Connected) later when a
    /// configuration names members.
    pub safekeepers: usize,
    /// The newest configuration known; the empty one means a majority of `safekeepers`.
    pub mconf: MembershipConf,
    /// Terms up to this one are taken: the highest that an earlier campaign has used or met.
    pub min_term: Term,
    /// What to do once elected.
    pub mode: ProposerMode,
}

/// What a proposer is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ProposerMode {
    /// Without WAL of its own: bring a quorum level and learn where the log ends (L300).
    Sync,
    /// Stream the WAL of a running compute.
    Stream {
        /// The position the compute was started at: its pages are those of exactly this LSN.
        start_lsn: Lsn,
        /// The terms of all elections that *this* compute has won: WAL of these above `start_lsn` is its own. Not only
        /// the last one: nobody may have heard of that election before its walproposer died.
        own_terms: Vec<Term>,
    },
}

/// What can happen to a proposer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ProposerInput {
    /// A connection is ready for messages.
    Connected {
        /// To whom.
        sk: SkId,
    },
    /// A connection is gone; nothing that was queued on it counts any more.
    Disconnected {
        /// To whom.
        sk: SkId,
    },
    /// A safekeeper has said something.
    Message {
        /// Who.
        sk: SkId,
        /// What.
        message: AcceptorMessage,
    },
    /// The runtime holds the compute's WAL in this range, for everybody. Before the first of these it holds none.
    WalHeld {
        /// First position.
        begin_lsn: Lsn,
        /// Position behind the last byte.
        end_lsn: Lsn,
    },
    /// The runtime has fetched this range for one safekeeper after [`ProposerCommand::FetchWal`].
    FetchedHeld {
        /// For whom.
        sk: SkId,
        /// First position.
        begin_lsn: Lsn,
        /// Position behind the last byte.
        end_lsn: Lsn,
    },
    /// Fetching has ended before the end of the order, and what was fetched is thrown away. What is still missing is
    /// asked for again with the next heartbeat.
    FetchFailed {
        /// For whom.
        sk: SkId,
    },
    /// Bytes of WAL of earlier appends have left for the network: there is room for more.
    Written {
        /// To whom.
        sk: SkId,
        /// How many.
        wal_bytes: u64,
    },
    /// A while has passed since [`ProposerCommand::CommitAdvanced`]: who has not heard of it yet is told.
    TellCommit,
    /// About once a second: everybody hears from us.
    Heartbeat,
}

/// One duty of a proposer's runtime: in order, each one finished before the next, where sending means queueing on the
/// safekeeper's connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ProposerCommand {
    /// Remember durably that this term was used, so that a later campaign of the same compute goes above it.
    RecordCampaign {
        /// The term.
        term: Term,
    },
    /// Remember durably that this compute owns the term: comes before anybody hears of the election.
    RecordElected {
        /// The term.
        term: Term,
    },
    /// A safekeeper has told of a newer configuration, which counts from now on. Members that the runtime has no
    /// address for yet want to be connected to, each as an [`SkId`] above all used so far.
    ConfAdopted {
        /// The configuration.
        mconf: Box<MembershipConf>,
    },
    /// The election is won; the compute's WAL is wanted from `term_start_lsn` on.
    Elected {
        /// The term.
        term: Term,
        /// Where its WAL begins.
        term_start_lsn: Lsn,
        /// The safekeeper whose log it continues.
        donor: SkId,
    },
    /// Send this.
    Send {
        /// To whom.
        sk: SkId,
        /// What; never an append request.
        message: ProposerMessage,
    },
    /// Send an append request with the WAL of the header's range, which the runtime holds.
    Append {
        /// To whom.
        sk: SkId,
        /// All but the bytes.
        header: AppendHeader,
    },
    /// Get WAL for a safekeeper that lacks what [`ProposerInput::WalHeld`] no longer covers.
    FetchWal {
        /// Who lacks it.
        sk: SkId,
        /// First position that it lacks.
        begin_lsn: Lsn,
        /// Where the held WAL begins.
        end_lsn: Lsn,
        /// A safekeeper that has more of it, if one is known.
        donor: Option<SkId>,
    },
    /// The quorum has everything below.
    CommitAdvanced {
        /// The new position.
        commit_lsn: Lsn,
    },
    /// Sync mode is done: a quorum has this end of the log, and has saved that it is committed.
    Synced {
        /// The end of the log.
        end_lsn: Lsn,
    },
    /// Close the connection and make a new one later.
    Reconnect {
        /// To whom.
        sk: SkId,
        /// Why.
        fault: SkFault,
    },
    /// This proposer is history; it ignores everything from now on.
    Lost {
        /// Why.
        reason: LostReason,
    },
}

/// What a safekeeper did that its connection does not survive.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SkFault {
    /// A message that does not belong there.
    #[error("unexpected {0} message")]
    Unexpected(&'static str),
    /// Two addresses lead to one safekeeper.
    #[error("safekeeper {0} is connected already under another address")]
    DuplicateNode(NodeId),
    /// Its configuration is older than ours: it was met before we learned of the newer one, or did not adopt it.
    #[error("safekeeper has membership generation {theirs}, older than {ours}")]
    OldConf {
        /// Its generation.
        theirs: Generation,
        /// Ours.
        ours: Generation,
    },
    /// Its configuration is newer than ours; its greeting will tell it.
    #[error("safekeeper has membership generation {theirs}, newer than {ours}")]
    NewConf {
        /// Its generation.
        theirs: Generation,
        /// Ours.
        ours: Generation,
    },
    /// It answered with a lower term than it had accepted.
    #[error("safekeeper answers in term {0}, which it has left")]
    TermWentBack(Term),
    /// It claims WAL that it was not sent.
    #[error("safekeeper claims to have {flush_lsn}, but was sent WAL up to {sent_lsn} only")]
    ClaimsUnsent {
        /// The claim.
        flush_lsn: Lsn,
        /// The truth.
        sent_lsn: Lsn,
    },
    /// It has less than it said before.
    #[error("safekeeper says {flush_lsn} after {acked_lsn}")]
    FlushWentBack {
        /// Now.
        flush_lsn: Lsn,
        /// Before.
        acked_lsn: Lsn,
    },
    /// Its history contradicts ours.
    #[error(transparent)]
    TermHistory(#[from] TermHistoryError),
}

/// Why a proposer is history.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum LostReason {
    /// Somebody else campaigns or reigns.
    #[error("safekeeper {sk} is in term {term}, above our term {own_term}", sk = sk.0)]
    HigherTerm {
        /// Who said it.
        sk: SkId,
        /// The higher term.
        term: Term,
        /// Ours.
        own_term: Term,
    },
    /// Too many votes of this term went to somebody else.
    #[error("votes of term {term} are taken: no majority is left")]
    VotesTaken {
        /// The term.
        term: Term,
    },
    /// Membership changed before the start of our term was committed. Votes of the older configuration cannot be counted
    /// in the newer one, because logs may have been copied between safekeepers since; and WAL below the term start may
    /// be nowhere but on safekeepers that have left.
    #[error("safekeeper {sk} has told of the newer membership configuration {mconf}", sk = sk.0)]
    ConfChanged {
        /// Who said it.
        sk: SkId,
        /// What to begin the next campaign with.
        mconf: Box<MembershipConf>,
    },
    /// Another compute has written since this one started: its pages are out of date.
    #[error(
        "the log ends at {log_end_lsn} in term {log_term}, this compute was started at {start_lsn}: another compute has written since"
    )]
    ForeignWal {
        /// End of the donor's log.
        log_end_lsn: Lsn,
        /// Term of the donor's last WAL.
        log_term: Term,
        /// Where this compute was started.
        start_lsn: Lsn,
    },
    /// Nothing was ever written, so there is no end of the log to tell.
    #[error("no safekeeper holds any WAL of this timeline and its beginning is unknown")]
    EmptyTimeline,
    /// The donor's history cannot be continued.
    #[error("the donor's term history cannot be continued: {0}")]
    DonorHistory(TermHistoryError),
    /// All 2^64 terms are used up, or somebody says so.
    #[error("there is no term above {0}")]
    TermsExhausted(Term),
}

/// See the module's description.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proposer {
    config: ProposerConfig,
    electorate: Electorate,
    phase: Phase,
    /// 0 until the campaign begins.
    term: Term,
    slots: Vec<Slot>,
    history: TermHistory,
    term_start_lsn: Lsn,
    /// WAL that the runtime holds for everybody.
    held: Range,
    /// What each node has flushed in this term; survives connections, because it survives on the node's disk.
    flushed: BTreeMap<NodeId, Lsn>,
    /// What each node has *saved* as commit position in this term.
    saved_commits: BTreeMap<NodeId, Lsn>,
    commit_lsn: Lsn,
    truncate_lsn: Lsn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    CollectingTerms,
    Campaign,
    Elected,
    /// Lost, or synced.
    Over,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Range {
    begin_lsn: Lsn,
    end_lsn: Lsn,
}

impl Range {
    fn contains(self, lsn: Lsn) -> bool {
        self.begin_lsn <= lsn && lsn < self.end_lsn
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Slot {
    phase: SlotPhase,
    /// Known from the first greeting on.
    node_id: Option<NodeId>,
    /// Highest term in its greetings.
    term: Term,
    vote: Option<Vote>,
    /// End of what was sent over this connection.
    next_lsn: Lsn,
    /// The commit position in the last append over this connection.
    told_commit_lsn: Lsn,
    /// What it has acknowledged over this connection.
    acked_lsn: Option<Lsn>,
    /// WAL bytes in appends that are not yet written to the network.
    queued_bytes: u64,
    /// WAL that the runtime has fetched for this one.
    fetched: Range,
    fetching: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum SlotPhase {
    #[default]
    Offline,
    /// Our greeting is out.
    Greeting,
    /// Has greeted; waits for the campaign.
    Greeted,
    /// Our vote request is out.
    Voting,
    /// Has answered it; waits for the election.
    Voted,
    /// Has been told of the election.
    Active,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Vote {
    granted: bool,
    flush_lsn: Lsn,
    truncate_lsn: Lsn,
    history: TermHistory,
}

type Commands = Vec<ProposerCommand>;
/// `Err` ends the reign; faults of one safekeeper are handled where they are seen.
type Step = Result<(), LostReason>;

impl Proposer {
    /// A proposer that has met nobody yet.
    pub fn new(config: ProposerConfig) -> Proposer {
        debug_assert!(config.safekeepers <= MEMBERS_MAX);
        Proposer {
            electorate: Electorate::of(&config.mconf, config.safekeepers),
            slots: vec![Slot::default(); config.safekeepers],
            config,
            phase: Phase::CollectingTerms,
            term: Term::default(),
            history: TermHistory::default(),
            term_start_lsn: Lsn::INVALID,
            held: Range::default(),
            flushed: BTreeMap::new(),
            saved_commits: BTreeMap::new(),
            commit_lsn: Lsn::INVALID,
            truncate_lsn: Lsn::INVALID,
        }
    }

    /// The configuration that counts now.
    pub fn mconf(&self) -> &MembershipConf {
        &self.config.mconf
    }

    /// The term; 0 before the campaign.
    pub fn term(&self) -> Term {
        self.term
    }

    /// Whether this proposer reigns now.
    pub fn is_elected(&self) -> bool {
        self.phase == Phase::Elected
    }

    /// What the quorum has; 0 before the first answers of the term.
    pub fn commit_lsn(&self) -> Lsn {
        self.commit_lsn
    }

    /// What everybody has; 0 while unknown.
    pub fn truncate_lsn(&self) -> Lsn {
        self.truncate_lsn
    }

    /// WAL below this position may be forgotten when memory is short: a quorum has it, or at least was sent it. Whoever
    /// lacks it all the same gets it by [`ProposerCommand::FetchWal`].
    pub fn evictable_lsn(&self) -> Lsn {
        let active = self.slots.iter().filter(|slot| slot.phase == SlotPhase::Active);
        let sent = active.filter_map(|slot| Some((slot.node_id?, slot.next_lsn))).collect();
        self.commit_lsn.max(self.electorate.common_lsn(&sent))
    }

    /// Takes one input and returns the duties that follow from it.
    pub fn step(&mut self, input: ProposerInput) -> Vec<ProposerCommand> {
        let mut commands = Vec::new();
        if self.phase == Phase::Over {
            return commands;
        }
        if let Err(reason) = self.take(input, &mut commands) {
            self.phase = Phase::Over;
            commands.push(ProposerCommand::Lost { reason });
        }
        commands
    }

    fn take(&mut self, input: ProposerInput, commands: &mut Commands) -> Step {
        match input {
            ProposerInput::Connected { sk } => self.connected(sk, commands),
            ProposerInput::Disconnected { sk } => self.disconnected(sk),
            ProposerInput::Message { sk, message } => return self.message(sk, message, commands),
            ProposerInput::WalHeld { begin_lsn, end_lsn } => {
                self.held = Range { begin_lsn, end_lsn };
                self.pump_all(false, commands);
            }
            ProposerInput::FetchedHeld { sk, begin_lsn, end_lsn } => {
                if let Some(slot) = self.slots.get_mut(sk.0) {
                    slot.fetched = Range { begin_lsn, end_lsn };
                    self.pump(sk, false, commands);
                }
            }
            ProposerInput::FetchFailed { sk } => {
                if let Some(slot) = self.slots.get_mut(sk.0) {
                    slot.fetching = false;
                    slot.fetched = Range::default();
                }
            }
            ProposerInput::Written { sk, wal_bytes } => {
                if let Some(slot) = self.slots.get_mut(sk.0) {
                    slot.queued_bytes = slot.queued_bytes.saturating_sub(wal_bytes);
                    self.pump(sk, false, commands);
                }
            }
            ProposerInput::TellCommit => self.tell_commit(commands),
            ProposerInput::Heartbeat => {
                self.ask_again(commands)?;
                self.pump_all(true, commands);
            }
        }
        Ok(())
    }

    fn disconnected(&mut self, sk: SkId) {
        if let Some(slot) = self.slots.get_mut(sk.0) {
            // A vote that was counted stays counted; it was a promise.
            let keep = Slot {
                node_id: slot.node_id,
                term: slot.term,
                vote: slot.vote.take(),
                ..Slot::default()
            };
            *slot = keep;
        }
    }

    fn message(&mut self, sk: SkId, message: AcceptorMessage, commands: &mut Commands) -> Step {
        if self.slots.get(sk.0).is_none_or(|slot| slot.phase == SlotPhase::Offline) {
            return Ok(());
        }
        match message {
            AcceptorMessage::Greeting(greeting) => self.greeting(sk, greeting, commands),
            AcceptorMessage::VoteResponse(vote) => self.vote_response(sk, vote, commands),
            AcceptorMessage::AppendResponse(response) => {
                self.append_response(sk, &response, commands)
            }
        }
    }

    /// Ends one connection.
    fn fault(&mut self, sk: SkId, fault: SkFault, commands: &mut Commands) {
        self.disconnected(sk);
        commands.push(ProposerCommand::Reconnect { sk, fault });
    }

    fn slot_mut(&mut self, sk: SkId, phase: SlotPhase) -> Option<&mut Slot> {
        self.slots.get_mut(sk.0).filter(|slot| slot.phase == phase)
    }
}
