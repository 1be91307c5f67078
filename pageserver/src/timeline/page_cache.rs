//! Pages that took long to rebuild, kept in memory under a byte bound.
//!
//! An entry says: "rebuilt at LSN L, the page was this". It is never wrong, only old: a later read takes it as
//! the base for the records behind L, or as the answer when the client knows that the page did not change since
//! L. At most one version of a page is kept, the newest.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use pg_types::{BLCKSZ, Key, Lsn};

/// Locks, so that threads seldom meet at one.
const SHARDS: usize = 16;
/// A page with its key, positions and places in two maps.
const ENTRY_BYTES: u64 = BLCKSZ as u64 + 256;

/// The cache of one timeline.
#[derive(Debug)]
pub struct PageCache {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    pages_per_shard: usize,
}

#[derive(Debug, Default)]
struct Shard {
    pages: HashMap<Key, Entry>,
    /// Keys by last use; the first one goes first.
    by_use: BTreeMap<u64, Key>,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    lsn: Lsn,
    page: Bytes,
    used: u64,
}

/// What the cache knows about a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cached {
    /// Nothing that helps.
    Nothing,
    /// The page itself.
    Answer(Bytes),
    /// The page as of an earlier LSN.
    Base(Lsn, Bytes),
}

impl PageCache {
    /// A cache of at most `bytes` bytes; one that has no room for a page in each shard keeps nothing.
    pub fn new(bytes: u64) -> PageCache {
        let pages = usize::try_from(bytes / ENTRY_BYTES).unwrap_or(usize::MAX);
        PageCache {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            pages_per_shard: pages / SHARDS,
        }
    }

    fn shard(&self, key: &Key) -> Option<MutexGuard<'_, Shard>> {
        let shards = u64::try_from(SHARDS).unwrap_or(1);
        let index = usize::try_from(self.hasher.hash_one(key) % shards).ok()?;
        // A panic cannot leave a shard half changed in a way that matters: a lost entry is only a slower read.
        self.shards.get(index).map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks for a page at `lsn` that its reader knows to be unchanged after `not_modified_since`.
    pub fn get(&self, key: &Key, lsn: Lsn, not_modified_since: Lsn) -> Cached {
        let Some(mut shard) = self.shard(key) else { return Cached::Nothing };
        let Shard { pages, by_use, clock } = &mut *shard;
        let Some(entry) = pages.get_mut(key).filter(|entry| entry.lsn <= lsn) else {
            return Cached::Nothing;
        };
        by_use.remove(&entry.used);
        *clock += 1;
        entry.used = *clock;
        by_use.insert(entry.used, *key);
        if entry.lsn == lsn || entry.lsn >= not_modified_since {
            Cached::Answer(entry.page.clone())
        } else {
            Cached::Base(entry.lsn, entry.page.clone())
        }
    }

    /// Keeps a page that was rebuilt at `lsn`, unless a newer version is there.
    pub fn insert(&self, key: Key, lsn: Lsn, page: Bytes) {
        if self.pages_per_shard == 0 {
            return;
        }
        let Some(mut shard) = self.shard(&key) else { return };
        let Shard { pages, by_use, clock } = &mut *shard;
        *clock += 1;
        if let Some(old) = pages.get(&key) {
            if old.lsn >= lsn {
                return;
            }
            by_use.remove(&old.used);
        }
        pages.insert(key, Entry { lsn, page, used: *clock });
        by_use.insert(*clock, key);
        while pages.len() > self.pages_per_shard {
            let Some((_, oldest)) = by_use.pop_first() else { break };
            pages.remove(&oldest);
        }
    }

    /// Pages kept now.
    #[cfg(test)]
    fn len(&self) -> usize {
        let lock =
            |shard: &Mutex<Shard>| shard.lock().unwrap_or_else(PoisonError::into_inner).pages.len();
        self.shards.iter().map(lock).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(number: u32) -> Key {
        Key::from_fields(0, 1663, 5, 16384, 0, number)
    }

    fn page(fill: u8) -> Bytes {
        Bytes::from(vec![fill; BLCKSZ])
    }

    #[test]
    fn a_hit_needs_the_promise_of_the_reader() {
        let cache = PageCache::new(1 << 20);
        cache.insert(key(1), Lsn(100), page(1));
        assert_eq!(cache.get(&key(1), Lsn(99), Lsn(0)), Cached::Nothing);
        assert_eq!(cache.get(&key(1), Lsn(100), Lsn(0)), Cached::Answer(page(1)));
        assert_eq!(cache.get(&key(1), Lsn(200), Lsn(100)), Cached::Answer(page(1)));
        assert_eq!(cache.get(&key(1), Lsn(200), Lsn(101)), Cached::Base(Lsn(100), page(1)));
        assert_eq!(cache.get(&key(2), Lsn(200), Lsn(0)), Cached::Nothing);
    }

    #[test]
    fn an_older_version_does_not_replace_a_newer_one() {
        let cache = PageCache::new(1 << 20);
        cache.insert(key(1), Lsn(100), page(1));
        cache.insert(key(1), Lsn(50), page(2));
        assert_eq!(cache.get(&key(1), Lsn(100), Lsn(0)), Cached::Answer(page(1)));
        cache.insert(key(1), Lsn(150), page(3));
        assert_eq!(cache.get(&key(1), Lsn(150), Lsn(0)), Cached::Answer(page(3)));
        assert_eq!(cache.len(), 1);
    }

    #[test]
    fn without_room_nothing_is_kept() {
        let cache = PageCache::new(0);
        cache.insert(key(1), Lsn(1), page(1));
        assert_eq!(cache.len(), 0);
    }

    #[test]
    fn what_is_used_stays() {
        let cache = PageCache::new(SHARDS as u64 * 4 * ENTRY_BYTES);
        for number in 0..10_000 {
            cache.insert(key(number), Lsn(1), page(0));
            cache.get(&key(0), Lsn(1), Lsn(0));
        }
        assert_eq!(cache.len(), SHARDS * 4);
        assert_eq!(cache.get(&key(0), Lsn(1), Lsn(0)), Cached::Answer(page(0)));
        assert_eq!(cache.get(&key(1), Lsn(1), Lsn(0)), Cached::Nothing);
    }

    proptest! {
        #[test]
        fn bookkeeping_stays_consistent(steps in proptest::collection::vec((0u8..64, 1u64..20, any::<bool>()), 0..200)) {
            let cache = PageCache::new(SHARDS as u64 * 2 * ENTRY_BYTES);
            for (number, lsn, write) in steps {
                if write {
                    cache.insert(key(number.into()), Lsn(lsn), page(number));
                } else if let Cached::Answer(found) | Cached::Base(_, found) = cache.get(&key(number.into()), Lsn(lsn), Lsn(lsn)) {
                    prop_assert_eq!(found[0], number);
                }
                for shard in &cache.shards {
                    let shard = shard.lock().unwrap();
                    prop_assert_eq!(shard.pages.len(), shard.by_use.len());
                    prop_assert!(shard.pages.len() <= 2);
                    for (used, key) in &shard.by_use {
                        prop_assert_eq!(shard.pages[key].used, *used);
                    }
                }
            }
        }
    }
}
