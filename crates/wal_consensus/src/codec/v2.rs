//! Protocol version 2 on the wire, kept so that computes and safekeepers can go back to it (L016, L236). Little-endian, as
//! the structs of a C program lay in memory; the tag is a u64 so that nothing is padded.
//!
//! ```text
//! history  n u32, n × (term u64, lsn u64)
//! unused   written as 0, not looked at when read
//!
//! proposer to safekeeper, each after its tag u64
//! g  version u32 (2), pg_version u32, unused 16, system_id u64, timeline_id 16, tenant_id 16, pg_timeline u32, wal_seg_size u32
//! v  term u64, unused 16
//! e  term u64, start_streaming_at u64, history, first position of the history u64
//! a  term u64, unused 8, begin u64, end u64, commit u64, truncate u64, unused 16, end - begin bytes of WAL
//!
//! safekeeper to proposer, each after its tag u64
//! g  term u64, node_id u64
//! v  term u64, vote_given u64, flush u64, truncate u64, history, unused 8
//! a  term u64, flush u64, commit u64, hs_ts i64, hs_xmin u64, hs_catalog_xmin u64, feedback bytes
//! ```
//!
//! Membership has no place here. What is read belongs to the empty configuration, generation 0; what belongs to any other
//! one is not written ([`NeedsVersion3`]). So nobody who speaks version 2 takes part in an election or a commit of a timeline
//! that has members, on either side: a safekeeper with a membership does not answer the greeting, and its acceptor
//! refuses every vote, election and append of generation 0 (C12).

use bytes::{Buf, BufMut, Bytes, BytesMut};
use pg_types::{Generation, Lsn, NodeId, TenantId, Term, TimelineId};

use super::{
    TAG_APPEND, TAG_ELECTED, TAG_GREETING, TAG_VOTE, TERM_LSN_BYTES, count_on_wire, open, read_wal,
};
use crate::membership::MembershipConf;
use crate::message::{
    AcceptorGreeting, AcceptorMessage, AppendHeader, AppendRequest, AppendResponse,
    HotStandbyFeedback, ProposerElected, ProposerGreeting, ProposerMessage, VoteRequest,
    VoteResponse,
};
use crate::read::{CodecError, Reader};
use crate::term_history::{TermHistory, TermLsn};
use crate::version::NeedsVersion3;

/// What a greeting says of itself.
const VERSION: u32 = 2;
/// The timeline of Postgres' own: computes are never promoted.
const PG_TIMELINE: u32 = 1;
/// Length of an id.
const ID_BYTES: usize = 16;
/// Length of the number that told proposers apart, which nobody looks at.
const PROPOSER_ID_BYTES: usize = 16;
const APPEND_HEADER_BYTES: usize = 72;

/// The generation of everything that is read.
const GENERATION: Generation = Generation(0);

pub(crate) fn encode_proposer(message: &ProposerMessage) -> Result<Bytes, NeedsVersion3> {
    let mut out = BytesMut::new();
    match message {
        ProposerMessage::Greeting(greeting) => {
            check(greeting.mconf.generation)?;
            put_greeting(&mut out, greeting);
        }
        ProposerMessage::VoteRequest(request) => {
            check(request.generation)?;
            put_tag(&mut out, TAG_VOTE);
            out.put_u64_le(request.term.0);
            out.put_bytes(0, PROPOSER_ID_BYTES);
        }
        ProposerMessage::Elected(elected) => {
            check(elected.generation)?;
            put_tag(&mut out, TAG_ELECTED);
            out.put_u64_le(elected.term.0);
            out.put_u64_le(elected.start_streaming_at.0);
            put_history(&mut out, &elected.term_history);
            out.put_u64_le(elected.term_history.start_lsn().unwrap_or_default().0);
        }
        ProposerMessage::Append(append) => {
            out.reserve(APPEND_HEADER_BYTES + append.wal.len());
            put_append_header(&mut out, &append.header)?;
            out.put_slice(&append.wal);
        }
    }
    Ok(out.freeze())
}

pub(crate) fn encode_append_header(header: &AppendHeader) -> Result<Bytes, NeedsVersion3> {
    let mut out = BytesMut::with_capacity(APPEND_HEADER_BYTES);
    put_append_header(&mut out, header)?;
    Ok(out.freeze())
}

pub(crate) fn decode_proposer(bytes: Bytes) -> Result<ProposerMessage, CodecError> {
    let mut reader = open(bytes)?;
    let message = match read_tag(&mut reader)? {
        TAG_GREETING => ProposerMessage::Greeting(read_greeting(&mut reader)?),
        TAG_VOTE => {
            let term = Term(reader.u64_le("term")?);
            reader.take("proposer_id", PROPOSER_ID_BYTES)?;
            ProposerMessage::VoteRequest(VoteRequest { generation: GENERATION, term })
        }
        TAG_ELECTED => ProposerMessage::Elected(read_elected(&mut reader)?),
        TAG_APPEND => ProposerMessage::Append(read_append(&mut reader)?),
        tag => return Err(CodecError::UnknownTag(tag)),
    };
    reader.finish()?;
    Ok(message)
}

pub(crate) fn encode_acceptor(message: &AcceptorMessage) -> Result<Bytes, NeedsVersion3> {
    let mut out = BytesMut::new();
    match message {
        AcceptorMessage::Greeting(greeting) => {
            check(greeting.mconf.generation)?;
            put_tag(&mut out, TAG_GREETING);
            out.put_u64_le(greeting.term.0);
            out.put_u64_le(greeting.node_id.0);
        }
        AcceptorMessage::VoteResponse(vote) => {
            check(vote.generation)?;
            put_tag(&mut out, TAG_VOTE);
            out.put_u64_le(vote.term.0);
            out.put_u64_le(u64::from(vote.vote_given));
            out.put_u64_le(vote.flush_lsn.0);
            out.put_u64_le(vote.truncate_lsn.0);
            put_history(&mut out, &vote.term_history);
            // Where the timeline begins; the history tells it.
            out.put_u64_le(0);
        }
        AcceptorMessage::AppendResponse(append) => {
            check(append.generation)?;
            put_tag(&mut out, TAG_APPEND);
            out.put_u64_le(append.term.0);
            out.put_u64_le(append.flush_lsn.0);
            out.put_u64_le(append.commit_lsn.0);
            out.put_i64_le(append.hs_feedback.ts);
            out.put_u64_le(append.hs_feedback.xmin);
            out.put_u64_le(append.hs_feedback.catalog_xmin);
            // Big-endian in both versions.
            out.put_slice(&append.pageserver_feedback);
        }
    }
    Ok(out.freeze())
}

pub(crate) fn decode_acceptor(bytes: Bytes) -> Result<AcceptorMessage, CodecError> {
    let mut reader = open(bytes)?;
    let message = match read_tag(&mut reader)? {
        TAG_GREETING => {
            let term = Term(reader.u64_le("term")?);
            let node_id = NodeId(reader.u64_le("node_id")?);
            let mconf = MembershipConf::default();
            AcceptorMessage::Greeting(AcceptorGreeting { node_id, mconf, term })
        }
        TAG_VOTE => AcceptorMessage::VoteResponse(read_vote_response(&mut reader)?),
        TAG_APPEND => AcceptorMessage::AppendResponse(read_append_response(&mut reader)?),
        tag => return Err(CodecError::UnknownTag(tag)),
    };
    reader.finish()?;
    Ok(message)
}

/// Only what belongs to the empty configuration is written.
pub(crate) fn check(generation: Generation) -> Result<(), NeedsVersion3> {
    if generation == GENERATION { Ok(()) } else { Err(NeedsVersion3(generation)) }
}

fn put_tag(out: &mut BytesMut, tag: u8) {
    out.put_u64_le(u64::from(tag));
}

fn read_tag(reader: &mut Reader) -> Result<u8, CodecError> {
    let value = reader.u64_le("tag")?;
    u8::try_from(value).map_err(|_| CodecError::Value { field: "tag", value })
}

fn put_greeting(out: &mut BytesMut, greeting: &ProposerGreeting) {
    put_tag(out, TAG_GREETING);
    out.put_u32_le(VERSION);
    out.put_u32_le(greeting.pg_version);
    out.put_bytes(0, PROPOSER_ID_BYTES);
    out.put_u64_le(greeting.system_id);
    out.put_slice(&greeting.timeline_id.0);
    out.put_slice(&greeting.tenant_id.0);
    out.put_u32_le(PG_TIMELINE);
    out.put_u32_le(greeting.wal_seg_size);
}

fn read_greeting(reader: &mut Reader) -> Result<ProposerGreeting, CodecError> {
    let version = reader.u32_le("protocol_version")?;
    if version != VERSION {
        return Err(CodecError::Value { field: "protocol_version", value: u64::from(version) });
    }
    let pg_version = reader.u32_le("pg_version")?;
    reader.take("proposer_id", PROPOSER_ID_BYTES)?;
    let system_id = reader.u64_le("system_id")?;
    let timeline_id = TimelineId(reader.id("timeline_id")?);
    let tenant_id = TenantId(reader.id("tenant_id")?);
    reader.u32_le("pg_timeline")?;
    let wal_seg_size = reader.u32_le("wal_seg_size")?;
    let mconf = MembershipConf::default();
    Ok(ProposerGreeting { tenant_id, timeline_id, mconf, pg_version, system_id, wal_seg_size })
}

fn read_elected(reader: &mut Reader) -> Result<ProposerElected, CodecError> {
    let elected = ProposerElected {
        generation: GENERATION,
        term: Term(reader.u64_le("term")?),
        start_streaming_at: Lsn(reader.u64_le("start_streaming_at")?),
        term_history: read_history(reader)?,
    };
    reader.u64_le("timeline_start_lsn")?;
    Ok(elected)
}

fn put_append_header(out: &mut BytesMut, header: &AppendHeader) -> Result<(), NeedsVersion3> {
    check(header.generation)?;
    put_tag(out, TAG_APPEND);
    out.put_u64_le(header.term.0);
    // Where the term begins; the history of the elected message tells it.
    out.put_u64_le(0);
    for lsn in [header.begin_lsn, header.end_lsn, header.commit_lsn, header.truncate_lsn] {
        out.put_u64_le(lsn.0);
    }
    out.put_bytes(0, PROPOSER_ID_BYTES);
    Ok(())
}

fn read_append(reader: &mut Reader) -> Result<AppendRequest, CodecError> {
    let term = Term(reader.u64_le("term")?);
    reader.u64_le("term_start_lsn")?;
    let header = AppendHeader {
        generation: GENERATION,
        term,
        begin_lsn: Lsn(reader.u64_le("begin_lsn")?),
        end_lsn: Lsn(reader.u64_le("end_lsn")?),
        commit_lsn: Lsn(reader.u64_le("commit_lsn")?),
        truncate_lsn: Lsn(reader.u64_le("truncate_lsn")?),
    };
    reader.take("proposer_id", PROPOSER_ID_BYTES)?;
    read_wal(reader, header)
}

fn read_vote_response(reader: &mut Reader) -> Result<VoteResponse, CodecError> {
    let term = Term(reader.u64_le("term")?);
    let vote_given = match reader.u64_le("vote_given")? {
        0 => false,
        1 => true,
        value => return Err(CodecError::Value { field: "vote_given", value }),
    };
    let response = VoteResponse {
        generation: GENERATION,
        term,
        vote_given,
        flush_lsn: Lsn(reader.u64_le("flush_lsn")?),
        truncate_lsn: Lsn(reader.u64_le("truncate_lsn")?),
        term_history: read_history(reader)?,
    };
    reader.u64_le("timeline_start_lsn")?;
    Ok(response)
}

fn read_append_response(reader: &mut Reader) -> Result<AppendResponse, CodecError> {
    Ok(AppendResponse {
        generation: GENERATION,
        term: Term(reader.u64_le("term")?),
        flush_lsn: Lsn(reader.u64_le("flush_lsn")?),
        commit_lsn: Lsn(reader.u64_le("commit_lsn")?),
        hs_feedback: HotStandbyFeedback {
            ts: reader.i64_le("hs_ts")?,
            xmin: reader.u64_le("hs_xmin")?,
            catalog_xmin: reader.u64_le("hs_catalog_xmin")?,
        },
        pageserver_feedback: reader.rest(),
    })
}

fn put_history(out: &mut BytesMut, history: &TermHistory) {
    out.put_u32_le(count_on_wire(history.entries().len()));
    for entry in history.entries() {
        out.put_u64_le(entry.term.0);
        out.put_u64_le(entry.lsn.0);
    }
}

fn read_history(reader: &mut Reader) -> Result<TermHistory, CodecError> {
    let field = "term history length";
    let count = reader.u32_le(field)?;
    let count = reader.checked_count(field, count, TERM_LSN_BYTES)?;
    let entries = (0..count).map(|_| {
        let term = Term(reader.u64_le("term history term")?);
        Ok(TermLsn { term, lsn: Lsn(reader.u64_le("term history lsn")?) })
    });
    Ok(TermHistory::new(entries.collect::<Result<Vec<_>, CodecError>>()?)?)
}

impl Reader {
    fn u32_le(&mut self, field: &'static str) -> Result<u32, CodecError> {
        self.take(field, 4).map(|mut bytes| bytes.get_u32_le())
    }

    fn u64_le(&mut self, field: &'static str) -> Result<u64, CodecError> {
        self.take(field, 8).map(|mut bytes| bytes.get_u64_le())
    }

    fn i64_le(&mut self, field: &'static str) -> Result<i64, CodecError> {
        self.take(field, 8).map(|mut bytes| bytes.get_i64_le())
    }

    fn id(&mut self, field: &'static str) -> Result<[u8; ID_BYTES], CodecError> {
        let mut id = [0; ID_BYTES];
        self.take(field, ID_BYTES)?.copy_to_slice(&mut id);
        Ok(id)
    }
}

#[cfg(test)]
mod tests;
