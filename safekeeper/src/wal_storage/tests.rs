use std::fs;
use std::os::unix::fs::FileExt;

use super::wal_builder::WalBuilder;
use super::*;
use proptest::prelude::*;

const START: Lsn = Lsn(0x100_0028);

fn empty(dir: &Path, start: Lsn) -> WalStorage {
    let mut wal = WalStorage::new(dir, EndOfWal { flush_lsn: start, last_record_lsn: None });
    wal.truncate(start).unwrap();
    wal
}

/// Writes in pieces of odd sizes.
fn write_all(wal: &mut WalStorage, bytes: &[u8], piece: usize) {
    for chunk in bytes.chunks(piece) {
        wal.write(Bytes::copy_from_slice(chunk)).unwrap();
    }
}

fn known(start: Lsn, commit: Lsn) -> Known {
    Known { local_start_lsn: start, removal_horizon: Lsn(0), commit_lsn: commit }
}

fn segment_path(dir: &Path, segno: u64) -> std::path::PathBuf {
    let partial = segment::partial_path(dir, segno);
    if partial.exists() { partial } else { segment::complete_path(dir, segno) }
}

fn many_records(start: Lsn, until: u64) -> WalBuilder {
    let mut builder = WalBuilder::new(start);
    let mut seed = 0u8;
    while builder.end_lsn() < start + until {
        seed = seed.wrapping_add(1);
        builder.record(
            usize::from(seed) * 37 + if seed.is_multiple_of(64) { 40_000 } else { 0 },
            seed,
        );
    }
    builder
}

#[test]
fn flush_reports_ends_of_whole_records_only() {
    // P1 of the facts: a flush position inside a record would make the next leader start there.
    let dir = tempfile::tempdir().unwrap();
    let mut wal = empty(dir.path(), START);
    let mut builder = WalBuilder::new(START);
    let first = builder.record(100, 1);
    let second = builder.record(20_000, 2);
    let middle = Lsn(second.0 - 9000);
    wal.write(Bytes::copy_from_slice(builder.slice(START, middle))).unwrap();
    assert_eq!(wal.flush().unwrap(), Flushed { flush_lsn: first, synced_lsn: middle });
    wal.write(Bytes::copy_from_slice(builder.slice(middle, second))).unwrap();
    assert_eq!(wal.flush().unwrap(), Flushed { flush_lsn: second, synced_lsn: second });
}

#[test]
fn the_end_of_a_switched_segment_counts_when_it_has_arrived() {
    let dir = tempfile::tempdir().unwrap();
    let mut wal = empty(dir.path(), START);
    let mut builder = WalBuilder::new(START);
    let before = builder.record(10, 1);
    let switched = builder.switch();
    let middle = Lsn(switched.0 - 5000);
    write_all(&mut wal, builder.slice(START, middle), 128 * 1024);
    assert_eq!(wal.flush().unwrap().flush_lsn, before);
    wal.write(Bytes::copy_from_slice(builder.slice(middle, switched))).unwrap();
    assert_eq!(wal.flush().unwrap().flush_lsn, switched);
    let next = builder.record(10, 2);
    wal.write(Bytes::copy_from_slice(builder.slice(switched, next))).unwrap();
    assert_eq!(wal.flush().unwrap().flush_lsn, next);
    let end = find_end_of_wal(dir.path(), known(START, before)).unwrap();
    assert_eq!(end.flush_lsn, next);
}

#[test]
fn segments_get_their_names_and_are_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut wal = empty(dir.path(), START);
    let builder = many_records(START, 2 * WAL_SEGMENT_SIZE + 100_000);
    write_all(&mut wal, builder.bytes(), 100_003);
    wal.flush().unwrap();
    for (segno, complete) in [(1, true), (2, true), (3, false)] {
        assert_eq!(segment::complete_path(dir.path(), segno).exists(), complete, "{segno}");
        assert_eq!(segment::partial_path(dir.path(), segno).exists(), !complete, "{segno}");
    }
    let mut reader = WalReader::new(dir.path(), Arc::default());
    let mut read = Vec::new();
    while read.len() < builder.bytes().len() {
        let at = START + read.len() as u64;
        read.extend_from_slice(
            &reader.read(at, 200_000.min(builder.bytes().len() - read.len())).unwrap(),
        );
    }
    assert!(read == builder.bytes());
    assert!(matches!(reader.read(Lsn(0x900_0000), 1), Err(ReadError::Removed(_))));
    // Deletion keeps the segment of the horizon.
    assert_eq!(wal.remove_below(segment_start(3)).unwrap(), 2);
    assert_eq!(wal.remove_below(segment_start(3)).unwrap(), 0);
    assert_eq!(oldest_wal(dir.path()).unwrap(), Some(segment_start(3)));
    assert!(matches!(
        WalReader::new(dir.path(), Arc::default()).read(START, 8),
        Err(ReadError::Removed(_))
    ));
}

#[test]
fn truncation_removes_zeroes_and_allows_another_history() {
    let dir = tempfile::tempdir().unwrap();
    let mut wal = empty(dir.path(), START);
    let old = many_records(START, 2 * WAL_SEGMENT_SIZE);
    write_all(&mut wal, old.bytes(), 1 << 20);
    wal.flush().unwrap();
    let cut = old.ends[old.ends.len() / 4];
    wal.truncate(cut).unwrap();
    // A crash right here finds the cut, and nothing of the old history behind it.
    assert_eq!(find_end_of_wal(dir.path(), known(START, START)).unwrap().flush_lsn, cut);
    let mut new = old.fork_at(cut);
    let end = new.record(5000, 99);
    wal.write(Bytes::copy_from_slice(new.slice(cut, end))).unwrap();
    assert_eq!(wal.flush().unwrap(), Flushed { flush_lsn: end, synced_lsn: end });
    drop(wal);
    assert_eq!(find_end_of_wal(dir.path(), known(START, cut)).unwrap().flush_lsn, end);
    // At a segment boundary there is nothing to zero.
    let mut wal = WalStorage::new(dir.path(), EndOfWal { flush_lsn: end, last_record_lsn: None });
    wal.truncate(segment_start(2)).unwrap();
    assert_eq!(segment::numbers(dir.path()).unwrap(), [1]);
}

#[test]
fn bytes_that_are_no_wal_are_never_flushed_positions() {
    let dir = tempfile::tempdir().unwrap();
    let mut wal = empty(dir.path(), START);
    let mut builder = WalBuilder::new(START);
    let good = builder.record(100, 1);
    builder.record(100, 2);
    let mut bytes = builder.bytes().to_vec();
    let at = usize::try_from(good - START).unwrap() + 60;
    bytes[at] ^= 1;
    wal.write(Bytes::from(bytes)).unwrap();
    assert_eq!(wal.flush().unwrap().flush_lsn, good);
    assert!(wal.invalid_wal().unwrap().to_string().contains("CRC"));
    wal.truncate(good).unwrap();
    assert_eq!(wal.invalid_wal(), None);
}

#[test]
fn missing_and_damaged_committed_wal_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let mut wal = empty(dir.path(), START);
    let builder = many_records(START, 2 * WAL_SEGMENT_SIZE + 5_000_000);
    write_all(&mut wal, builder.bytes(), 1 << 20);
    wal.flush().unwrap();
    drop(wal);
    let end = builder.end_lsn();
    assert_eq!(find_end_of_wal(dir.path(), known(START, end)).unwrap().flush_lsn, end);
    // In the segment of the commit position, before that position.
    let file = fs::OpenOptions::new()
        .write(true)
        .open(segment_path(dir.path(), segment_number(end)))
        .unwrap();
    file.write_all_at(b"damage", segment_offset(end) / 2).unwrap();
    let error = find_end_of_wal(dir.path(), known(START, end)).unwrap_err();
    assert!(matches!(error, RecoveryError::DamagedCommitted { .. }), "{error}");
    fs::remove_file(segment_path(dir.path(), 2)).unwrap();
    let error = find_end_of_wal(dir.path(), known(START, end)).unwrap_err();
    assert!(
        matches!(error, RecoveryError::MissingSegment(lsn) if lsn == segment_start(2)),
        "{error}"
    );
    // Below the persisted horizon it may be gone.
    let horizon = Known { removal_horizon: segment_start(3), ..known(START, segment_start(3)) };
    find_end_of_wal(dir.path(), horizon).unwrap();
}

#[test]
fn damage_in_a_segment_is_named() {
    let builder = many_records(START, 2 * WAL_SEGMENT_SIZE);
    let segment = |begin: Lsn, end: Lsn, flip: Option<usize>| {
        let from = begin.max(START);
        let mut bytes = vec![0; usize::try_from(from - begin).unwrap()];
        bytes.extend_from_slice(builder.slice(from, end));
        if let Some(offset) = flip {
            bytes[offset] ^= 1;
        }
        damage(&Bytes::from(bytes), begin, START)
    };
    let (first, second, third) = (segment_start(1), segment_start(2), segment_start(3));
    for (begin, end) in [(first, second), (second, third), (second, second + 64), (second, second)]
    {
        assert_eq!(segment(begin, end, None), None);
    }
    assert!(segment(first, second, Some(9_000_000)).unwrap().contains("invalid WAL at"));
    assert!(segment(second, third, Some(9_000_000)).unwrap().contains("invalid WAL at"));
    assert!(segment(second, third, Some(0)).unwrap().starts_with("page at 0/2000000"));
    assert!(segment(second, second + 3, None).unwrap().starts_with("page at 0/2000000"));
}

#[test]
fn the_records_of_another_segment_are_not_taken_for_the_end() {
    // Two segments with the same layout: at the commit position of one the other has a record, too.
    let dir = tempfile::tempdir().unwrap();
    let mut wal = empty(dir.path(), START);
    let mut builder = WalBuilder::new(START);
    builder.switch();
    for segment in 0..2u8 {
        for record in 0..100 {
            builder.record(600, record + segment);
        }
        if segment == 0 {
            builder.switch();
        }
    }
    write_all(&mut wal, builder.bytes(), 1 << 20);
    wal.flush().unwrap();
    drop(wal);
    let commit = builder.ends[builder.ends.len() - 30];
    let (first, second) = (segment_path(dir.path(), 2), segment_path(dir.path(), 3));
    fs::rename(&first, dir.path().join("aside")).unwrap();
    fs::rename(&second, &first).unwrap();
    fs::rename(dir.path().join("aside"), &second).unwrap();
    let error = find_end_of_wal(dir.path(), known(START, commit)).unwrap_err();
    assert!(matches!(error, RecoveryError::DamagedCommitted { .. }), "{error}");
}

#[test]
fn a_log_without_any_file_ends_where_it_begins() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(find_end_of_wal(dir.path(), known(START, START)).unwrap().flush_lsn, START);
    let error = find_end_of_wal(dir.path(), known(START, START + 8)).unwrap_err();
    assert!(matches!(error, RecoveryError::MissingSegment(_)), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Kill at any point: bytes behind the last flush may be there, in part, or be garbage. What was flushed is
    /// found, and nothing is found that was not written.
    #[test]
    fn torn_tails_never_lose_flushed_wal(
        sizes in prop::collection::vec(0usize..30_000, 1..20),
        start_page in 0u64..2048,
        flushed_records in any::<prop::sample::Index>(),
        garble in any::<prop::sample::Index>(),
        mode in 0u8..3,
    ) {
        let start = pg_types::xlog::normalize(Lsn(0x100_0000 + start_page * XLOG_PAGE));
        let dir = tempfile::tempdir().unwrap();
        let mut wal = empty(dir.path(), start);
        let mut builder = WalBuilder::new(start);
        for (index, size) in sizes.iter().enumerate() {
            builder.record(*size, u8::try_from(index).unwrap());
        }
        let flushed = builder.ends[flushed_records.index(builder.ends.len())];
        write_all(&mut wal, builder.slice(start, flushed), 10_007);
        prop_assert_eq!(wal.flush().unwrap().flush_lsn, flushed);
        write_all(&mut wal, builder.slice(flushed, builder.end_lsn()), 10_007);
        drop(wal);
        let tail = usize::try_from(builder.end_lsn() - flushed).unwrap();
        if tail > 0 {
            // From a point on, what was not flushed is lost: zeros, garbage, or one flipped byte.
            let at = flushed + garble.index(tail) as u64;
            let file = fs::OpenOptions::new().read(true).write(true)
                .open(segment_path(dir.path(), segment_number(at))).unwrap();
            let left = usize::try_from(segment_start(segment_number(at) + 1).min(builder.end_lsn()) - at).unwrap();
            let mut bytes = vec![0; left];
            match mode {
                0 => {}
                1 => bytes = (0u8..=255).map(|byte| byte ^ 0xA5).cycle().take(left).collect(),
                _ => {
                    file.read_exact_at(&mut bytes, segment_offset(at)).unwrap();
                    bytes[0] ^= 0x10;
                }
            }
            file.write_all_at(&bytes, segment_offset(at)).unwrap();
        }
        let end = find_end_of_wal(dir.path(), known(start, flushed)).unwrap();
        prop_assert!(flushed <= end.flush_lsn && end.flush_lsn <= builder.end_lsn());
        prop_assert!(end.flush_lsn == start || builder.ends.contains(&end.flush_lsn));
        // Whatever is claimed can be read and is what was written.
        let mut reader = WalReader::new(dir.path(), Arc::default());
        let mut at = start;
        while at < end.flush_lsn {
            let data = reader.read(at, usize::try_from(end.flush_lsn - at).unwrap()).unwrap();
            prop_assert_eq!(&data[..], builder.slice(at, at + data.len() as u64));
            at += data.len() as u64;
        }
    }
}

const XLOG_PAGE: u64 = pg_types::xlog::XLOG_BLCKSZ;
