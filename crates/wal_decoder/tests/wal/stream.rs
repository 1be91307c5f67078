//! Records out of WAL pages: positions, continuations, switches, and what must be refused.

use crate::build::{Placed, Record, Wal};
use bytes::Bytes;
use pg_types::Lsn;
use pg_types::xlog::{WAL_SEGMENT_SIZE, XLOG_BLCKSZ, segment_offset};
use proptest::prelude::*;
use wal_decoder::rmgr::{RM_LOGICALMSG_ID, RM_XLOG_ID, xlog};
use wal_decoder::stream::StreamErrorKind;
use wal_decoder::{RawRecord, StreamError, WalStream};

fn noise(len: usize) -> Record {
    Record::new(RM_LOGICALMSG_ID, 0, 7).main(&vec![0x5A; len])
}

fn read_all(start: Lsn, bytes: &[u8], piece: usize) -> Result<Vec<RawRecord>, StreamError> {
    let mut stream = WalStream::new(start);
    let mut records = Vec::new();
    for chunk in bytes.chunks(piece.max(1)) {
        stream.feed(Bytes::copy_from_slice(chunk));
        while let Some(record) = stream.poll()? {
            records.push(record);
        }
    }
    assert_eq!(stream.feed_lsn(), Lsn(start.0 + bytes.len() as u64));
    Ok(records)
}

fn places(records: &[RawRecord]) -> Vec<Placed> {
    records.iter().map(|r| Placed { start: r.start_lsn, end: r.next_lsn }).collect()
}

#[test]
fn a_record_that_ends_with_the_page_ends_at_the_boundary() {
    let start = Lsn(WAL_SEGMENT_SIZE);
    let mut wal = Wal::new(start);
    // 40 bytes of page header, then a record that fills the page: 24 + 5 + main.
    let fill = usize::try_from(XLOG_BLCKSZ).unwrap() - 40 - 24 - 5;
    let first = wal.push(&noise(fill));
    let second = wal.push(&noise(10));
    assert_eq!(first.end, Lsn(start.0 + XLOG_BLCKSZ), "EndRecPtr is before the next page's header");
    assert_eq!(second.start, Lsn(start.0 + XLOG_BLCKSZ + 24));
    let records = read_all(start, &wal.bytes, 100).unwrap();
    assert_eq!(places(&records), [first, second]);
}

#[test]
fn a_continuation_that_fills_its_page_ends_at_the_boundary() {
    let start = Lsn(WAL_SEGMENT_SIZE);
    let mut wal = Wal::new(start);
    let fill = usize::try_from(2 * XLOG_BLCKSZ).unwrap() - 40 - 24 - 24 - 5;
    let placed = wal.push(&noise(fill));
    assert_eq!(placed.end, Lsn(start.0 + 2 * XLOG_BLCKSZ));
    assert_eq!(places(&read_all(start, &wal.bytes, 5000).unwrap()), [placed]);
}

#[test]
fn a_switch_ends_at_the_next_segment() {
    let start = Lsn(2 * WAL_SEGMENT_SIZE - XLOG_BLCKSZ);
    let mut wal = Wal::new(start);
    let before = wal.push(&noise(100));
    let switch = wal.push(&Record::new(RM_XLOG_ID, xlog::XLOG_SWITCH, 0));
    wal.zeros_to_segment_end();
    let after = wal.push(&noise(20));
    assert_eq!(segment_offset(after.start), 40);
    let expected = [before, Placed { start: switch.start, end: Lsn(2 * WAL_SEGMENT_SIZE) }, after];
    for piece in [1, 7, 8192, 1 << 20] {
        assert_eq!(places(&read_all(start, &wal.bytes, piece).unwrap()), expected);
    }
}

#[test]
fn an_overwritten_record_must_be_explained() {
    for honest in [true, false] {
        let start = Lsn(WAL_SEGMENT_SIZE);
        let mut wal = Wal::new(start);
        let first = wal.push(&noise(100));
        let lost = noise(20_000).encode(first.start);
        while !wal.lsn().is_aligned() {
            wal.bytes.push(0);
        }
        let lost_at = wal.lsn();
        wal.push_part(&lost, 8192);
        wal.overwrite_contrecord();
        let named = if honest { lost_at } else { Lsn(lost_at.0 + 8) };
        let mut main = named.0.to_le_bytes().to_vec();
        main.extend(0u64.to_le_bytes());
        let explained =
            wal.push(&Record::new(RM_XLOG_ID, xlog::XLOG_OVERWRITE_CONTRECORD, 0).main(&main));
        let result = read_all(start, &wal.bytes, 3000);
        if honest {
            assert_eq!(places(&result.unwrap()), [first, explained]);
        } else {
            let kind = StreamErrorKind::UnexplainedOverwrite { record: lost_at };
            assert_eq!(result.unwrap_err().kind, kind);
        }
    }
}

#[test]
fn an_error_stays() {
    let start = Lsn(WAL_SEGMENT_SIZE);
    let mut wal = Wal::new(start);
    let placed = wal.push(&noise(100));
    let last = wal.bytes.len() - 1;
    wal.bytes[last] ^= 1;
    let mut stream = WalStream::new(start);
    stream.feed(Bytes::from(wal.bytes));
    let error = stream.poll().unwrap_err();
    assert_eq!(error.lsn, placed.start);
    assert!(matches!(error.kind, StreamErrorKind::Crc { .. }), "{error}");
    assert_eq!(stream.poll(), Err(error));
}

#[test]
fn a_wrong_previous_link_is_refused() {
    let start = Lsn(WAL_SEGMENT_SIZE);
    let mut wal = Wal::new(start);
    let first = wal.push(&noise(8));
    wal.prev = Lsn(first.start.0 - 8);
    let second = wal.push(&noise(8));
    let error = read_all(start, &wal.bytes, 8192).unwrap_err();
    assert_eq!(error.lsn, second.start);
    let kind = StreamErrorKind::PrevLink { found: Lsn(first.start.0 - 8), expected: first.start };
    assert_eq!(error.kind, kind);

    let mut lenient = WalStream::new(start).without_prev_check();
    lenient.feed(Bytes::from(wal.bytes));
    assert_eq!(lenient.poll().unwrap().map(|r| r.start_lsn), Some(first.start));
    assert_eq!(lenient.poll().unwrap().map(|r| r.start_lsn), Some(second.start));
}

#[test]
fn wal_of_another_timeline_or_cluster_is_refused() {
    let start = Lsn(WAL_SEGMENT_SIZE);
    let mut wal = Wal::new(start);
    wal.push(&noise(usize::try_from(WAL_SEGMENT_SIZE).unwrap()));
    let mut promoted = wal.bytes.clone();
    promoted[8192 + 4] = 2;
    assert_eq!(
        read_all(start, &promoted, 8192).unwrap_err().kind,
        StreamErrorKind::Timeline { found: 2 }
    );
    let mut foreign = wal.bytes;
    foreign[usize::try_from(WAL_SEGMENT_SIZE).unwrap() + 24] ^= 1;
    assert!(matches!(
        read_all(start, &foreign, 8192).unwrap_err().kind,
        StreamErrorKind::SystemIdentifier { expected: 0xABCD, .. }
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_written_is_read_in_pieces_of_any_size(
        sizes in proptest::collection::vec(0usize..30_000, 1..20),
        start_page in 0u64..2048,
        piece in 1usize..40_000,
    ) {
        let start = Lsn(WAL_SEGMENT_SIZE + start_page * XLOG_BLCKSZ);
        let mut wal = Wal::new(start);
        let expected: Vec<Placed> = sizes.iter().map(|size| wal.push(&noise(*size))).collect();
        let records = read_all(start, &wal.bytes, piece).unwrap();
        prop_assert_eq!(places(&records), expected);
        for (record, size) in records.iter().zip(&sizes) {
            let decoded = wal_decoder::DecodedRecord::decode(record).unwrap();
            prop_assert_eq!(decoded.main_data().len(), *size);
        }
    }

    #[test]
    fn any_bytes_end_in_records_or_an_error(bytes: Vec<u8>, start: u64, piece in 1usize..64) {
        let mut stream = WalStream::new(Lsn(start));
        for chunk in bytes.chunks(piece) {
            stream.feed(Bytes::copy_from_slice(chunk));
            while let Ok(Some(_)) = stream.poll() {}
        }
    }

    #[test]
    fn a_flipped_bit_never_yields_another_record(at in 0usize..16_384, bit in 0u8..8) {
        let start = Lsn(WAL_SEGMENT_SIZE);
        let mut wal = Wal::new(start);
        for size in [10, 300, 9000, 5, 4000] {
            wal.push(&noise(size));
        }
        let honest = read_all(start, &wal.bytes, 8192).unwrap();
        let mut broken = wal.bytes.clone();
        let at = at % broken.len();
        broken[at] ^= 1 << bit;
        let mut stream = WalStream::new(start);
        stream.feed(Bytes::from(broken));
        let mut count = 0;
        while let Ok(Some(record)) = stream.poll() {
            prop_assert_eq!(&record, &honest[count]);
            count += 1;
        }
    }
}
