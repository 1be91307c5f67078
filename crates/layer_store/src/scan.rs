//! Ranges of keys, in order, as of one LSN.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use pg_types::{Key, Lsn};

use crate::error::ReadError;
use crate::layer::cursor::LayerCursor;
use crate::memtable::Memtable;
use crate::read::whole_value;
use crate::store::{Contents, Store};
use crate::value::{Found, ValueKind};

type Newest = Result<(Key, Found), ReadError>;
type Source = Box<dyn Iterator<Item = Newest> + Send>;

/// The keys of a range that have a value at one LSN, each with its newest version, in order.
struct Scan {
    /// Newest first: the first one that has a version of a key has the newest.
    sources: Vec<Source>,
    /// Next key of each source.
    heads: BinaryHeap<Reverse<Head>>,
    last: Option<Key>,
    failed: Option<ReadError>,
}

/// The next version of a source, ordered by key, then from newest to oldest source.
struct Head {
    key: Key,
    source: usize,
    found: Found,
}

impl PartialEq for Head {
    fn eq(&self, other: &Head) -> bool {
        (self.key, self.source) == (other.key, other.source)
    }
}
impl Eq for Head {}
impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Head) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Head {
    fn cmp(&self, other: &Head) -> std::cmp::Ordering {
        (self.key, self.source).cmp(&(other.key, other.source))
    }
}

impl Store {
    /// The newest whole value of every key of a range at `lsn`, in key order; removed keys are left out. For
    /// ranges whose values are whole: a page with changes is an error. The result is held in memory.
    pub fn scan(&self, range: Range<Key>, lsn: Lsn) -> Result<Vec<(Key, Bytes)>, ReadError> {
        let mut values = Vec::new();
        for item in self.newest_versions(range, lsn)? {
            let (key, found) = item?;
            values.extend(whole_value(key, found)?.map(|(_, data)| (key, data)));
        }
        Ok(values)
    }

    /// The keys of a range that have a value at `lsn`, in order; removed keys are left out. It keeps what it
    /// looks into in memory and on disk while it lives.
    pub fn scan_keys(
        &self,
        range: Range<Key>,
        lsn: Lsn,
    ) -> Result<impl Iterator<Item = Result<Key, ReadError>> + Send + use<>, ReadError> {
        let removed = |found: &Found| found.kind == ValueKind::Image && found.data.is_empty();
        let newest = self.newest_versions(range, lsn)?;
        Ok(newest.filter_map(move |item| match item {
            Ok((_, found)) if removed(&found) => None,
            Ok((key, _)) => Some(Ok(key)),
            Err(error) => Some(Err(error)),
        }))
    }

    fn newest_versions(&self, range: Range<Key>, lsn: Lsn) -> Result<Scan, ReadError> {
        let mut sources = Vec::new();
        for (depth, (store, lsn)) in self.lineage(lsn)?.into_iter().enumerate() {
            let own = store.readable(lsn)?;
            for source in sources_of(&own, &range, lsn)? {
                sources.push(if depth == 0 { source } else { inherited(source) });
            }
        }
        let mut scan = Scan { sources, heads: BinaryHeap::new(), last: None, failed: None };
        (0..scan.sources.len()).for_each(|source| scan.pull(source));
        Ok(scan)
    }
}

/// What one store has to offer, newest first.
fn sources_of(contents: &Contents, range: &Range<Key>, lsn: Lsn) -> Result<Vec<Source>, ReadError> {
    let memtables = contents.memtables().map(|memtable| memtable_source(memtable, range, lsn));
    let mut sources: Vec<Source> = memtables.collect();
    for layer in contents.version.newest_first() {
        let meta = layer.meta();
        if meta.min_lsn <= lsn && meta.min_key < range.end && meta.max_key >= range.start {
            let cursor = LayerCursor::new(Arc::clone(layer), range.clone(), lsn)?;
            sources.push(Box::new(cursor));
        }
    }
    Ok(sources)
}

/// Takes keys fork by fork, so that a scan which is given up early costs little.
fn memtable_source(memtable: &Arc<Memtable>, range: &Range<Key>, lsn: Lsn) -> Source {
    let memtable = Arc::clone(memtable);
    let mut range = range.clone();
    let forks = Arc::clone(&memtable);
    let keys = std::iter::from_fn(move || {
        let (keys, next) = forks.keys_of_next_fork(range.clone())?;
        range.start = next;
        Some(keys)
    });
    let newest = move |key| memtable.newest(key, lsn).map(|found| Ok((key, found)));
    Box::new(keys.flatten().filter_map(newest))
}

fn inherited(source: Source) -> Source {
    Box::new(source.filter(|item| item.as_ref().map_or(true, |(key, _)| key.is_inherited())))
}

impl Scan {
    /// Fetches the next head of a source.
    fn pull(&mut self, source: usize) {
        match self.sources.get_mut(source).and_then(Iterator::next) {
            Some(Ok((key, found))) => self.heads.push(Reverse(Head { key, source, found })),
            Some(Err(error)) => self.failed = Some(error),
            None => {}
        }
    }
}

impl Iterator for Scan {
    type Item = Newest;

    fn next(&mut self) -> Option<Newest> {
        loop {
            if let Some(error) = self.failed.take() {
                self.heads.clear();
                return Some(Err(error));
            }
            let Reverse(Head { key, source, found }) = self.heads.pop()?;
            self.pull(source);
            if self.last != Some(key) {
                self.last = Some(key);
                return Some(Ok((key, found)));
            }
        }
    }
}
