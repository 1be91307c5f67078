//! The last-written LSN cache: for every page, a position at or after its last change (L019–L022).
//!
//! The compute sends it with each read as `not_modified_since`. Too high only makes the page server wait for
//! WAL that the page does not need; too low silently returns an old page. So everything here rounds up: what is
//! not in the table is answered with a maximum over all that ever left it.

use pg_types::{BlockNumber, INVALID_BLOCK_NUMBER, Lsn, Oid, RelTag};

use crate::fixed_map::{self, Table, TableMut, mix};

/// Block number that stands for a fork's existence and size.
pub const METADATA_BLOCK: BlockNumber = INVALID_BLOCK_NUMBER;

/// A page, or with [`METADATA_BLOCK`] the size of a fork.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct BlockKey {
    /// Tablespace.
    pub spc_oid: u32,
    /// Database.
    pub db_oid: u32,
    /// File number.
    pub rel_number: u32,
    /// Fork number.
    pub fork: u32,
    /// Block number.
    pub block: u32,
}

impl BlockKey {
    /// The key of one block of a fork.
    pub fn new(rel: RelTag, block: BlockNumber) -> BlockKey {
        BlockKey {
            spc_oid: rel.locator.spc_oid,
            db_oid: rel.locator.db_oid,
            rel_number: rel.locator.rel_number,
            fork: u32::from(rel.fork.number()),
            block,
        }
    }

    /// Which of `partitions` holds this key. Uses bits that [`fixed_map`] does not.
    pub fn partition(&self, partitions: usize) -> usize {
        let count = partitions.max(1) as u64;
        usize::try_from((fixed_map::Key::hash(self) >> 32) % count).unwrap_or(0)
    }
}

impl fixed_map::Key for BlockKey {
    fn hash(&self) -> u64 {
        mix(&[self.spc_oid, self.db_oid, self.rel_number, self.fork, self.block])
    }
}

/// What a partition stores for a key: the LSN as a plain word.
pub type Entry = u64;

/// The LSN to send with a read of `key`. `floor` is the partition's maximum over keys that left the table.
pub fn get(table: Table<'_, BlockKey, Entry>, floor: Lsn, key: &BlockKey) -> Lsn {
    table.get(key).map_or(floor, Lsn)
}

/// The LSN to send with a read of `key`, which is remembered if it was a floor. The floor rises with everything that leaves
/// the table, and a page that was asked for ahead of need would seem to be out of date at the next change of any
/// other.
pub fn get_stable(
    table: &mut TableMut<'_, BlockKey, Entry>,
    floor: &mut Lsn,
    key: BlockKey,
) -> Lsn {
    let known = table.as_table().get(&key).map(Lsn);
    known.unwrap_or_else(|| set(table, floor, key, *floor))
}

/// Records that what `key` stands for last changed at `lsn` or before. Never lowers what is known. Returns the
/// LSN that is now known for the key.
///
/// An entry that makes room raises `floor`, so that its key is from then on answered with the floor.
pub fn set(
    table: &mut TableMut<'_, BlockKey, Entry>,
    floor: &mut Lsn,
    key: BlockKey,
    lsn: Lsn,
) -> Lsn {
    // A key that is not in the table may have been in it with anything up to the floor.
    let known = get(table.as_table(), *floor, &key);
    let new = known.max(lsn);
    if let Some((_, displaced)) = table.insert(key, new.0) {
        *floor = (*floor).max(Lsn(displaced));
    }
    new
}

/// Forgets the pages of a database, whose number or tablespace may be used again for other pages. They are then answered
/// with the floor, which is raised to the greatest of theirs; the caller raises it to when the new pages were made.
pub fn forget_database(table: &mut TableMut<'_, BlockKey, Entry>, floor: &mut Lsn, db_oid: Oid) {
    table.remove_where(|key, lsn| {
        let gone = key.db_oid == db_oid;
        if gone {
            *floor = (*floor).max(Lsn(*lsn));
        }
        gone
    });
}

/// The greatest LSN of a partition: no page of it changed later, as far as the table was told.
pub fn newest(table: Table<'_, BlockKey, Entry>, floor: Lsn) -> Lsn {
    table.iter().map(|(_, lsn)| Lsn(lsn)).fold(floor, Lsn::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixed_map::Owned;
    use pg_types::{ForkNumber, RelFileLocator};
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn key(block: u32) -> BlockKey {
        let locator = RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: 16384 };
        BlockKey::new(locator.fork(ForkNumber::Main), block)
    }

    proptest! {
        /// Invariant C1: whatever was evicted or displaced in between, a page is never answered with less than
        /// the LSN of its last change, and an entry in the table is not affected by other pages.
        #[test]
        fn never_too_low(
            capacity in 0usize..10,
            start in 1u64..100,
            writes in prop::collection::vec((0u32..30, 100u64..10_000), 0..300),
        ) {
            let mut owned = Owned::<BlockKey, Entry>::new(capacity);
            let mut floor = Lsn(start);
            let mut truth: HashMap<u32, Lsn> = HashMap::new();
            let mut newest_truth = Lsn(start);
            for (block, lsn) in writes {
                let now = set(&mut owned.table(), &mut floor, key(block), Lsn(lsn));
                let known = truth.entry(block).or_default();
                *known = (*known).max(Lsn(lsn));
                newest_truth = newest_truth.max(Lsn(lsn));
                prop_assert!(now >= *known);
                for block in 0..30 {
                    let answer = get(owned.table().as_table(), floor, &key(block));
                    let least = truth.get(&block).copied().unwrap_or(Lsn(start));
                    prop_assert!(answer >= least, "block {block}: {answer} < {least}");
                    prop_assert!(answer <= newest_truth);
                }
                prop_assert_eq!(newest(owned.table().as_table(), floor), newest_truth);
            }
        }
    }

    #[test]
    fn relations_do_not_disturb_each_other() {
        let mut owned = Owned::<BlockKey, Entry>::new(4);
        let mut floor = Lsn(10);
        set(&mut owned.table(), &mut floor, key(1), Lsn(100));
        set(&mut owned.table(), &mut floor, key(2), Lsn(200));
        assert_eq!(get(owned.table().as_table(), floor, &key(1)), Lsn(100));
        assert_eq!(get(owned.table().as_table(), floor, &key(3)), Lsn(10));
    }

    #[test]
    fn a_forgotten_database_raises_the_floor() {
        let mut owned = Owned::<BlockKey, Entry>::new(4);
        let mut floor = Lsn(10);
        set(&mut owned.table(), &mut floor, key(1), Lsn(100));
        forget_database(&mut owned.table(), &mut floor, 6);
        assert_eq!((floor, owned.table().as_table().len()), (Lsn(10), 1));
        forget_database(&mut owned.table(), &mut floor, 5);
        assert_eq!((floor, owned.table().as_table().len()), (Lsn(100), 0));
    }

    #[test]
    fn partitions_are_all_used() {
        let mut seen = [0; 8];
        for block in 0..800 {
            seen[key(block).partition(8)] += 1;
        }
        assert!(seen.iter().all(|count| (50..150).contains(count)), "{seen:?}");
    }
}
