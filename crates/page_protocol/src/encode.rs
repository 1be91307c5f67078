//! Types to bytes.

use bytes::BufMut;
use pg_types::BLCKSZ;
use pg_types::RelTag;

use crate::message::{
    Payload, ProtocolVersion, Request, RequestKind, TAG_ERROR_RESPONSE, V3_HEADER,
};

/// Longest error text that is sent, in bytes; longer ones are cut at a character.
pub const MAX_ERROR_TEXT: usize = 8192;

/// Appends a request.
pub fn encode_request(version: ProtocolVersion, request: &Request, out: &mut impl BufMut) {
    out.put_u8(request.kind.tag());
    if version == ProtocolVersion::V3 {
        out.put_u64(request.request_id);
    }
    out.put_u64(request.request_lsn.0);
    out.put_u64(request.not_modified_since.0);
    put_kind(&request.kind, out);
}

/// Appends the response to `request`. The caller pairs payload and request; an SLRU payload that is not a
/// number of whole pages loses its last, incomplete page.
pub fn encode_response(
    version: ProtocolVersion,
    request: &Request,
    payload: &Payload<'_>,
    out: &mut impl BufMut,
) {
    let is_error = matches!(payload, Payload::Error(_));
    out.put_u8(if is_error { TAG_ERROR_RESPONSE } else { response_tag(payload) });
    if version == ProtocolVersion::V3 {
        out.put_u64(request.request_id);
        out.put_u64(request.request_lsn.0);
        out.put_u64(request.not_modified_since.0);
        if !is_error {
            put_kind(&request.kind, out);
        }
    }
    match payload {
        Payload::Exists(exists) => out.put_u8(u8::from(*exists)),
        Payload::Nblocks(nblocks) => out.put_u32(*nblocks),
        Payload::Page(page) => out.put_slice(page.as_slice()),
        Payload::DbSize(size) => out.put_i64(*size),
        Payload::SlruSegment(pages) => {
            let (nblocks, pages) = whole_pages(pages);
            out.put_u32(nblocks);
            out.put_slice(pages);
        }
        Payload::Error(text) => {
            out.put_slice(error_text(text).as_bytes());
            out.put_u8(0);
        }
    }
}

/// Bytes that [`encode_response`] appends, so that a frame's length can be written before its content.
pub fn response_len(version: ProtocolVersion, request: &Request, payload: &Payload<'_>) -> usize {
    let echo = match (version, payload) {
        (ProtocolVersion::V2, _) => 1,
        (ProtocolVersion::V3, Payload::Error(_)) => V3_HEADER,
        (ProtocolVersion::V3, _) => V3_HEADER + kind_len(&request.kind),
    };
    echo + match payload {
        Payload::Exists(_) => 1,
        Payload::Nblocks(_) => 4,
        Payload::Page(_) => BLCKSZ,
        Payload::DbSize(_) => 8,
        Payload::SlruSegment(pages) => 4 + whole_pages(pages).1.len(),
        Payload::Error(text) => error_text(text).len() + 1,
    }
}

fn response_tag(payload: &Payload<'_>) -> u8 {
    use crate::message as m;
    match payload {
        Payload::Exists(_) => m::TAG_EXISTS_RESPONSE,
        Payload::Nblocks(_) => m::TAG_NBLOCKS_RESPONSE,
        Payload::Page(_) => m::TAG_GET_PAGE_RESPONSE,
        Payload::DbSize(_) => m::TAG_DB_SIZE_RESPONSE,
        Payload::SlruSegment(_) => m::TAG_SLRU_SEGMENT_RESPONSE,
        Payload::Error(_) => TAG_ERROR_RESPONSE,
    }
}

fn whole_pages(pages: &[u8]) -> (u32, &[u8]) {
    let nblocks = pages.len() / BLCKSZ;
    let pages = pages.get(..nblocks * BLCKSZ).unwrap_or_default();
    (u32::try_from(nblocks).unwrap_or(u32::MAX), pages)
}

/// The part of a text that can be sent: up to the first NUL, which would end it, and bounded.
fn error_text(text: &str) -> &str {
    let text = text.split('\0').next().unwrap_or_default();
    text.get(..text.floor_char_boundary(MAX_ERROR_TEXT)).unwrap_or_default()
}

fn kind_len(kind: &RequestKind) -> usize {
    match kind {
        RequestKind::Exists(_) | RequestKind::Nblocks(_) => 13,
        RequestKind::GetPage(..) => 17,
        RequestKind::DbSize(_) => 4,
        RequestKind::SlruSegment(..) => 5,
    }
}

fn put_kind(kind: &RequestKind, out: &mut impl BufMut) {
    match kind {
        RequestKind::Exists(rel) | RequestKind::Nblocks(rel) => put_rel(rel, out),
        RequestKind::GetPage(rel, blkno) => {
            put_rel(rel, out);
            out.put_u32(*blkno);
        }
        RequestKind::DbSize(db_oid) => out.put_u32(*db_oid),
        RequestKind::SlruSegment(kind, segno) => {
            out.put_u8(kind.number());
            out.put_u32(*segno);
        }
    }
}

fn put_rel(rel: &RelTag, out: &mut impl BufMut) {
    out.put_u32(rel.locator.spc_oid);
    out.put_u32(rel.locator.db_oid);
    out.put_u32(rel.locator.rel_number);
    out.put_u8(rel.fork.number());
}
