//! The WAL record "this fork has at least N blocks" of resource manager 134.
//!
//! It stands in for the images of zero pages: Postgres extends relations by up to 64 zero pages at once.

use pg_types::{BlockNumber, ForkNumber, RelFileLocator, RelTag, RmgrId};

/// Resource manager of the records of this system.
pub const NEON_RMGR_ID: RmgrId = 134;
/// `info` of the record.
pub const XLOG_NEON_RELATION_EXTEND: u8 = 0x30;
/// Bytes of main data.
pub const RELATION_EXTEND_LEN: usize = 20;

/// Main data of the record: five little-endian words.
pub fn encode(rel: RelTag, nblocks: BlockNumber) -> [u8; RELATION_EXTEND_LEN] {
    let RelFileLocator { spc_oid, db_oid, rel_number } = rel.locator;
    let words = [spc_oid, db_oid, rel_number, u32::from(rel.fork.number()), nblocks];
    let mut bytes = [0; RELATION_EXTEND_LEN];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// The record's content; `None` for bytes that [`encode`] does not make.
pub fn decode(bytes: &[u8]) -> Option<(RelTag, BlockNumber)> {
    let bytes: &[u8; RELATION_EXTEND_LEN] = bytes.try_into().ok()?;
    let mut words =
        bytes.chunks_exact(4).filter_map(|c| c.first_chunk()).map(|c| u32::from_le_bytes(*c));
    let locator =
        RelFileLocator { spc_oid: words.next()?, db_oid: words.next()?, rel_number: words.next()? };
    let fork = ForkNumber::from_number(words.next()?)?;
    Some((locator.fork(fork), words.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_are_fixed() {
        let rel = RelFileLocator { spc_oid: 1, db_oid: 2, rel_number: 0x0403 }.fork(ForkNumber::Vm);
        let expected = [1, 0, 0, 0, 2, 0, 0, 0, 3, 4, 0, 0, 2, 0, 0, 0, 9, 0, 0, 0];
        assert_eq!(encode(rel, 9), expected);
    }

    proptest! {
        #[test]
        fn decoding_is_total(bytes in prop::collection::vec(any::<u8>(), 0..24)) {
            if let Some((rel, nblocks)) = decode(&bytes) {
                prop_assert_eq!(encode(rel, nblocks).to_vec(), bytes);
            }
        }
    }
}
