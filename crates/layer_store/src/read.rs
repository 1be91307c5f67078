//! Reads: which versions make up a key's value at an LSN.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use pg_types::{Key, Lsn};

use crate::error::ReadError;
use crate::limits::ANCESTORS_MAX;
use crate::memtable::Found;
use crate::store::{Contents, Store};
use crate::value::{Reconstruct, ValueKind};

impl Store {
    /// Everything needed to rebuild a key's value at `lsn` (inclusive). A key that was never written gives an
    /// empty answer ([`Reconstruct::is_missing`]), not an error.
    pub fn get(&self, key: Key, lsn: Lsn) -> Result<Reconstruct, ReadError> {
        let mut found = Vec::new();
        let mut layers_visited = 0;
        for (store, lsn) in self.lineage(lsn)? {
            let contents = store.readable(lsn)?;
            let ended = search(&contents, key, lsn, &mut found, &mut layers_visited);
            if ended || !key.is_inherited() {
                break;
            }
        }
        Ok(assemble(found, layers_visited))
    }

    /// [`Store::get`] for several keys, each at its own LSN; answers are in the order of the requests.
    pub fn get_many(&self, requests: &[(Key, Lsn)]) -> Vec<Result<Reconstruct, ReadError>> {
        requests.iter().map(|(key, lsn)| self.get(*key, *lsn)).collect()
    }

    /// The newest whole value of a key at `lsn`, with the LSN it was put at; `None` when there is none or the key
    /// was removed. For keys whose values are always whole (sizes, directories, files).
    pub fn get_image(&self, key: Key, lsn: Lsn) -> Result<Option<(Lsn, Bytes)>, ReadError> {
        for (store, lsn) in self.lineage(lsn)? {
            let contents = store.readable(lsn)?;
            if let Some(found) = newest(&contents, key, lsn) {
                return image(key, found);
            }
            if !key.is_inherited() {
                break;
            }
        }
        Ok(None)
    }

    /// The newest whole value of every key of a range at `lsn`, in key order; removed keys are left out. For
    /// ranges whose values are whole: a page with changes is an error. The result is held in memory.
    pub fn scan(&self, range: Range<Key>, lsn: Lsn) -> Result<Vec<(Key, Bytes)>, ReadError> {
        let mut newest = BTreeMap::new();
        self.scan_newest(&range, lsn, &mut newest)?;
        let images = newest.into_iter().map(|(key, found)| Ok((key, image(key, found)?)));
        images
            .filter_map(|result: Result<_, ReadError>| match result {
                Ok((key, image)) => image.map(|(_, data)| Ok((key, data))),
                Err(error) => Some(Err(error)),
            })
            .collect()
    }

    /// The keys of a range that have a value at `lsn`, in order; removed keys are left out.
    pub fn scan_keys(&self, range: Range<Key>, lsn: Lsn) -> Result<Vec<Key>, ReadError> {
        let mut newest = BTreeMap::new();
        self.scan_newest(&range, lsn, &mut newest)?;
        let present = |found: &Found| found.kind != ValueKind::Image || !found.data.is_empty();
        Ok(newest.into_iter().filter(|(_, found)| present(found)).map(|(key, _)| key).collect())
    }

    fn scan_newest(
        &self,
        range: &Range<Key>,
        lsn: Lsn,
        into: &mut BTreeMap<Key, Found>,
    ) -> Result<(), ReadError> {
        for (depth, (store, lsn)) in self.lineage(lsn)?.into_iter().enumerate() {
            let contents = store.readable(lsn)?;
            for memtable in memtables(&contents) {
                for key in memtable.keys(range) {
                    if (depth > 0 && !key.is_inherited()) || into.contains_key(&key) {
                        continue;
                    }
                    if let Some(found) = memtable.newest(key, lsn) {
                        into.insert(key, found);
                    }
                }
            }
        }
        Ok(())
    }

    /// The stores to search, newest first, each with the LSN to read it at.
    fn lineage(&self, lsn: Lsn) -> Result<Vec<(Store, Lsn)>, ReadError> {
        let mut lineage = vec![(self.clone(), lsn)];
        let mut next = self.ancestor().cloned();
        let mut at = lsn;
        while let Some(ancestor) = next.filter(|_| lineage.len() < ANCESTORS_MAX) {
            at = at.min(ancestor.lsn);
            next = ancestor.store.ancestor().cloned();
            lineage.push((ancestor.store, at));
        }
        match lineage.last() {
            Some((root, _)) if at < root.start_lsn() => {
                Err(ReadError::BelowStart { lsn, start_lsn: root.start_lsn() })
            }
            _ => Ok(lineage),
        }
    }

    /// What to look into for a read at `lsn`.
    fn readable(&self, lsn: Lsn) -> Result<Arc<Contents>, ReadError> {
        let last_record_lsn = self.last_record_lsn();
        if lsn > last_record_lsn {
            return Err(ReadError::NotReached { lsn, last_record_lsn });
        }
        Ok(self.contents())
    }
}

/// Memtables from newest to oldest.
fn memtables(contents: &Contents) -> impl Iterator<Item = &crate::memtable::Memtable> {
    std::iter::once(&contents.open).chain(contents.frozen.iter().rev()).map(AsRef::as_ref)
}

fn search(
    contents: &Contents,
    key: Key,
    lsn: Lsn,
    found: &mut Vec<Found>,
    visited: &mut u32,
) -> bool {
    memtables(contents).any(|memtable| {
        *visited += 1;
        memtable.get(key, lsn, found)
    })
}

fn newest(contents: &Contents, key: Key, lsn: Lsn) -> Option<Found> {
    memtables(contents).find_map(|memtable| memtable.newest(key, lsn))
}

fn image(key: Key, found: Found) -> Result<Option<(Lsn, Bytes)>, ReadError> {
    match found.kind {
        ValueKind::Image if found.data.is_empty() => Ok(None),
        ValueKind::Image => Ok(Some((found.lsn, found.data))),
        ValueKind::Delta | ValueKind::DeltaWillInit => {
            Err(ReadError::NotAnImage { key, lsn: found.lsn })
        }
    }
}

/// Puts versions, newest first, into the order of replay.
fn assemble(mut found: Vec<Found>, layers_visited: u32) -> Reconstruct {
    let oldest = found.last().map(|oldest| oldest.kind);
    let base = match oldest {
        Some(ValueKind::Image) => found.pop().map(|image| (image.lsn, image.data)),
        _ => None,
    };
    Reconstruct {
        base,
        deltas: found.into_iter().rev().map(|delta| (delta.lsn, delta.data)).collect(),
        first_will_init: oldest == Some(ValueKind::DeltaWillInit),
        layers_visited,
    }
}
