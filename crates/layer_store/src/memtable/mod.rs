//! Versions in memory: one index of a hash table for each fork, one log of versions.
//!
//! A key is split into its first 14 bytes (for a page: the relation fork) and its last field (the block).
//! There are few of the former, kept in order for scans; each has a hash table from the latter to the newest
//! version of the key. Versions of a key are a chain from newest to oldest, the order in which reads want them.
//! Value bytes stay in the chunks of the batches that brought them.

mod visit;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{PoisonError, RwLock};

use bytes::Bytes;
use foldhash::fast::FixedState;
use pg_types::key::KEY_SIZE;
use pg_types::{Key, Lsn};

use crate::batch::{BatchEntry, Blob, Chunk};
use crate::limits::PUT_SLICE;
use crate::shared::BudgetShare;
use crate::value::{Found, Search, ValueKind};

const PREFIX_SIZE: usize = KEY_SIZE - 4;
const LOG_PAGE: usize = 4096;
/// Approximate cost of a key beyond its versions: its slot in the hash table.
const KEY_COST: usize = 12;
/// Approximate cost of a fork: two map entries and a table.
const FORK_COST: usize = 200;

type Prefix = [u8; PREFIX_SIZE];

/// Number of a version in the log, plus one; 0 ends a chain.
type Link = u32;

/// Versions of one timeline in memory.
#[derive(Debug)]
pub(crate) struct Memtable {
    index: RwLock<Index>,
    memory: BudgetShare,
}

#[derive(Debug, Default)]
struct Index {
    forks: HashMap<Prefix, u32, FixedState>,
    order: BTreeMap<Prefix, u32>,
    tables: Vec<HashMap<u32, Link, FixedState>>,
    log: Log,
    chunks: Vec<Bytes>,
}

/// Append-only list of versions in pages, so that growth never copies.
#[derive(Debug, Default)]
struct Log {
    pages: Vec<Vec<Version>>,
    len: u32,
}

#[derive(Clone, Copy, Debug)]
struct Version {
    lsn: Lsn,
    older: Link,
    kind: ValueKind,
    blob: Blob,
}

impl Log {
    fn push(&mut self, version: Version) -> Link {
        match self.pages.last_mut() {
            Some(page) if page.len() < LOG_PAGE => page.push(version),
            _ => {
                let mut page = Vec::with_capacity(LOG_PAGE);
                page.push(version);
                self.pages.push(page);
            }
        }
        self.len += 1;
        self.len
    }

    fn get(&self, link: Link) -> Option<&Version> {
        let number = usize::try_from(link.checked_sub(1)?).ok()?;
        self.pages.get(number / LOG_PAGE)?.get(number % LOG_PAGE)
    }
}

fn split(key: Key) -> (Prefix, u32) {
    let mut prefix = [0; PREFIX_SIZE];
    prefix.copy_from_slice(&key.0[..PREFIX_SIZE]);
    let [.., a, b, c, d] = key.0;
    (prefix, u32::from_be_bytes([a, b, c, d]))
}

fn join(prefix: Prefix, last: u32) -> Key {
    let mut bytes = [0; KEY_SIZE];
    bytes[..PREFIX_SIZE].copy_from_slice(&prefix);
    bytes[PREFIX_SIZE..].copy_from_slice(&last.to_be_bytes());
    Key(bytes)
}

impl Index {
    fn chain(&self, key: Key) -> Chain<'_> {
        let (prefix, last) = split(key);
        let link = self
            .forks
            .get(&prefix)
            .and_then(|table| self.tables.get(usize::try_from(*table).ok()?))
            .and_then(|table| table.get(&last).copied());
        Chain { index: self, link: link.unwrap_or(0) }
    }

    fn insert(&mut self, entry: &BatchEntry, chunk_base: u32) -> usize {
        let (prefix, last) = split(entry.key);
        let mut cost = 0;
        let number = match self.forks.get(&prefix) {
            Some(number) => *number,
            None => {
                let number = u32::try_from(self.tables.len()).unwrap_or(u32::MAX);
                self.tables.push(HashMap::default());
                self.forks.insert(prefix, number);
                self.order.insert(prefix, number);
                cost += FORK_COST;
                number
            }
        };
        let table = usize::try_from(number).ok().and_then(|number| self.tables.get_mut(number));
        let Some(table) = table else { return cost };
        let newest = table.entry(last).or_insert(0);
        if *newest == 0 {
            cost += KEY_COST;
        }
        let blob = Blob { chunk: entry.blob.chunk + chunk_base, ..entry.blob };
        let version = Version { lsn: entry.lsn, older: *newest, kind: entry.kind, blob };
        *newest = self.log.push(version);
        cost + size_of::<Version>()
    }

    fn slice(&self, blob: Blob) -> &[u8] {
        let start = blob.offset as usize;
        &self.chunks[blob.chunk as usize][start..start + blob.len as usize]
    }

    fn data(&self, blob: Blob) -> Bytes {
        let start = blob.offset as usize;
        self.chunks[blob.chunk as usize].slice(start..start + blob.len as usize)
    }
}

/// Versions of a key from newest to oldest.
struct Chain<'a> {
    index: &'a Index,
    link: Link,
}

impl<'a> Iterator for Chain<'a> {
    type Item = &'a Version;
    fn next(&mut self) -> Option<&'a Version> {
        let version = self.index.log.get(self.link)?;
        self.link = version.older;
        Some(version)
    }
}

impl Memtable {
    pub(crate) fn new(memory: BudgetShare) -> Memtable {
        Memtable { index: RwLock::default(), memory }
    }

    /// Adds the versions of one batch. Readers see them one by one; it is the store's position that makes them
    /// count together.
    pub(crate) fn insert(&self, entries: &[BatchEntry], chunks: Vec<Chunk>) {
        let mut cost =
            chunks.iter().fold(0, |sum: usize, c| sum + c.allocated + size_of::<Bytes>());
        let chunk_base = {
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            let base = u32::try_from(index.chunks.len()).unwrap_or(u32::MAX);
            index.chunks.extend(chunks.into_iter().map(|chunk| chunk.bytes));
            base
        };
        for slice in entries.chunks(PUT_SLICE) {
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            for entry in slice {
                cost += index.insert(entry, chunk_base);
            }
        }
        self.memory.grow(cost as u64);
    }

    /// Bytes that this memtable is charged with.
    pub(crate) fn size(&self) -> u64 {
        self.memory.bytes()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.read().log.len == 0
    }

    /// Gives the versions of `key` at or below `lsn` to `search`, newest first, until it has enough.
    pub(crate) fn search(&self, key: Key, lsn: Lsn, search: &mut Search) {
        let index = self.read();
        for version in index.chain(key).filter(|version| version.lsn <= lsn) {
            let data = index.data(version.blob);
            search.push(Found { lsn: version.lsn, kind: version.kind, data });
            if search.is_done() {
                break;
            }
        }
    }

    /// The newest version of a key at or below `lsn`.
    pub(crate) fn newest(&self, key: Key, lsn: Lsn) -> Option<Found> {
        let index = self.read();
        let version = *index.chain(key).find(|version| version.lsn <= lsn)?;
        Some(Found { lsn: version.lsn, kind: version.kind, data: index.data(version.blob) })
    }

    /// The keys in range of the first fork that has any, in order, whatever their LSNs; none when there is no such
    /// fork. The second part is where to go on.
    pub(crate) fn keys_of_next_fork(&self, range: Range<Key>) -> Option<(Vec<Key>, Key)> {
        if range.is_empty() {
            return None;
        }
        let (first, _) = split(range.start);
        let (last, _) = split(range.end);
        let index = self.read();
        index.order.range(first..=last).find_map(|(prefix, number)| {
            let table =
                usize::try_from(*number).ok().and_then(|number| index.tables.get(number))?;
            let keys = table.keys().map(|last| join(*prefix, *last));
            let mut keys: Vec<Key> = keys.filter(|key| range.contains(key)).collect();
            keys.sort_unstable();
            (!keys.is_empty()).then(|| (keys, join(*prefix, u32::MAX).next()))
        })
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }
}
