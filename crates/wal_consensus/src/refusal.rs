//! Why an acceptor refuses a message. Every refusal closes the connection it came from and changes nothing.

use pg_types::{Generation, Lsn, NodeId, TenantId, Term, TimelineId};

use crate::ladder::LadderError;
use crate::membership::{MembershipConf, MembershipError};
use crate::term_history::TermHistoryError;

/// The reason that the other side is told.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The greeting names another timeline than the connection was opened for.
    #[error("greeting is for timeline {tenant_id}/{timeline_id}, this is another one")]
    WrongTimeline {
        /// Tenant in the greeting.
        tenant_id: TenantId,
        /// Timeline in the greeting.
        timeline_id: TimelineId,
    },
    /// Another major version of Postgres.
    #[error("compute runs PostgreSQL {theirs}, the timeline belongs to {ours} (PG_VERSION_NUM)")]
    PgVersion {
        /// `PG_VERSION_NUM` of the compute.
        theirs: u32,
        /// `PG_VERSION_NUM` of the timeline.
        ours: u32,
    },
    /// Another segment size.
    #[error("compute has WAL segments of {theirs} bytes, the timeline of {ours}")]
    WalSegSize {
        /// Segment size of the compute.
        theirs: u32,
        /// Segment size of the timeline.
        ours: u32,
    },
    /// Another database cluster.
    #[error("compute has system identifier {theirs}, the timeline {ours}")]
    SystemId {
        /// `system_identifier` of the compute.
        theirs: u64,
        /// `system_identifier` of the timeline.
        ours: u64,
    },
    /// The sender has another configuration.
    #[error("message has membership generation {theirs}, this safekeeper has {ours}")]
    Generation {
        /// Generation in the message.
        theirs: Generation,
        /// Generation here.
        ours: Generation,
    },
    /// A configuration that was replaced already. The sender is told both, so that it can go on from the current one.
    #[error("membership configuration {requested} is older than the current {current}")]
    ConfOlder {
        /// What was asked for.
        requested: Box<MembershipConf>,
        /// What is in force.
        current: Box<MembershipConf>,
    },
    /// Two contents for one generation: somebody broke the rules.
    #[error("membership configuration {requested} contradicts the current {current}")]
    ConfConflict {
        /// What was asked for.
        requested: Box<MembershipConf>,
        /// What is in force.
        current: Box<MembershipConf>,
    },
    /// A configuration that this safekeeper is not part of.
    #[error(
        "safekeeper {node_id} is not in the membership configuration of generation {generation}"
    )]
    NotMember {
        /// This safekeeper.
        node_id: NodeId,
        /// Generation of the configuration.
        generation: Generation,
    },
    /// A malformed configuration.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// Contradicting term histories.
    #[error(transparent)]
    TermHistory(#[from] TermHistoryError),
    /// An elected proposer whose history ends with another term.
    #[error("elected in term {term}, but the term history ends with term {last}")]
    HistoryOfOtherTerm {
        /// Term of the message.
        term: Term,
        /// Last term of its history.
        last: Term,
    },
    /// The common point computed here is another one: the proposer knew an older state of this safekeeper.
    #[error("proposer wants to stream from {theirs}, the logs are common up to {ours}")]
    StartMismatch {
        /// `start_streaming_at` of the message.
        theirs: Lsn,
        /// Common point computed here.
        ours: Lsn,
    },
    /// The proposer would cut committed WAL.
    #[error("proposer wants to stream from {start_lsn}, below the commit position {commit_lsn}")]
    TruncatesCommitted {
        /// `start_streaming_at` of the message.
        start_lsn: Lsn,
        /// Commit position here.
        commit_lsn: Lsn,
    },
    /// WAL of a term that was not announced by an elected message.
    #[error(
        "append request of term {theirs} before its election was announced, this safekeeper is in term {ours}"
    )]
    NotElected {
        /// Term of the request.
        theirs: Term,
        /// Term here.
        ours: Term,
    },
    /// The connection is not the one that streams: no elected message came over it, or a newer one took over.
    #[error("this connection does not stream the WAL of term {0}")]
    NotStreaming(Term),
    /// A newer connection of the same or a higher term took over.
    #[error("a newer connection streams the WAL of term {0}")]
    Superseded(Term),
    /// WAL that begins behind the end of what is here.
    #[error(
        "append request begins at {begin_lsn}, the log ends at {write_lsn}: WAL would be missing"
    )]
    Gap {
        /// Begin of the request.
        begin_lsn: Lsn,
        /// End of the log.
        write_lsn: Lsn,
    },
    /// WAL that begins before the end of what is here.
    #[error(
        "append request begins at {begin_lsn}, the log ends at {write_lsn}: WAL would be written twice"
    )]
    Rewrite {
        /// Begin of the request.
        begin_lsn: Lsn,
        /// End of the log.
        write_lsn: Lsn,
    },
    /// Length of the bytes differs from the positions.
    #[error("append request for {begin_lsn}..{end_lsn} carries {wal_bytes} bytes")]
    WalLength {
        /// Begin of the request.
        begin_lsn: Lsn,
        /// End of the request.
        end_lsn: Lsn,
        /// Bytes it carries.
        wal_bytes: usize,
    },
    /// The timeline was taken out of service.
    #[error("timeline is quarantined: {0}")]
    Quarantined(Quarantine),
}

/// Why a timeline is taken out of service on this safekeeper. Other timelines go on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Quarantine {
    /// Positions are out of order.
    #[error(transparent)]
    Ladder(#[from] LadderError),
    /// The log speaks of a term that this safekeeper never promised.
    #[error("the term history ends with term {last}, above the promised term {term}")]
    HistoryAheadOfTerm {
        /// The promise.
        term: Term,
        /// Last term of the history.
        last: Term,
    },
    /// What the runtime reports about its WAL cannot be.
    #[error(
        "reported as durable: {flush_lsn}/{synced_lsn}, but the log ends at {write_lsn} and was durable up to {known_lsn}"
    )]
    FlushReport {
        /// Reported end of whole records.
        flush_lsn: Lsn,
        /// Reported end of bytes.
        synced_lsn: Lsn,
        /// End of the log.
        write_lsn: Lsn,
        /// What was durable before.
        known_lsn: Lsn,
    },
}
