//! WAL as the simulation writes it: records of a multiple of 8 bytes that begin with their length in words and end, as far
//! as a reader of torn bytes is concerned, where their checksum is right.

use pg_types::Lsn;

/// Where every simulated timeline begins: behind the header of a WAL page.
pub(super) const START: Lsn = Lsn(0x2018);

/// Bytes of one record, so chosen that none ends inside or at a page header, where Postgres ends none either.
pub(super) fn record(at: Lsn, writer: u8, number: u8, words: u8) -> Vec<u8> {
    let in_header = |words: u8| (at.0 + u64::from(words) * 8) % 8192 <= 24;
    let words = if in_header(words) { words + 4 } else { words };
    let mut bytes = vec![words, writer, number];
    bytes.resize(usize::from(words) * 8, number ^ writer | 1);
    let sum = checksum(&bytes);
    bytes[CHECKSUM].copy_from_slice(&sum);
    bytes
}

/// Where a record's checksum is.
const CHECKSUM: std::ops::Range<usize> = 4..8;

/// FNV-1a of everything else.
fn checksum(record: &[u8]) -> [u8; 4] {
    let rest = record.iter().take(CHECKSUM.start).chain(record.iter().skip(CHECKSUM.end));
    let fold = |sum: u32, byte: &u8| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    rest.fold(0x811C_9DC5, fold).to_le_bytes()
}

/// End of the part of `wal` that is whole records; `from` is where one of them begins.
pub(super) fn whole_records(wal: &[u8], from: usize) -> usize {
    let mut end = from;
    while let Some(words) = wal.get(end) {
        let next = end + usize::from(*words) * 8;
        let whole = *words != 0
            && wal.get(end..next).is_some_and(|record| record[CHECKSUM] == checksum(record));
        if !whole {
            break;
        }
        end = next;
    }
    end
}

pub(super) fn offset(lsn: Lsn) -> usize {
    usize::try_from(lsn.0.saturating_sub(START.0)).unwrap()
}

pub(super) fn lsn_at(offset: usize) -> Lsn {
    Lsn(START.0 + offset as u64)
}
