//! What is asked and what is answered.

use std::borrow::Cow;

use pg_types::page::Page;
use pg_types::slru::SLRU_PAGES_PER_SEGMENT;
use pg_types::{BLCKSZ, BlockNumber, Lsn, Oid, RelTag, SlruKind, TenantId, TimelineId};

pub(crate) const TAG_EXISTS: u8 = 0;
pub(crate) const TAG_NBLOCKS: u8 = 1;
pub(crate) const TAG_GET_PAGE: u8 = 2;
pub(crate) const TAG_DB_SIZE: u8 = 3;
pub(crate) const TAG_SLRU_SEGMENT: u8 = 4;
/// A response's tag is its request's tag plus this; 103 would be the fourth of them and is the error instead.
pub(crate) const TAG_EXISTS_RESPONSE: u8 = 100;
pub(crate) const TAG_NBLOCKS_RESPONSE: u8 = 101;
pub(crate) const TAG_GET_PAGE_RESPONSE: u8 = 102;
pub(crate) const TAG_ERROR_RESPONSE: u8 = 103;
pub(crate) const TAG_DB_SIZE_RESPONSE: u8 = 104;
pub(crate) const TAG_SLRU_SEGMENT_RESPONSE: u8 = 105;

/// Tag, request id, two LSNs.
pub(crate) const V3_HEADER: usize = 1 + 8 + 8 + 8;
/// Tablespace, database, relation, fork, block: the longest identifying part of a request.
pub(crate) const LONGEST_BODY: usize = 4 + 4 + 4 + 1 + 4;

/// Longest request of either version, in bytes.
pub const MAX_REQUEST_LEN: usize = V3_HEADER + LONGEST_BODY;
/// Longest response of either version, in bytes: a whole SLRU segment.
pub const MAX_RESPONSE_LEN: usize = V3_HEADER + 5 + 4 + SLRU_PAGES_PER_SEGMENT as usize * BLCKSZ;

/// Version of the stream, chosen by the command that starts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProtocolVersion {
    /// Requests without id, responses that carry the payload alone.
    V2,
    /// Requests with id; responses repeat id, LSNs and what was asked for.
    V3,
}

impl ProtocolVersion {
    /// The word that starts a stream of this version.
    pub fn command_name(self) -> &'static str {
        match self {
            ProtocolVersion::V2 => "pagestream_v2",
            ProtocolVersion::V3 => "pagestream_v3",
        }
    }

    /// The whole simple query that starts a stream of this version.
    pub fn command(self, tenant: TenantId, timeline: TimelineId) -> String {
        format!("{} {tenant} {timeline}", self.command_name())
    }
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Chosen by the client, repeated in a version 3 response; 0 in version 2.
    pub request_id: u64,
    /// Read as of this position; [`Lsn::MAX`] means the newest version.
    pub request_lsn: Lsn,
    /// The client knows that what it asks for did not change after this position up to `request_lsn`.
    pub not_modified_since: Lsn,
    /// What is asked.
    pub kind: RequestKind,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// Whether a relation fork exists.
    Exists(RelTag),
    /// Number of blocks of a relation fork.
    Nblocks(RelTag),
    /// One page of a relation fork.
    GetPage(RelTag, BlockNumber),
    /// Bytes of all relations of a database in its default tablespace.
    DbSize(Oid),
    /// A whole segment of an SLRU.
    SlruSegment(SlruKind, u32),
}

impl RequestKind {
    /// Name of the request for messages and metric labels.
    pub fn name(&self) -> &'static str {
        match self {
            RequestKind::Exists(_) => "get_rel_exists",
            RequestKind::Nblocks(_) => "get_rel_size",
            RequestKind::GetPage(..) => "get_page_at_lsn",
            RequestKind::DbSize(_) => "get_db_size",
            RequestKind::SlruSegment(..) => "get_slru_segment",
        }
    }

    pub(crate) fn tag(&self) -> u8 {
        match self {
            RequestKind::Exists(_) => TAG_EXISTS,
            RequestKind::Nblocks(_) => TAG_NBLOCKS,
            RequestKind::GetPage(..) => TAG_GET_PAGE,
            RequestKind::DbSize(_) => TAG_DB_SIZE,
            RequestKind::SlruSegment(..) => TAG_SLRU_SEGMENT,
        }
    }

    pub(crate) fn response_tag(&self) -> u8 {
        match self {
            RequestKind::Exists(_) => TAG_EXISTS_RESPONSE,
            RequestKind::Nblocks(_) => TAG_NBLOCKS_RESPONSE,
            RequestKind::GetPage(..) => TAG_GET_PAGE_RESPONSE,
            RequestKind::DbSize(_) => TAG_DB_SIZE_RESPONSE,
            RequestKind::SlruSegment(..) => TAG_SLRU_SEGMENT_RESPONSE,
        }
    }
}

/// The answer to a request. Which request it answers is not part of it: responses come in request order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// To [`RequestKind::Exists`].
    Exists(bool),
    /// To [`RequestKind::Nblocks`].
    Nblocks(u32),
    /// To [`RequestKind::GetPage`].
    Page(&'a Page),
    /// To [`RequestKind::DbSize`], in bytes.
    DbSize(i64),
    /// To [`RequestKind::SlruSegment`]: at most 32 pages, one after the other.
    SlruSegment(&'a [u8]),
    /// The request failed; the stream goes on. May answer any request.
    Error(Cow<'a, str>),
}
