//! Protocol version 3 on the wire: the payload of one CopyData message, big-endian (L228, L229). Version 2 is in
//! `codec/v2.rs`; [`ProtocolVersion`](crate::version::ProtocolVersion) chooses.
//!
//! ```text
//! mconf    generation u32, n u32, n × member, n_new u32, n_new × member       n_new 0: not joint
//! member   node_id u64, host cstr, pg_port u16
//! history  n u32, n × (term u64, lsn u64)
//!
//! proposer to safekeeper
//! g  tenant_id cstr, timeline_id cstr, mconf, pg_version u32, system_id u64, wal_seg_size u32
//! v  generation u32, term u64
//! e  generation u32, term u64, start_streaming_at u64, history
//! a  generation u32, term u64, begin u64, end u64, commit u64, truncate u64, end - begin bytes of WAL
//!
//! safekeeper to proposer
//! g  node_id u64, mconf, term u64
//! v  generation u32, term u64, vote_given u8, flush u64, truncate u64, history
//! a  generation u32, term u64, flush u64, commit u64, hs_ts i64, hs_xmin u64, hs_catalog_xmin u64, feedback bytes
//! ```
//!
//! Decoding is total: any bytes give a message or a [`CodecError`]; nothing is allocated for a count before the bytes
//! that it counts are known to be there.

use bytes::{BufMut, Bytes, BytesMut};
use pg_types::{Generation, Lsn, NodeId, Term};

use crate::limits::{APPEND_BYTES_MAX, MESSAGE_BYTES_MAX};
use crate::membership::{Member, MembershipConf};
use crate::message::{
    AcceptorGreeting, AcceptorMessage, AppendHeader, AppendRequest, AppendResponse,
    HotStandbyFeedback, ProposerElected, ProposerGreeting, ProposerMessage, VoteRequest,
    VoteResponse,
};
pub use crate::read::CodecError;
use crate::read::Reader;
use crate::term_history::{TermHistory, TermLsn};

pub(crate) mod v2;

const TAG_GREETING: u8 = b'g';
const TAG_VOTE: u8 = b'v';
const TAG_ELECTED: u8 = b'e';
const TAG_APPEND: u8 = b'a';

/// Bytes of an append request before its WAL.
pub const APPEND_HEADER_BYTES: usize = 45;

/// Least bytes of a member on the wire: node id, empty host, port.
const MEMBER_BYTES_MIN: usize = 8 + 1 + 2;
/// Bytes of one history entry on the wire.
const TERM_LSN_BYTES: usize = 16;

impl ProposerMessage {
    /// The message as the payload of one CopyData.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            ProposerMessage::Greeting(greeting) => put_proposer_greeting(&mut out, greeting),
            ProposerMessage::VoteRequest(request) => {
                out.put_u8(TAG_VOTE);
                out.put_u32(request.generation.0);
                out.put_u64(request.term.0);
            }
            ProposerMessage::Elected(elected) => {
                out.put_u8(TAG_ELECTED);
                out.put_u32(elected.generation.0);
                out.put_u64(elected.term.0);
                out.put_u64(elected.start_streaming_at.0);
                put_history(&mut out, &elected.term_history);
            }
            ProposerMessage::Append(append) => {
                out.reserve(APPEND_HEADER_BYTES + append.wal.len());
                out.put_slice(&append.header.encode());
                out.put_slice(&append.wal);
            }
        }
        out.freeze()
    }

    /// Reads one message that fills `bytes`. The WAL of an append request shares the buffer.
    ///
    /// # Errors
    /// When the bytes are not exactly one valid message.
    pub fn decode(bytes: Bytes) -> Result<ProposerMessage, CodecError> {
        let mut reader = open(bytes)?;
        let message = match reader.u8("tag")? {
            TAG_GREETING => ProposerMessage::Greeting(read_proposer_greeting(&mut reader)?),
            TAG_VOTE => ProposerMessage::VoteRequest(VoteRequest {
                generation: Generation(reader.u32("generation")?),
                term: Term(reader.u64("term")?),
            }),
            TAG_ELECTED => ProposerMessage::Elected(ProposerElected {
                generation: Generation(reader.u32("generation")?),
                term: Term(reader.u64("term")?),
                start_streaming_at: Lsn(reader.u64("start_streaming_at")?),
                term_history: read_history(&mut reader)?,
            }),
            TAG_APPEND => ProposerMessage::Append(read_append(&mut reader)?),
            tag => return Err(CodecError::UnknownTag(tag)),
        };
        reader.finish()?;
        Ok(message)
    }
}

impl AppendHeader {
    /// Tag and fields, to be followed by the WAL bytes: lets a sender write both parts without copying the WAL.
    pub fn encode(&self) -> [u8; APPEND_HEADER_BYTES] {
        let mut out = [0; APPEND_HEADER_BYTES];
        let mut rest = &mut out[..];
        rest.put_u8(TAG_APPEND);
        rest.put_u32(self.generation.0);
        rest.put_u64(self.term.0);
        for lsn in [self.begin_lsn, self.end_lsn, self.commit_lsn, self.truncate_lsn] {
            rest.put_u64(lsn.0);
        }
        out
    }
}

impl AcceptorMessage {
    /// The message as the payload of one CopyData.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            AcceptorMessage::Greeting(greeting) => {
                out.put_u8(TAG_GREETING);
                out.put_u64(greeting.node_id.0);
                put_mconf(&mut out, &greeting.mconf);
                out.put_u64(greeting.term.0);
            }
            AcceptorMessage::VoteResponse(vote) => {
                out.put_u8(TAG_VOTE);
                out.put_u32(vote.generation.0);
                out.put_u64(vote.term.0);
                out.put_u8(u8::from(vote.vote_given));
                out.put_u64(vote.flush_lsn.0);
                out.put_u64(vote.truncate_lsn.0);
                put_history(&mut out, &vote.term_history);
            }
            AcceptorMessage::AppendResponse(append) => put_append_response(&mut out, append),
        }
        out.freeze()
    }

    /// Reads one message that fills `bytes`.
    ///
    /// # Errors
    /// When the bytes are not exactly one valid message.
    pub fn decode(bytes: Bytes) -> Result<AcceptorMessage, CodecError> {
        let mut reader = open(bytes)?;
        let message = match reader.u8("tag")? {
            TAG_GREETING => AcceptorMessage::Greeting(AcceptorGreeting {
                node_id: NodeId(reader.u64("node_id")?),
                mconf: read_mconf(&mut reader)?,
                term: Term(reader.u64("term")?),
            }),
            TAG_VOTE => AcceptorMessage::VoteResponse(VoteResponse {
                generation: Generation(reader.u32("generation")?),
                term: Term(reader.u64("term")?),
                vote_given: read_bool(&mut reader, "vote_given")?,
                flush_lsn: Lsn(reader.u64("flush_lsn")?),
                truncate_lsn: Lsn(reader.u64("truncate_lsn")?),
                term_history: read_history(&mut reader)?,
            }),
            TAG_APPEND => AcceptorMessage::AppendResponse(read_append_response(&mut reader)?),
            tag => return Err(CodecError::UnknownTag(tag)),
        };
        reader.finish()?;
        Ok(message)
    }
}

fn open(bytes: Bytes) -> Result<Reader, CodecError> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(CodecError::TooLong(bytes.len()));
    }
    Ok(Reader::new(bytes))
}

fn put_proposer_greeting(out: &mut BytesMut, greeting: &ProposerGreeting) {
    out.put_u8(TAG_GREETING);
    put_cstr(out, &greeting.tenant_id.to_string());
    put_cstr(out, &greeting.timeline_id.to_string());
    put_mconf(out, &greeting.mconf);
    out.put_u32(greeting.pg_version);
    out.put_u64(greeting.system_id);
    out.put_u32(greeting.wal_seg_size);
}

fn read_proposer_greeting(reader: &mut Reader) -> Result<ProposerGreeting, CodecError> {
    Ok(ProposerGreeting {
        tenant_id: read_id(reader, "tenant_id")?,
        timeline_id: read_id(reader, "timeline_id")?,
        mconf: read_mconf(reader)?,
        pg_version: reader.u32("pg_version")?,
        system_id: reader.u64("system_id")?,
        wal_seg_size: reader.u32("wal_seg_size")?,
    })
}

fn read_id<Id: std::str::FromStr>(
    reader: &mut Reader,
    field: &'static str,
) -> Result<Id, CodecError>
where
    Id::Err: std::fmt::Display,
{
    let text = reader.cstr(field)?;
    text.parse().map_err(|error: Id::Err| CodecError::Text { field, reason: error.to_string() })
}

fn read_append(reader: &mut Reader) -> Result<AppendRequest, CodecError> {
    let header = AppendHeader {
        generation: Generation(reader.u32("generation")?),
        term: Term(reader.u64("term")?),
        begin_lsn: Lsn(reader.u64("begin_lsn")?),
        end_lsn: Lsn(reader.u64("end_lsn")?),
        commit_lsn: Lsn(reader.u64("commit_lsn")?),
        truncate_lsn: Lsn(reader.u64("truncate_lsn")?),
    };
    read_wal(reader, header)
}

/// The bytes that an append request's positions promise.
fn read_wal(reader: &mut Reader, header: AppendHeader) -> Result<AppendRequest, CodecError> {
    let length = header
        .end_lsn
        .checked_sub(header.begin_lsn)
        .and_then(|length| usize::try_from(length).ok())
        .filter(|length| *length <= APPEND_BYTES_MAX)
        .ok_or(CodecError::Value { field: "end_lsn", value: header.end_lsn.0 })?;
    Ok(AppendRequest { header, wal: reader.take("wal", length)? })
}

fn put_append_response(out: &mut BytesMut, append: &AppendResponse) {
    out.put_u8(TAG_APPEND);
    out.put_u32(append.generation.0);
    out.put_u64(append.term.0);
    out.put_u64(append.flush_lsn.0);
    out.put_u64(append.commit_lsn.0);
    out.put_i64(append.hs_feedback.ts);
    out.put_u64(append.hs_feedback.xmin);
    out.put_u64(append.hs_feedback.catalog_xmin);
    out.put_slice(&append.pageserver_feedback);
}

fn read_append_response(reader: &mut Reader) -> Result<AppendResponse, CodecError> {
    Ok(AppendResponse {
        generation: Generation(reader.u32("generation")?),
        term: Term(reader.u64("term")?),
        flush_lsn: Lsn(reader.u64("flush_lsn")?),
        commit_lsn: Lsn(reader.u64("commit_lsn")?),
        hs_feedback: HotStandbyFeedback {
            ts: reader.i64("hs_ts")?,
            xmin: reader.u64("hs_xmin")?,
            catalog_xmin: reader.u64("hs_catalog_xmin")?,
        },
        pageserver_feedback: reader.rest(),
    })
}

fn put_cstr(out: &mut BytesMut, text: &str) {
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

fn put_count(out: &mut BytesMut, count: usize) {
    out.put_u32(count_on_wire(count));
}

/// Counts are far below this bound: members by `MembershipConf::validate`, histories by one entry per election.
fn count_on_wire(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn put_history(out: &mut BytesMut, history: &TermHistory) {
    put_count(out, history.entries().len());
    for entry in history.entries() {
        out.put_u64(entry.term.0);
        out.put_u64(entry.lsn.0);
    }
}

fn read_history(reader: &mut Reader) -> Result<TermHistory, CodecError> {
    let count = reader.count("term history length", TERM_LSN_BYTES)?;
    let entries = (0..count).map(|_| {
        let term = Term(reader.u64("term history term")?);
        Ok(TermLsn { term, lsn: Lsn(reader.u64("term history lsn")?) })
    });
    Ok(TermHistory::new(entries.collect::<Result<Vec<_>, CodecError>>()?)?)
}

fn put_mconf(out: &mut BytesMut, mconf: &MembershipConf) {
    out.put_u32(mconf.generation.0);
    put_members(out, &mconf.members);
    put_members(out, mconf.new_members.as_deref().unwrap_or_default());
}

fn put_members(out: &mut BytesMut, members: &[Member]) {
    put_count(out, members.len());
    for member in members {
        out.put_u64(member.id.0);
        put_cstr(out, &member.host);
        out.put_u16(member.pg_port);
    }
}

fn read_mconf(reader: &mut Reader) -> Result<MembershipConf, CodecError> {
    let generation = Generation(reader.u32("mconf generation")?);
    let members = read_members(reader)?;
    let new_members = read_members(reader)?;
    let new_members = if new_members.is_empty() { None } else { Some(new_members) };
    let mconf = MembershipConf { generation, members, new_members };
    mconf.validate()?;
    Ok(mconf)
}

fn read_members(reader: &mut Reader) -> Result<Vec<Member>, CodecError> {
    let count = reader.count("members length", MEMBER_BYTES_MIN)?;
    let members = (0..count).map(|_| {
        let id = NodeId(reader.u64("member node_id")?);
        let host = reader.cstr("member host")?;
        Ok(Member { id, host, pg_port: reader.u16("member pg_port")? })
    });
    members.collect()
}

fn read_bool(reader: &mut Reader, field: &'static str) -> Result<bool, CodecError> {
    match reader.u8(field)? {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(CodecError::Value { field, value: u64::from(value) }),
    }
}

#[cfg(test)]
mod tests;
