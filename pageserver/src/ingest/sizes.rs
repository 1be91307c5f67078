//! Sizes and existence of relation forks and SLRU segments as of the newest ingested record.

use std::collections::HashMap;

use pg_types::{Key, Lsn, RelTag, SlruKind};

use super::batch::PRESENT;
use super::error::IngestError;
use super::storage::Storage;

/// Entries that are kept at most when a batch ends; about 5 MB.
const ENTRIES_MAX: usize = 100_000;

/// A relation fork as of the newest ingested record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fork {
    /// Its blocks; `None` when it does not exist.
    pub(super) nblocks: Option<u32>,
    /// Blocks below this may have versions from before a truncation or a drop.
    pub(super) high_water: u32,
}

/// The cache; what it holds includes the records of the open batch, so it is emptied only when that is put.
#[derive(Debug)]
pub(super) struct SizeCache {
    relations: HashMap<RelTag, Fork>,
    /// `None`: known not to exist.
    segments: HashMap<(SlruKind, u32), Option<u32>>,
}

impl SizeCache {
    pub(super) fn new() -> SizeCache {
        SizeCache { relations: HashMap::new(), segments: HashMap::new() }
    }

    /// A relation fork.
    pub(super) fn relation(
        &mut self,
        storage: &impl Storage,
        rel: RelTag,
    ) -> Result<Fork, IngestError> {
        if let Some(known) = self.relations.get(&rel) {
            return Ok(*known);
        }
        let fork = read_fork(storage, rel)?;
        self.relations.insert(rel, fork);
        Ok(fork)
    }

    /// Notes what a fork is from now on.
    pub(super) fn set_relation(&mut self, rel: RelTag, fork: Fork) {
        self.relations.insert(rel, fork);
    }

    /// Blocks of a segment; `None` when it does not exist.
    pub(super) fn segment(
        &mut self,
        storage: &impl Storage,
        kind: SlruKind,
        segno: u32,
    ) -> Result<Option<u32>, IngestError> {
        if let Some(known) = self.segments.get(&(kind, segno)) {
            return Ok(*known);
        }
        let lsn = storage.position().last_record_lsn;
        let size = read_size(storage, Key::slru_segment_size(kind, segno), lsn)?;
        self.segments.insert((kind, segno), size);
        Ok(size)
    }

    /// Notes a segment's size, or that it is gone.
    pub(super) fn set_segment(&mut self, kind: SlruKind, segno: u32, size: Option<u32>) {
        self.segments.insert((kind, segno), size);
    }

    /// To be called when the open batch was put: forgets everything when there is too much of it.
    pub(super) fn shrink(&mut self) {
        if self.relations.len() > ENTRIES_MAX {
            self.relations.clear();
        }
        if self.segments.len() > ENTRIES_MAX {
            self.segments.clear();
        }
    }
}

/// The value of a fork's directory entry: `r`, and the high-water mark once there is one.
pub(super) fn directory_entry(high_water: u32) -> Vec<u8> {
    let mut value = PRESENT.to_vec();
    if high_water > 0 {
        value.extend_from_slice(&high_water.to_le_bytes());
    }
    value
}

/// An existing fork's mark is in its directory entry. A dropped one's is where its size was.
fn read_fork(storage: &impl Storage, rel: RelTag) -> Result<Fork, IngestError> {
    let lsn = storage.position().last_record_lsn;
    let size = read_size(storage, Key::rel_size(rel), lsn)?;
    match storage.get_image(Key::rel_dir_entry(rel), lsn)? {
        None => Ok(Fork { nblocks: None, high_water: size.unwrap_or(0) }),
        Some(entry) => {
            let mark = entry.get(PRESENT.len()..).and_then(|mark| mark.first_chunk::<4>());
            let high_water = mark.map_or(0, |mark| u32::from_le_bytes(*mark));
            Ok(Fork { nblocks: Some(size.unwrap_or(0)), high_water })
        }
    }
}

fn read_size(storage: &impl Storage, key: Key, lsn: Lsn) -> Result<Option<u32>, IngestError> {
    match storage.get_image(key, lsn)? {
        None => Ok(None),
        Some(value) => match value.first_chunk::<4>() {
            Some(bytes) if value.len() == 4 => Ok(Some(u32::from_le_bytes(*bytes))),
            _ => Err(IngestError::StoredValue { key, lsn }),
        },
    }
}
