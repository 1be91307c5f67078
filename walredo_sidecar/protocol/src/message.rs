//! The four messages.

use pg_types::page::Page;
use pg_types::{BLCKSZ, Lsn};

use crate::tag::{BUFFER_TAG_SIZE, BufferTag, UnknownFork};

/// Type byte and length.
pub const HEADER_SIZE: usize = 5;
const LENGTH_SIZE: usize = 4;
const LSN_SIZE: usize = 8;
/// Longest WAL record that is passed on. Postgres' own limit (`XLogRecordMaxSize`) is 1020 MiB; the redo
/// process needs twice the record in memory and runs under a memory limit.
pub const MAX_RECORD_SIZE: usize = 256 << 20;

const BEGIN: u8 = b'B';
const PUSH: u8 = b'P';
const APPLY: u8 = b'A';
const GET: u8 = b'G';

/// One message of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A new request for this page; whatever the last one left is forgotten.
    Begin(BufferTag),
    /// The page's content before the first record.
    Push(BufferTag, &'a Page),
    /// A WAL record to apply; records come in WAL order.
    Apply {
        /// End of the record, rounded up to the start of the next one: what redo stamps on the page.
        end_lsn: Lsn,
        /// `xl_tot_len` bytes.
        record: &'a [u8],
    },
    /// Answer with the page.
    Get(BufferTag),
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// No such type.
    #[error("unknown redo message type 0x{0:02X}")]
    Type(u8),
    /// The length does not fit the type.
    #[error("redo message '{}' has impossible length {length}", char::from(*.kind))]
    Length {
        /// Type byte.
        kind: u8,
        /// Length field.
        length: u32,
    },
    /// A tag that names no page.
    #[error(transparent)]
    Tag(#[from] UnknownFork),
}

/// Bytes of the whole message that starts with `header`; checks type and length, so that a reader never
/// waits for, or makes room for, more than a message can have.
pub fn frame_size(header: [u8; HEADER_SIZE]) -> Result<usize, MessageError> {
    let [kind, a, b, c, d] = header;
    let length = u32::from_be_bytes([a, b, c, d]);
    let size = usize::try_from(length).map_err(|_| MessageError::Length { kind, length })?;
    let fits = match kind {
        BEGIN | GET => size == LENGTH_SIZE + BUFFER_TAG_SIZE,
        PUSH => size == LENGTH_SIZE + BUFFER_TAG_SIZE + BLCKSZ,
        APPLY => {
            (LENGTH_SIZE + LSN_SIZE..=LENGTH_SIZE + LSN_SIZE + MAX_RECORD_SIZE).contains(&size)
        }
        unknown => return Err(MessageError::Type(unknown)),
    };
    if fits { Ok(size + 1) } else { Err(MessageError::Length { kind, length }) }
}

/// The message at the start of `input` and the bytes it takes; `None` when it is not complete yet.
pub fn parse(input: &[u8]) -> Result<Option<(Message<'_>, usize)>, MessageError> {
    let Some(header) = input.first_chunk() else { return Ok(None) };
    let size = frame_size(*header)?;
    let [kind, length @ ..] = *header;
    let malformed = MessageError::Length { kind, length: u32::from_be_bytes(length) };
    let Some(body) = input.get(HEADER_SIZE..size) else { return Ok(None) };
    let message = match kind {
        BEGIN => Message::Begin(tag(body).ok_or(malformed)??.0),
        GET => Message::Get(tag(body).ok_or(malformed)??.0),
        PUSH => {
            let (tag, page) = tag(body).ok_or(malformed)??;
            Message::Push(tag, page.try_into().map_err(|_| malformed)?)
        }
        _ => {
            let (lsn, record) = body.split_first_chunk().ok_or(malformed)?;
            Message::Apply { end_lsn: Lsn(u64::from_be_bytes(*lsn)), record }
        }
    };
    Ok(Some((message, size)))
}

fn tag(body: &[u8]) -> Option<Result<(BufferTag, &[u8]), UnknownFork>> {
    let (tag, rest) = body.split_first_chunk()?;
    Some(BufferTag::from_bytes(*tag).map(|tag| (tag, rest)))
}

fn put_header(buf: &mut Vec<u8>, kind: u8, payload: usize) {
    // Callers keep to MAX_RECORD_SIZE, so the sum fits; saturation makes the receiver refuse anything else.
    let length = u32::try_from(LENGTH_SIZE + payload).unwrap_or(u32::MAX);
    buf.push(kind);
    buf.extend_from_slice(&length.to_be_bytes());
}

/// Appends 'B' (L091).
pub fn put_begin(buf: &mut Vec<u8>, tag: BufferTag) {
    put_header(buf, BEGIN, BUFFER_TAG_SIZE);
    buf.extend_from_slice(&tag.to_bytes());
}

/// Appends 'P' (L092).
pub fn put_push(buf: &mut Vec<u8>, tag: BufferTag, page: &Page) {
    put_header(buf, PUSH, BUFFER_TAG_SIZE + BLCKSZ);
    buf.extend_from_slice(&tag.to_bytes());
    buf.extend_from_slice(page);
}

/// Appends 'A' (L094). The receiver refuses records longer than [`MAX_RECORD_SIZE`].
pub fn put_apply(buf: &mut Vec<u8>, end_lsn: Lsn, record: &[u8]) {
    put_header(buf, APPLY, LSN_SIZE + record.len());
    buf.extend_from_slice(&end_lsn.0.to_be_bytes());
    buf.extend_from_slice(record);
}

/// Appends 'G' (L095).
pub fn put_get(buf: &mut Vec<u8>, tag: BufferTag) {
    put_header(buf, GET, BUFFER_TAG_SIZE);
    buf.extend_from_slice(&tag.to_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg_types::{ForkNumber, RelFileLocator};
    use proptest::prelude::*;

    fn any_tag() -> impl Strategy<Value = BufferTag> {
        (0u32..4, any::<[u32; 4]>()).prop_map(|(fork, [spc_oid, db_oid, rel_number, blkno])| {
            let fork = ForkNumber::from_number(fork).unwrap();
            let locator = RelFileLocator { spc_oid, db_oid, rel_number };
            BufferTag { rel: locator.fork(fork), blkno }
        })
    }

    #[test]
    fn golden_bytes() {
        let locator = RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: 16384 };
        let tag = BufferTag { rel: locator.fork(ForkNumber::Main), blkno: 7 };
        let tag_bytes = [0, 0, 0, 6, 0x7F, 0, 0, 0, 5, 0, 0, 0x40, 0, 0, 0, 0, 7];
        let mut buf = Vec::new();
        put_begin(&mut buf, tag);
        assert_eq!(buf[..5], [b'B', 0, 0, 0, 21]);
        assert_eq!(buf[5..], tag_bytes);

        buf.clear();
        let page = [0xAB; BLCKSZ];
        put_push(&mut buf, tag, &page);
        assert_eq!(buf[..5], [b'P', 0, 0, 0x20, 21]);
        assert_eq!(buf[5..22], tag_bytes);
        assert_eq!(buf[22..], page);

        buf.clear();
        put_apply(&mut buf, Lsn(0x0102_0304_0506_0708), b"wal");
        assert_eq!(buf, b"A\0\0\0\x0F\x01\x02\x03\x04\x05\x06\x07\x08wal");

        buf.clear();
        put_get(&mut buf, tag);
        assert_eq!(buf[..5], [b'G', 0, 0, 0, 21]);
        assert_eq!(buf[5..], tag_bytes);
    }

    #[test]
    fn impossible_lengths_are_refused_at_the_header() {
        assert_eq!(frame_size(*b"X\0\0\0\x15"), Err(MessageError::Type(b'X')));
        let huge = frame_size(*b"A\xFF\xFF\xFF\xFF");
        assert_eq!(huge, Err(MessageError::Length { kind: b'A', length: u32::MAX }));
        for header in [*b"B\0\0\0\x14", *b"G\0\0\0\x16", *b"P\0\0\0\x15", *b"A\0\0\0\x0B"] {
            assert!(frame_size(header).is_err());
        }
    }

    proptest! {
        #[test]
        fn written_messages_read_back(tag in any_tag(), lsn: u64, record in proptest::collection::vec(any::<u8>(), 0..300), fill: u8) {
            let page = [fill; BLCKSZ];
            let mut buf = Vec::new();
            put_begin(&mut buf, tag);
            put_push(&mut buf, tag, &page);
            put_apply(&mut buf, Lsn(lsn), &record);
            put_get(&mut buf, tag);
            let mut rest = buf.as_slice();
            for expected in [
                Message::Begin(tag),
                Message::Push(tag, &page),
                Message::Apply { end_lsn: Lsn(lsn), record: &record },
                Message::Get(tag),
            ] {
                prop_assert_eq!(parse(&rest[..rest.len().min(HEADER_SIZE)]), Ok(None));
                let (message, size) = parse(rest).unwrap().unwrap();
                prop_assert_eq!(message, expected);
                rest = &rest[size..];
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn any_bytes_parse_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..64), kind in prop::sample::select(b"BPAGx".to_vec())) {
            let mut bytes = bytes;
            let _ = parse(&bytes);
            if let Some(first) = bytes.first_mut() { *first = kind; }
            if let Ok(Some((_, size))) = parse(&bytes) {
                prop_assert!(size <= bytes.len());
            }
        }
    }
}
