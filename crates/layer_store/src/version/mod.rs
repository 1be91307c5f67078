//! The immutable set of layers that readers look into.
//!
//! V1: For every key, each version in level 0 is newer than each in level 1, and so on downwards.
//! V2: Layers of level 0 have LSN ranges that do not overlap; they are listed oldest first.
//! V3: Layers of any other level have key ranges that do not overlap; they are listed by key.

pub(crate) mod manifest;
pub(crate) mod recover;

use std::sync::Arc;

use pg_types::{Key, Lsn};

use crate::error::ReadError;
use crate::layer::{Layer, LayerMeta};
use crate::store::RecordPosition;
use crate::value::Search;

/// Levels: 0 takes flushes, the last takes initial images.
pub(crate) const LEVELS: usize = 7;
/// The level of initial images.
pub(crate) const BASE_LEVEL: u8 = 6;

/// An immutable set of layers, and how far it reaches.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    levels: [Vec<Arc<Layer>>; LEVELS],
    /// Everything up to here is in the layers.
    pub(crate) consistent: RecordPosition,
}

/// A change of the set.
#[derive(Debug)]
pub(crate) struct VersionEdit {
    pub(crate) add: Vec<(u8, Arc<Layer>)>,
    pub(crate) consistent: RecordPosition,
}

impl Version {
    /// No layers.
    pub(crate) fn empty(consistent: RecordPosition) -> Version {
        Version { levels: Default::default(), consistent }
    }

    /// The set with a change applied; an error names the broken rule.
    pub(crate) fn apply(&self, edit: VersionEdit) -> Result<Version, String> {
        let mut next = self.clone();
        if edit.consistent.last_record_lsn < self.consistent.last_record_lsn {
            return Err("V4: disk_consistent_lsn moves backwards".to_owned());
        }
        next.consistent = edit.consistent;
        for (level, layer) in edit.add {
            next.levels
                .get_mut(usize::from(level))
                .ok_or_else(|| format!("level {level} does not exist"))?
                .push(layer);
        }
        next.sort();
        next.check()?;
        Ok(next)
    }

    /// All layers with their levels, in the order of the manifest.
    pub(crate) fn layers(&self) -> impl Iterator<Item = (u8, &Arc<Layer>)> {
        (0_u8..)
            .zip(&self.levels)
            .flat_map(|(level, layers)| layers.iter().map(move |l| (level, l)))
    }

    /// All layers, those with newer versions of any key first.
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = &Arc<Layer>> {
        let [newest, older @ ..] = &self.levels;
        newest.iter().rev().chain(older.iter().flatten())
    }

    /// Gives the versions of `key` at or below `lsn` to `search`, newest first, until it has enough.
    pub(crate) fn search(&self, key: Key, lsn: Lsn, search: &mut Search) -> Result<(), ReadError> {
        let [newest, older @ ..] = &self.levels;
        let flushed = newest.iter().rev().filter(|layer| layer.meta().covers(key, lsn));
        let merged = older.iter().filter_map(|layers| {
            let at = layers.partition_point(|layer| layer.meta().max_key < key);
            layers.get(at).filter(|layer| layer.meta().covers(key, lsn))
        });
        for layer in flushed.chain(merged) {
            if layer.meta().max_lsn <= search.floor {
                continue;
            }
            search.visited += 1;
            layer.search(key, lsn, search)?;
            if search.is_done() {
                break;
            }
        }
        Ok(())
    }

    fn sort(&mut self) {
        let [newest, older @ ..] = &mut self.levels;
        newest.sort_by_key(|layer| layer.meta().min_lsn);
        for layers in older {
            layers.sort_by_key(|layer| layer.meta().min_key);
        }
    }

    fn check(&self) -> Result<(), String> {
        let [newest, older @ ..] = &self.levels;
        let apart = |layers: &[Arc<Layer>], before: fn(&LayerMeta, &LayerMeta) -> bool| {
            layers.windows(2).all(|pair| match pair {
                [a, b] => before(a.meta(), b.meta()),
                _ => true,
            })
        };
        if !apart(newest, |a, b| a.max_lsn < b.min_lsn) {
            return Err("V2: layers of level 0 overlap in LSN".to_owned());
        }
        if !older.iter().all(|layers| apart(layers, |a, b| a.max_key < b.min_key)) {
            return Err("V3: layers of one level overlap in keys".to_owned());
        }
        let last = self.consistent.last_record_lsn;
        if self.layers().any(|(_, layer)| layer.meta().max_lsn > last) {
            return Err("V5: a layer reaches beyond disk_consistent_lsn".to_owned());
        }
        Ok(())
    }
}
