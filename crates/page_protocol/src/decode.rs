//! Bytes to types. Total: any input gives a value or a [`DecodeError`].

use std::borrow::Cow;

use pg_types::slru::SLRU_PAGES_PER_SEGMENT;
use pg_types::{BLCKSZ, ForkNumber, Lsn, RelFileLocator, RelTag, SlruKind};

use crate::error::DecodeError;
use crate::message::{self as m, Payload, ProtocolVersion, Request, RequestKind};

/// Cursor over one payload.
struct Reader<'a> {
    what: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(what: &'static str, bytes: &'a [u8]) -> Reader<'a> {
        Reader { what, bytes, at: 0 }
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    fn truncated(&self, field: &'static str, need: usize) -> DecodeError {
        DecodeError::Truncated { what: self.what, field, at: self.at, need, len: self.bytes.len() }
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<&'a [u8; N], DecodeError> {
        let array = self.rest().first_chunk::<N>().ok_or_else(|| self.truncated(field, N))?;
        self.at += N;
        Ok(array)
    }

    fn slice(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], DecodeError> {
        let slice = self.rest().get(..len).ok_or_else(|| self.truncated(field, len))?;
        self.at += len;
        Ok(slice)
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(field).map(|[byte]| *byte)
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(|b| u32::from_be_bytes(*b))
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(|b| u64::from_be_bytes(*b))
    }

    fn bad(&self, field: &'static str, value: impl Into<u64>) -> DecodeError {
        DecodeError::BadValue { what: self.what, field, value: value.into() }
    }

    fn rel(&mut self) -> Result<RelTag, DecodeError> {
        let locator = RelFileLocator {
            spc_oid: self.u32("spc_oid")?,
            db_oid: self.u32("db_oid")?,
            rel_number: self.u32("rel_number")?,
        };
        let fork = self.u8("fork")?;
        let fork =
            ForkNumber::from_number(u32::from(fork)).ok_or_else(|| self.bad("fork", fork))?;
        Ok(locator.fork(fork))
    }

    fn end(&self) -> Result<(), DecodeError> {
        match self.rest().len() {
            0 => Ok(()),
            extra => Err(DecodeError::TrailingBytes { what: self.what, at: self.at, extra }),
        }
    }
}

/// Decodes a request, as the page server receives it.
///
/// # Errors
/// [`DecodeError`] for anything that no [`crate::encode_request`] makes. The stream is then out of step.
pub fn decode_request(version: ProtocolVersion, bytes: &[u8]) -> Result<Request, DecodeError> {
    let mut r = Reader::new("page request", bytes);
    let tag = r.u8("tag")?;
    if tag > m::TAG_SLRU_SEGMENT {
        return Err(DecodeError::UnknownTag { what: r.what, tag });
    }
    let request_id = match version {
        ProtocolVersion::V2 => 0,
        ProtocolVersion::V3 => r.u64("request_id")?,
    };
    let request_lsn = Lsn(r.u64("request_lsn")?);
    let not_modified_since = Lsn(r.u64("not_modified_since")?);
    let kind = match tag {
        m::TAG_EXISTS => RequestKind::Exists(r.rel()?),
        m::TAG_NBLOCKS => RequestKind::Nblocks(r.rel()?),
        m::TAG_GET_PAGE => RequestKind::GetPage(r.rel()?, r.u32("block")?),
        m::TAG_DB_SIZE => RequestKind::DbSize(r.u32("db_oid")?),
        _ => {
            let number = r.u8("slru")?;
            let kind =
                SlruKind::from_number(u32::from(number)).ok_or_else(|| r.bad("slru", number))?;
            RequestKind::SlruSegment(kind, r.u32("segno")?)
        }
    };
    r.end()?;
    Ok(Request { request_id, request_lsn, not_modified_since, kind })
}

/// Decodes the response to `request`, as the compute receives it. Responses come in the order of requests, so
/// `request` is the oldest one without a response; version 3 lets this function prove it.
///
/// # Errors
/// [`DecodeError::Mismatch`] when the response answers another request; other variants for what is no response.
/// After any error the connection must be closed.
pub fn decode_response<'a>(
    version: ProtocolVersion,
    bytes: &'a [u8],
    request: &Request,
) -> Result<Payload<'a>, DecodeError> {
    let mut r = Reader::new("page response", bytes);
    let tag = r.u8("tag")?;
    if !(m::TAG_EXISTS_RESPONSE..=m::TAG_SLRU_SEGMENT_RESPONSE).contains(&tag) {
        return Err(DecodeError::UnknownTag { what: r.what, tag });
    }
    if version == ProtocolVersion::V3 {
        matches("request_id", request.request_id, r.u64("request_id")?)?;
        matches("request_lsn", request.request_lsn.0, r.u64("request_lsn")?)?;
        let since = r.u64("not_modified_since")?;
        matches("not_modified_since", request.not_modified_since.0, since)?;
    }
    if tag == m::TAG_ERROR_RESPONSE {
        return error_text(&mut r);
    }
    matches("tag", u64::from(request.kind.response_tag()), u64::from(tag))?;
    if version == ProtocolVersion::V3 {
        check_echo(&request.kind, &mut r)?;
    }
    let payload = payload(&request.kind, &mut r)?;
    r.end()?;
    Ok(payload)
}

fn matches(field: &'static str, expected: u64, got: u64) -> Result<(), DecodeError> {
    if expected == got { Ok(()) } else { Err(DecodeError::Mismatch { field, expected, got }) }
}

fn error_text<'a>(r: &mut Reader<'a>) -> Result<Payload<'a>, DecodeError> {
    let rest = r.rest();
    let len = rest.iter().position(|byte| *byte == 0).ok_or_else(|| {
        r.at = r.bytes.len();
        r.truncated("end of text", 1)
    })?;
    let text = r.slice("text", len)?;
    r.u8("end of text")?;
    r.end()?;
    Ok(Payload::Error(match String::from_utf8_lossy(text) {
        Cow::Borrowed(text) => Cow::Borrowed(text),
        Cow::Owned(text) => Cow::Owned(text),
    }))
}

fn check_rel(expected: &RelTag, r: &mut Reader<'_>) -> Result<(), DecodeError> {
    let l = expected.locator;
    matches("spc_oid", u64::from(l.spc_oid), u64::from(r.u32("spc_oid")?))?;
    matches("db_oid", u64::from(l.db_oid), u64::from(r.u32("db_oid")?))?;
    matches("rel_number", u64::from(l.rel_number), u64::from(r.u32("rel_number")?))?;
    matches("fork", u64::from(expected.fork.number()), u64::from(r.u8("fork")?))
}

fn check_echo(kind: &RequestKind, r: &mut Reader<'_>) -> Result<(), DecodeError> {
    match kind {
        RequestKind::Exists(rel) | RequestKind::Nblocks(rel) => check_rel(rel, r),
        RequestKind::GetPage(rel, blkno) => {
            check_rel(rel, r)?;
            matches("block", u64::from(*blkno), u64::from(r.u32("block")?))
        }
        RequestKind::DbSize(db_oid) => {
            matches("db_oid", u64::from(*db_oid), u64::from(r.u32("db_oid")?))
        }
        RequestKind::SlruSegment(kind, segno) => {
            matches("slru", u64::from(kind.number()), u64::from(r.u8("slru")?))?;
            matches("segno", u64::from(*segno), u64::from(r.u32("segno")?))
        }
    }
}

fn payload<'a>(kind: &RequestKind, r: &mut Reader<'a>) -> Result<Payload<'a>, DecodeError> {
    Ok(match kind {
        RequestKind::Exists(_) => match r.u8("exists")? {
            0 => Payload::Exists(false),
            1 => Payload::Exists(true),
            other => return Err(r.bad("exists", other)),
        },
        RequestKind::Nblocks(_) => Payload::Nblocks(r.u32("nblocks")?),
        RequestKind::GetPage(..) => Payload::Page(r.array::<BLCKSZ>("page")?),
        RequestKind::DbSize(_) => Payload::DbSize(i64::from_be_bytes(*r.array("size")?)),
        RequestKind::SlruSegment(..) => {
            let nblocks = r.u32("nblocks")?;
            let len = usize::try_from(nblocks)
                .ok()
                .filter(|_| nblocks <= SLRU_PAGES_PER_SEGMENT)
                .ok_or_else(|| r.bad("nblocks", nblocks))?;
            Payload::SlruSegment(r.slice("pages", len * BLCKSZ)?)
        }
    })
}
