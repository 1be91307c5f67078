//! The messages as plain structs (requirements L225–L235; layout in `codec.rs`). They are those of protocol version 3;
//! in version 2 the same ones are of generation 0, always.

use bytes::Bytes;
use pg_types::{Generation, Lsn, NodeId, TenantId, Term, TimelineId, TimestampTz};

use crate::membership::MembershipConf;
use crate::term_history::TermHistory;

/// What a proposer sends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ProposerMessage {
    /// Introduction; always the first message of a connection.
    Greeting(ProposerGreeting),
    /// "Vote for me in this term."
    VoteRequest(VoteRequest),
    /// "I won; cut your log at the common point."
    Elected(ProposerElected),
    /// WAL, the commit position, or both.
    Append(AppendRequest),
}

/// What a safekeeper answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AcceptorMessage {
    /// Answer to a greeting.
    Greeting(AcceptorGreeting),
    /// Answer to a vote request, whether granted or not.
    VoteResponse(VoteResponse),
    /// Answer to an append request, once what it brought is durable.
    AppendResponse(AppendResponse),
}

/// Tag `g`, proposer to safekeeper.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProposerGreeting {
    /// Sent as 32 hexadecimal digits (L231).
    pub tenant_id: TenantId,
    /// Sent as 32 hexadecimal digits (L231).
    pub timeline_id: TimelineId,
    /// The newest configuration the proposer knows; a safekeeper with an older one adopts it.
    pub mconf: MembershipConf,
    /// `PG_VERSION_NUM` of the compute, for example 170011.
    pub pg_version: u32,
    /// `system_identifier` of `pg_control`; 0 when not known (sync mode).
    pub system_id: u64,
    /// Bytes in a WAL segment.
    pub wal_seg_size: u32,
}

/// Tag `g`, safekeeper to proposer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AcceptorGreeting {
    /// Who answers.
    pub node_id: NodeId,
    /// The configuration it holds now.
    pub mconf: MembershipConf,
    /// The highest term it has promised.
    pub term: Term,
}

/// Tag `v`, proposer to safekeeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VoteRequest {
    /// Generation of the proposer's configuration.
    pub generation: Generation,
    /// The candidate's term.
    pub term: Term,
}

/// Tag `v`, safekeeper to proposer. Everything the safekeeper holds is flushed before this leaves it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VoteResponse {
    /// Generation of the safekeeper's configuration.
    pub generation: Generation,
    /// The safekeeper's term after the request.
    pub term: Term,
    /// Whether this request got the vote.
    pub vote_given: bool,
    /// End of the last whole record on its disk.
    pub flush_lsn: Lsn,
    /// Below this every safekeeper has everything, as far as this one knows.
    pub truncate_lsn: Lsn,
    /// Its history, cut at `flush_lsn`.
    pub term_history: TermHistory,
}

/// Tag `e`, proposer to safekeeper. There is no answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProposerElected {
    /// Generation of the proposer's configuration.
    pub generation: Generation,
    /// The proposer's term.
    pub term: Term,
    /// The common point of both logs, where streaming begins.
    pub start_streaming_at: Lsn,
    /// The proposer's history, whose last entry is `term`.
    pub term_history: TermHistory,
}

/// Head of an append request; the WAL bytes follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AppendHeader {
    /// Generation of the proposer's configuration.
    pub generation: Generation,
    /// The proposer's term.
    pub term: Term,
    /// Position of the first byte.
    pub begin_lsn: Lsn,
    /// Position behind the last byte; equal to `begin_lsn` for a heartbeat.
    pub end_lsn: Lsn,
    /// What the quorum has.
    pub commit_lsn: Lsn,
    /// What everybody has.
    pub truncate_lsn: Lsn,
}

/// Tag `a`, proposer to safekeeper.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AppendRequest {
    /// All but the bytes.
    pub header: AppendHeader,
    /// `end_lsn - begin_lsn` bytes of WAL, at most [`crate::limits::APPEND_BYTES_MAX`].
    pub wal: Bytes,
}

/// What hot standbys that read from a safekeeper ask the primary to keep; all zero when there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HotStandbyFeedback {
    /// When it was said.
    pub ts: TimestampTz,
    /// `FullTransactionId` of the oldest snapshot.
    pub xmin: u64,
    /// The same for catalogs.
    pub catalog_xmin: u64,
}

/// Tag `a`, safekeeper to proposer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AppendResponse {
    /// Generation of the safekeeper's configuration.
    pub generation: Generation,
    /// Its term; when higher than the proposer's, the proposer is history and the positions are 0.
    pub term: Term,
    /// End of the last whole record that is durable here.
    pub flush_lsn: Lsn,
    /// The commit position that is *persisted* here.
    pub commit_lsn: Lsn,
    /// From hot standbys.
    pub hs_feedback: HotStandbyFeedback,
    /// What a page server has said since the last response, as it said it; empty when none has. Consensus does not look
    /// into it (`pg_wire::replication::PageserverFeedback` does).
    pub pageserver_feedback: Bytes,
}

impl AppendHeader {
    /// WAL bytes that follow.
    pub fn wal_bytes(&self) -> u64 {
        self.end_lsn.saturating_sub(self.begin_lsn)
    }
}
