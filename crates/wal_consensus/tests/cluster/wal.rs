//! WAL as the simulation writes it: records of a multiple of 8 bytes whose first byte is their length in words.

use pg_types::Lsn;

/// Where every simulated timeline begins: behind the header of a WAL page.
pub const START: Lsn = Lsn(0x2018);

/// Bytes of one record, so chosen that none ends inside or at a page header, where Postgres ends none either.
pub fn record(at: Lsn, writer: u8, number: u8, words: u8) -> Vec<u8> {
    let in_header = |words: u8| (at.0 + u64::from(words) * 8) % 8192 <= 24;
    let words = if in_header(words) { words + 4 } else { words };
    let mut bytes = vec![words, writer, number];
    bytes.resize(usize::from(words) * 8, number ^ writer);
    bytes
}

/// Length of the part of `wal` that is whole records; `from` is where one of them begins.
pub fn whole_records(wal: &[u8], from: usize) -> usize {
    let mut end = from;
    while let Some(words) = wal.get(end) {
        let next = end + usize::from(*words) * 8;
        if *words == 0 || wal.len() < next {
            break;
        }
        end = next;
    }
    end
}

pub fn offset(lsn: Lsn) -> usize {
    usize::try_from(lsn.0 - START.0).unwrap()
}

pub fn lsn_at(offset: usize) -> Lsn {
    Lsn(START.0 + offset as u64)
}
