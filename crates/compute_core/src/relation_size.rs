//! Sizes of relation forks, which the compute knows before the page server does.
//!
//! Between a create or an extension and the arrival of its WAL at the page server, this table is the only truth.
//! An entry may be displaced; whoever displaces it raises the last-written LSN of that fork's metadata to the
//! current insert position, so that the next question waits for all WAL that made the size.

use pg_types::{BlockNumber, ForkNumber, Oid, RelFileLocator, RelTag};

use crate::fixed_map::{self, TableMut, mix};

/// A relation fork as plain words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ForkKey {
    spc_oid: u32,
    db_oid: u32,
    rel_number: u32,
    fork: u32,
}

impl ForkKey {
    /// The key of a fork.
    pub fn new(rel: RelTag) -> ForkKey {
        ForkKey {
            spc_oid: rel.locator.spc_oid,
            db_oid: rel.locator.db_oid,
            rel_number: rel.locator.rel_number,
            fork: u32::from(rel.fork.number()),
        }
    }

    /// The fork that the key stands for; `None` for a key that no [`ForkKey::new`] made.
    pub fn rel(&self) -> Option<RelTag> {
        let locator = RelFileLocator {
            spc_oid: self.spc_oid,
            db_oid: self.db_oid,
            rel_number: self.rel_number,
        };
        ForkNumber::from_number(self.fork).map(|fork| locator.fork(fork))
    }

    /// Which of `partitions` holds this key.
    pub fn partition(&self, partitions: usize) -> usize {
        let count = partitions.max(1) as u64;
        usize::try_from((fixed_map::Key::hash(self) >> 32) % count).unwrap_or(0)
    }
}

impl fixed_map::Key for ForkKey {
    fn hash(&self) -> u64 {
        mix(&[self.spc_oid, self.db_oid, self.rel_number, self.fork])
    }
}

/// What is known of a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It does not exist. Remembered because Postgres asks for missing free space maps at every insertion.
    Absent,
    /// It has this many blocks.
    Blocks(BlockNumber),
}

/// A [`Known`] as a word: `InvalidBlockNumber` stands for absent.
pub type Entry = u32;

const ABSENT: Entry = u32::MAX;

impl Known {
    /// From the word in the table.
    pub fn from_entry(entry: Entry) -> Known {
        if entry == ABSENT { Known::Absent } else { Known::Blocks(entry) }
    }

    fn entry(self) -> Entry {
        match self {
            Known::Absent => ABSENT,
            Known::Blocks(blocks) => blocks,
        }
    }
}

/// The table under its exclusive lock.
pub type Sizes<'a> = TableMut<'a, ForkKey, Entry>;

/// The caller's own change: overwrites. Returns a displaced fork (see the module's rule).
#[must_use = "the displaced fork's metadata LSN must be raised"]
pub fn set(sizes: &mut Sizes<'_>, rel: RelTag, known: Known) -> Option<RelTag> {
    sizes.insert(ForkKey::new(rel), known.entry()).and_then(|(key, _)| key.rel())
}

/// An extension: the fork has at least `blocks`. Concurrent extensions finish in any order, so this only raises.
#[must_use = "the displaced fork's metadata LSN must be raised"]
pub fn raise(sizes: &mut Sizes<'_>, rel: RelTag, blocks: BlockNumber) -> Option<RelTag> {
    if let Some(entry) = sizes.get_mut(&ForkKey::new(rel))
        && let Known::Blocks(old) = Known::from_entry(*entry)
    {
        *entry = old.max(blocks);
        return None;
    }
    set(sizes, rel, Known::Blocks(blocks))
}

/// The page server's answer: kept only if nothing is known, since whoever changed the fork while the question
/// was under way knows better. Returns what is known now, and a displaced fork.
#[must_use = "the displaced fork's metadata LSN must be raised"]
pub fn learn(sizes: &mut Sizes<'_>, rel: RelTag, answer: Known) -> (Known, Option<RelTag>) {
    match sizes.as_table().get(&ForkKey::new(rel)) {
        Some(entry) => (Known::from_entry(entry), None),
        None => (answer, set(sizes, rel, answer)),
    }
}

/// The fork is gone.
pub fn forget(sizes: &mut Sizes<'_>, rel: RelTag) {
    sizes.remove(&ForkKey::new(rel));
}

/// The database is gone; its number may be used again.
pub fn forget_database(sizes: &mut Sizes<'_>, db_oid: Oid) {
    sizes.remove_where(|key, _| key.db_oid == db_oid);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixed_map::Owned;
    use proptest::prelude::*;

    fn rel(number: u32) -> RelTag {
        RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: number }.fork(ForkNumber::Main)
    }

    fn get(owned: &mut Owned<ForkKey, Entry>, rel: RelTag) -> Option<Known> {
        owned.table().as_table().get(&ForkKey::new(rel)).map(Known::from_entry)
    }

    #[test]
    fn an_answer_does_not_undo_a_change_made_meanwhile() {
        let mut owned = Owned::<ForkKey, Entry>::new(4);
        assert_eq!(set(&mut owned.table(), rel(1), Known::Blocks(3)), None);
        let (known, _) = learn(&mut owned.table(), rel(1), Known::Blocks(100));
        assert_eq!(known, Known::Blocks(3));
        let (known, _) = learn(&mut owned.table(), rel(2), Known::Absent);
        assert_eq!(known, Known::Absent);
        assert_eq!(get(&mut owned, rel(2)), Some(Known::Absent));
    }

    #[test]
    fn extensions_finish_in_any_order() {
        let mut owned = Owned::<ForkKey, Entry>::new(4);
        assert_eq!(raise(&mut owned.table(), rel(1), 8), None);
        assert_eq!(raise(&mut owned.table(), rel(1), 5), None);
        assert_eq!(get(&mut owned, rel(1)), Some(Known::Blocks(8)));
        assert_eq!(set(&mut owned.table(), rel(1), Known::Absent), None);
        assert_eq!(raise(&mut owned.table(), rel(1), 1), None);
        assert_eq!(get(&mut owned, rel(1)), Some(Known::Blocks(1)));
    }

    #[test]
    fn a_displaced_fork_is_named() {
        let mut owned = Owned::<ForkKey, Entry>::new(1);
        assert_eq!(set(&mut owned.table(), rel(1), Known::Blocks(1)), None);
        assert_eq!(set(&mut owned.table(), rel(2), Known::Blocks(1)), Some(rel(1)));
        let mut none = Owned::<ForkKey, Entry>::new(0);
        assert_eq!(set(&mut none.table(), rel(2), Known::Blocks(1)), Some(rel(2)));
    }

    #[test]
    fn a_database_is_forgotten_alone() {
        let mut owned = Owned::<ForkKey, Entry>::new(8);
        let mut other = rel(9);
        other.locator.db_oid = 6;
        assert_eq!(set(&mut owned.table(), rel(1), Known::Blocks(0)), None);
        assert_eq!(set(&mut owned.table(), other, Known::Blocks(2)), None);
        forget_database(&mut owned.table(), 5);
        assert_eq!(get(&mut owned, rel(1)), None);
        assert_eq!(get(&mut owned, other), Some(Known::Blocks(2)));
    }

    proptest! {
        #[test]
        fn keys_give_their_fork_back(spc: u32, db: u32, number: u32, fork in 0u32..4) {
            let fork = ForkNumber::from_number(fork).unwrap();
            let rel = RelFileLocator { spc_oid: spc, db_oid: db, rel_number: number }.fork(fork);
            prop_assert_eq!(ForkKey::new(rel).rel(), Some(rel));
        }
    }
}
