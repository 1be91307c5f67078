//! Reads: which versions make up a key's value at an LSN.

use std::sync::Arc;

use bytes::Bytes;
use pg_types::{Key, Lsn};

use crate::error::ReadError;
use crate::limits::ANCESTORS_MAX;
use crate::memtable::Memtable;
use crate::store::{Contents, Store};
use crate::value::{Found, Reconstruct, Search, ValueKind};

impl Store {
    /// Everything needed to rebuild a key's value at `lsn` (inclusive). A key that was never written gives an
    /// empty answer ([`Reconstruct::is_missing`]), not an error.
    pub fn get(&self, key: Key, lsn: Lsn) -> Result<Reconstruct, ReadError> {
        let mut search = Search::all();
        self.search(key, lsn, &mut search)?;
        Ok(assemble(search))
    }

    /// Like [`Store::get`], for a caller that has the value as of `floor`: only versions behind that LSN are looked
    /// for, and layers that end there are not visited. Without base and without
    /// [`Reconstruct::first_will_init`] the deltas are those to apply to the caller's value; when there are none
    /// either, it is the value still.
    pub fn get_since(&self, key: Key, lsn: Lsn, floor: Lsn) -> Result<Reconstruct, ReadError> {
        let mut search = Search::since(floor);
        self.search(key, lsn, &mut search)?;
        Ok(assemble(search))
    }

    /// [`Store::get`] for several keys, each at its own LSN; answers are in the order of the requests. Requests
    /// for neighbouring keys share the blocks they need through the cache.
    pub fn get_many(&self, requests: &[(Key, Lsn)]) -> Vec<Result<Reconstruct, ReadError>> {
        requests.iter().map(|(key, lsn)| self.get(*key, *lsn)).collect()
    }

    /// The newest whole value of a key at `lsn`, with the LSN it was put at; `None` when there is none or the key
    /// was removed. For keys whose values are always whole (sizes, directories, files).
    pub fn get_image(&self, key: Key, lsn: Lsn) -> Result<Option<(Lsn, Bytes)>, ReadError> {
        let mut search = Search::newest();
        self.search(key, lsn, &mut search)?;
        search.found.pop().map_or(Ok(None), |found| whole_value(key, found))
    }

    fn search(&self, key: Key, lsn: Lsn, search: &mut Search) -> Result<(), ReadError> {
        let mut lineage = self.lineage(lsn)?.into_iter();
        while let Some((store, lsn)) = lineage.next().filter(|_| !search.is_done()) {
            if lsn <= search.floor {
                break;
            }
            store.readable(lsn)?.search(key, lsn, search)?;
            if !key.is_inherited() {
                break;
            }
        }
        Ok(())
    }

    /// The stores to search, newest first, each with the LSN to read it at.
    pub(crate) fn lineage(&self, lsn: Lsn) -> Result<Vec<(&Store, Lsn)>, ReadError> {
        let mut lineage = vec![(self, lsn)];
        let mut next = self.ancestor();
        let mut at = lsn;
        while let Some(ancestor) = next.filter(|_| lineage.len() < ANCESTORS_MAX) {
            at = at.min(ancestor.lsn);
            next = ancestor.store.ancestor();
            lineage.push((&ancestor.store, at));
        }
        match lineage.last() {
            Some((root, _)) if at < root.start_lsn() => {
                Err(ReadError::BelowStart { lsn, start_lsn: root.start_lsn() })
            }
            _ => Ok(lineage),
        }
    }

    /// What to look into for a read at `lsn`. The position is looked at first: what is taken after it holds
    /// everything up to it.
    pub(crate) fn readable(&self, lsn: Lsn) -> Result<Arc<Contents>, ReadError> {
        let last_record_lsn = self.last_record_lsn();
        if lsn > last_record_lsn {
            return Err(ReadError::NotReached { lsn, last_record_lsn });
        }
        Ok(self.contents())
    }
}

impl Contents {
    /// Memtables from newest to oldest.
    pub(crate) fn memtables(&self) -> impl Iterator<Item = &Arc<Memtable>> {
        let frozen = self.frozen.iter().rev().map(|frozen| &frozen.memtable);
        std::iter::once(&self.open).chain(frozen)
    }

    fn search(&self, key: Key, lsn: Lsn, search: &mut Search) -> Result<(), ReadError> {
        for memtable in self.memtables() {
            search.visited += 1;
            memtable.search(key, lsn, search);
            if search.is_done() {
                return Ok(());
            }
        }
        self.version.search(key, lsn, search)
    }
}

/// A version as a whole value; `None` for a removed key.
pub(crate) fn whole_value(key: Key, found: Found) -> Result<Option<(Lsn, Bytes)>, ReadError> {
    match found.kind {
        ValueKind::Image if found.data.is_empty() => Ok(None),
        ValueKind::Image => Ok(Some((found.lsn, found.data))),
        ValueKind::Delta | ValueKind::DeltaWillInit => {
            Err(ReadError::NotAnImage { key, lsn: found.lsn })
        }
    }
}

/// Puts versions, newest first, into the order of replay.
fn assemble(search: Search) -> Reconstruct {
    let Search { mut found, visited, .. } = search;
    let oldest = found.last().map(|oldest| oldest.kind);
    let base = match oldest {
        Some(ValueKind::Image) => found.pop().map(|image| (image.lsn, image.data)),
        _ => None,
    };
    Reconstruct {
        base,
        deltas: found.into_iter().rev().map(|delta| (delta.lsn, delta.data)).collect(),
        first_will_init: oldest == Some(ValueKind::DeltaWillInit),
        layers_visited: visited,
    }
}
