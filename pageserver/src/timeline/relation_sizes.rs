//! Sizes of relations, remembered: every page read needs one for its fence.
//!
//! An entry says: "at every LSN from `from` to `checked` the size is this". A read behind `checked` asks the store
//! only for what is newer than that, which is a look into memory as a rule, and moves `checked` on.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pg_types::{BlockNumber, Lsn, RelTag};

/// Locks, so that threads seldom meet at one.
const SHARDS: usize = 16;

/// The sizes of one timeline.
#[derive(Debug)]
pub(super) struct RelationSizes {
    shards: Vec<Mutex<HashMap<RelTag, Entry>>>,
    hasher: RandomState,
    entries_per_shard: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// `None`: the relation does not exist.
    size: Option<BlockNumber>,
    from: Lsn,
    checked: Lsn,
}

/// What is remembered of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remembered {
    /// Nothing for that LSN.
    Nothing,
    /// Its size at that LSN.
    Size(Option<BlockNumber>),
    /// Its size at an earlier LSN.
    AsOf(Lsn, Option<BlockNumber>),
}

impl RelationSizes {
    /// Remembers about `entries` sizes at most.
    pub(super) fn new(entries: usize) -> RelationSizes {
        RelationSizes {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            entries_per_shard: entries / SHARDS,
        }
    }

    fn shard(&self, rel: &RelTag) -> Option<MutexGuard<'_, HashMap<RelTag, Entry>>> {
        let shards = u64::try_from(SHARDS).unwrap_or(1);
        let index = usize::try_from(self.hasher.hash_one(rel) % shards).ok()?;
        // Each change is one assignment.
        self.shards.get(index).map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn get(&self, rel: &RelTag, lsn: Lsn) -> Remembered {
        match self.shard(rel).and_then(|shard| shard.get(rel).copied()) {
            Some(entry) if lsn < entry.from => Remembered::Nothing,
            Some(entry) if lsn <= entry.checked => Remembered::Size(entry.size),
            Some(entry) => Remembered::AsOf(entry.checked, entry.size),
            None => Remembered::Nothing,
        }
    }

    /// The size at `checked` was found to be the one at `lsn`, and at every LSN between.
    pub(super) fn extend(&self, rel: &RelTag, checked: Lsn, lsn: Lsn) {
        let Some(mut shard) = self.shard(rel) else { return };
        // An entry that does not hold at `checked` is another one, put meanwhile.
        if let Some(entry) =
            shard.get_mut(rel).filter(|entry| (entry.from..=entry.checked).contains(&checked))
        {
            entry.checked = entry.checked.max(lsn);
        }
    }

    /// The size at `lsn` was read; what is known of later LSNs stays.
    pub(super) fn insert(&self, rel: RelTag, lsn: Lsn, size: Option<BlockNumber>) {
        let Some(mut shard) = self.shard(&rel) else { return };
        if shard.get(&rel).is_some_and(|entry| entry.checked >= lsn) {
            return;
        }
        // Rare, and cheaper than an order of use that every read would have to keep.
        if shard.len() >= self.entries_per_shard && !shard.contains_key(&rel) {
            shard.clear();
        }
        if self.entries_per_shard > 0 {
            shard.insert(rel, Entry { size, from: lsn, checked: lsn });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg_types::{ForkNumber, RelFileLocator};

    fn rel(number: u32) -> RelTag {
        RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: number }.fork(ForkNumber::Main)
    }

    #[test]
    fn an_entry_holds_for_the_lsns_that_were_checked() {
        let sizes = RelationSizes::new(1000);
        assert_eq!(sizes.get(&rel(1), Lsn(10)), Remembered::Nothing);
        sizes.insert(rel(1), Lsn(10), Some(7));
        assert_eq!(sizes.get(&rel(1), Lsn(9)), Remembered::Nothing);
        assert_eq!(sizes.get(&rel(1), Lsn(10)), Remembered::Size(Some(7)));
        assert_eq!(sizes.get(&rel(1), Lsn(20)), Remembered::AsOf(Lsn(10), Some(7)));
        sizes.extend(&rel(1), Lsn(10), Lsn(20));
        assert_eq!(sizes.get(&rel(1), Lsn(15)), Remembered::Size(Some(7)));
    }

    #[test]
    fn a_late_answer_does_not_undo_a_newer_one() {
        let sizes = RelationSizes::new(1000);
        sizes.insert(rel(1), Lsn(10), Some(7));
        sizes.insert(rel(1), Lsn(30), None);
        // Two readers that began before.
        sizes.extend(&rel(1), Lsn(10), Lsn(20));
        sizes.insert(rel(1), Lsn(25), Some(7));
        assert_eq!(sizes.get(&rel(1), Lsn(25)), Remembered::Nothing);
        assert_eq!(sizes.get(&rel(1), Lsn(30)), Remembered::Size(None));
        assert_eq!(sizes.get(&rel(1), Lsn(31)), Remembered::AsOf(Lsn(30), None));
    }

    #[test]
    fn an_answer_does_not_extend_an_entry_of_an_earlier_lsn() {
        let sizes = RelationSizes::new(1000);
        sizes.insert(rel(1), Lsn(30), Some(7));
        assert_eq!(sizes.get(&rel(1), Lsn(50)), Remembered::AsOf(Lsn(30), Some(7)));
        // Meanwhile the shard was full and emptied, and somebody read the past.
        sizes.shard(&rel(1)).unwrap().clear();
        sizes.insert(rel(1), Lsn(10), Some(3));
        sizes.extend(&rel(1), Lsn(30), Lsn(50));
        assert_eq!(sizes.get(&rel(1), Lsn(50)), Remembered::AsOf(Lsn(10), Some(3)));
    }

    #[test]
    fn memory_is_bounded() {
        let sizes = RelationSizes::new(SHARDS * 4);
        for number in 0..10_000 {
            sizes.insert(rel(number), Lsn(1), Some(1));
        }
        for shard in &sizes.shards {
            assert!(shard.lock().unwrap().len() <= 4);
        }
        let nothing = RelationSizes::new(0);
        nothing.insert(rel(1), Lsn(1), Some(1));
        assert_eq!(nothing.get(&rel(1), Lsn(1)), Remembered::Nothing);
    }
}
