//! The WAL segment that a server starts with: page headers, and for a full backup one record. Bytes only.
//!
//! ```text
//!  segment start            page of the start LSN                     next page, when the record reaches it
//!  ┌────────────┬───────┬───────────────────────┬───────────────┬───┬──────────────────────┬────────────┐
//!  │long header │ zeros │ header, CONTRECORD,   │ zeros         │ R │ header, CONTRECORD,  │ rest of R  │ zeros
//!  │            │       │ rem_len up to the LSN │               │   │ rem_len = rest of R  │            │
//!  └────────────┴───────┴───────────────────────┴───────────────┴───┴──────────────────────┴────────────┘
//!                                               start LSN ──────┘
//! ```
//!
//! The header of the start LSN's page says that a record continues up to the LSN, so that every reader
//! (`XLogFindNextRecord`) finds the next one there, though what continues is zeros.

use pg_types::xlog::{
    WAL_SEGMENT_SIZE, XLOG_BLCKSZ, XLOG_PAGE_MAGIC, XLP_FIRST_IS_CONTRECORD, XLP_LONG_HEADER,
    page_header_size, page_offset, segment_file_name, segment_number, segment_offset,
    segment_start,
};
use pg_types::{Lsn, PG_TLI};

/// The segments, by name: the one of `start_lsn`, and the next one if `record` reaches it. `start_lsn` is a place
/// where a record can start; `record` stands there.
pub(super) fn segments(
    start_lsn: Lsn,
    system_identifier: u64,
    record: &[u8],
) -> Vec<(String, Vec<u8>)> {
    let mut wal = Wal::new(segment_number(start_lsn), system_identifier);
    let page_start = Lsn(start_lsn.0 - page_offset(start_lsn));
    let before = page_offset(start_lsn).saturating_sub(page_header_size(page_start));
    wal.page_header(wal.start, 0);
    wal.page_header(page_start, before);
    wal.write(start_lsn, record);
    wal.into_segments()
}

/// Segments under construction.
struct Wal {
    segno: u64,
    start: Lsn,
    bytes: Vec<u8>,
    system_identifier: u64,
}

impl Wal {
    fn new(segno: u64, system_identifier: u64) -> Wal {
        let start = segment_start(segno);
        Wal { segno, start, bytes: vec![0; to_usize(WAL_SEGMENT_SIZE)], system_identifier }
    }

    /// `XLogPageHeaderData`, with the fields of `XLogLongPageHeaderData` at the start of a segment.
    fn page_header(&mut self, page_start: Lsn, rem_len: u64) {
        let long = segment_offset(page_start) == 0;
        let continues = if rem_len > 0 { XLP_FIRST_IS_CONTRECORD } else { 0 };
        let info = continues | if long { XLP_LONG_HEADER } else { 0 };
        let mut header = Vec::new();
        header.extend_from_slice(&XLOG_PAGE_MAGIC.to_le_bytes());
        header.extend_from_slice(&info.to_le_bytes());
        header.extend_from_slice(&PG_TLI.to_le_bytes());
        header.extend_from_slice(&page_start.0.to_le_bytes());
        header.extend_from_slice(&to_u32(rem_len).to_le_bytes());
        header.extend_from_slice(&[0; 4]);
        if long {
            header.extend_from_slice(&self.system_identifier.to_le_bytes());
            header.extend_from_slice(&to_u32(WAL_SEGMENT_SIZE).to_le_bytes());
            header.extend_from_slice(&to_u32(XLOG_BLCKSZ).to_le_bytes());
        }
        self.put(page_start, &header);
    }

    /// Writes a record over as many pages as it needs.
    fn write(&mut self, start_lsn: Lsn, record: &[u8]) {
        let (mut at, mut rest) = (start_lsn, record);
        while !rest.is_empty() {
            if page_offset(at) == 0 {
                self.page_header(at, rest.len() as u64);
                at += page_header_size(at);
            }
            let room = to_usize(XLOG_BLCKSZ - page_offset(at));
            let (part, later) = rest.split_at(room.min(rest.len()));
            self.put(at, part);
            at += part.len() as u64;
            rest = later;
        }
    }

    fn put(&mut self, at: Lsn, bytes: &[u8]) {
        let offset = to_usize(at - self.start);
        let end = offset + bytes.len();
        if end > self.bytes.len() {
            let size = to_usize(WAL_SEGMENT_SIZE);
            self.bytes.resize(end.next_multiple_of(size), 0);
        }
        self.bytes[offset..end].copy_from_slice(bytes);
    }

    fn into_segments(self) -> Vec<(String, Vec<u8>)> {
        let numbers = self.segno..;
        let segments = self.bytes.chunks(to_usize(WAL_SEGMENT_SIZE));
        numbers
            .zip(segments)
            .map(|(segno, bytes)| (segment_file_name(PG_TLI, segno), bytes.to_vec()))
            .collect()
    }
}

/// For sizes within two segments.
fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// For sizes within a segment.
fn to_u32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::basebackup::PrevLsn;
    use crate::basebackup::control::checkpoint_record;
    use bytes::Bytes;
    use pg_types::xlog::normalize;
    use proptest::prelude::*;
    use wal_decoder::{CheckPoint, DecodedRecord, WalStream, page_header};

    const SYSTEM_IDENTIFIER: u64 = 0x0102_0304_0506_0708;

    /// Positions near the boundaries of pages and segments, and anywhere.
    fn position() -> impl Strategy<Value = Lsn> {
        let near =
            (1_u64..5000, prop_oneof![Just(XLOG_BLCKSZ), Just(WAL_SEGMENT_SIZE)], 0_u64..300)
                .prop_map(|(count, size, back)| (count * size + 150).saturating_sub(back));
        prop_oneof![near, WAL_SEGMENT_SIZE..1 << 40]
            .prop_map(|value| normalize(Lsn(value)))
            .prop_filter("inside a page header", |lsn| {
                page_offset(*lsn) >= page_header_size(Lsn(lsn.0 - page_offset(*lsn)))
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn every_reader_finds_the_start(start_lsn in position()) {
            let segments = segments(start_lsn, SYSTEM_IDENTIFIER, &[]);
            prop_assert_eq!(segments.len(), 1);
            let (name, bytes) = &segments[0];
            prop_assert_eq!(name, &segment_file_name(PG_TLI, segment_number(start_lsn)));
            let first = page_header::parse(bytes, segment_start(segment_number(start_lsn))).unwrap();
            prop_assert_eq!(first.system_identifier, Some(SYSTEM_IDENTIFIER));
            let offset = to_usize(segment_offset(start_lsn));
            let page = offset - to_usize(page_offset(start_lsn));
            let page_start = Lsn(start_lsn.0 - page_offset(start_lsn));
            let header = page_header::parse(&bytes[page..], page_start).unwrap();
            // XLogFindNextRecord: behind the header and what continues, aligned.
            let found = page + page_header::size_at(page_start) + header.rem_len as usize;
            prop_assert_eq!(found.next_multiple_of(8), offset);
            prop_assert_eq!(header.is_contrecord(), header.rem_len > 0);
            prop_assert!(bytes[offset..].iter().all(|byte| *byte == 0));
        }

        #[test]
        fn the_record_is_read_back_wherever_it_stands(start_lsn in position(), known: bool) {
            let prev = if known { PrevLsn::Known(Lsn(start_lsn.0 - 64)) } else { PrevLsn::None };
            let checkpoint = CheckPoint { redo: start_lsn, this_tli: 1, prev_tli: 1, next_xid: 7, ..CheckPoint::default() };
            let record = checkpoint_record(&checkpoint, prev);
            let segments = segments(start_lsn, SYSTEM_IDENTIFIER, &record);
            let wal: Vec<u8> = segments.into_iter().flat_map(|(_, bytes)| bytes).collect();
            let mut stream = WalStream::new(start_lsn);
            let from = stream.feed_lsn() - segment_start(segment_number(start_lsn));
            stream.feed(Bytes::from(wal).slice(to_usize(from)..));
            let raw = stream.poll().unwrap().unwrap();
            prop_assert_eq!(raw.start_lsn, start_lsn);
            let decoded = DecodedRecord::decode(&raw).unwrap();
            prop_assert_eq!(decoded.prev_lsn, if known { Lsn(start_lsn.0 - 64) } else { Lsn(0) });
            prop_assert_eq!(CheckPoint::decode(decoded.main_data()), Ok(checkpoint));
        }
    }
}
