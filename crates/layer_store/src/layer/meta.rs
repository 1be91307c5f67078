//! What a manifest says about a layer.

use pg_types::{Key, Lsn};

use super::format::Fields;
use crate::value::LayerKind;

/// What a manifest says about a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LayerMeta {
    /// Names the file; never used twice in a store.
    pub(crate) sequence: u64,
    pub(crate) kind: LayerKind,
    pub(crate) file_bytes: u64,
    /// CRC-32C of the whole file, for copies of it.
    pub(crate) file_crc: u32,
    pub(crate) versions: u64,
    /// Smallest and greatest key, both in the layer.
    pub(crate) min_key: Key,
    pub(crate) max_key: Key,
    /// Lowest and highest LSN, both in the layer.
    pub(crate) min_lsn: Lsn,
    pub(crate) max_lsn: Lsn,
}

impl LayerMeta {
    pub(crate) fn write(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.sequence.to_le_bytes());
        into.push(self.kind as u8);
        into.extend_from_slice(&self.file_bytes.to_le_bytes());
        into.extend_from_slice(&self.file_crc.to_le_bytes());
        into.extend_from_slice(&self.versions.to_le_bytes());
        into.extend_from_slice(&self.min_key.0);
        into.extend_from_slice(&self.max_key.0);
        into.extend_from_slice(&self.min_lsn.0.to_le_bytes());
        into.extend_from_slice(&self.max_lsn.0.to_le_bytes());
    }

    pub(crate) fn read(from: &mut Fields<'_>) -> Option<LayerMeta> {
        Some(LayerMeta {
            sequence: from.u64()?,
            kind: LayerKind::from_number(from.u8()?)?,
            file_bytes: from.u64()?,
            file_crc: from.u32()?,
            versions: from.u64()?,
            min_key: from.key()?,
            max_key: from.key()?,
            min_lsn: from.lsn()?,
            max_lsn: from.lsn()?,
        })
    }

    /// Whether the layer may hold `key` at or below `lsn`, as far as its bounds tell.
    pub(crate) fn covers(&self, key: Key, lsn: Lsn) -> bool {
        self.min_lsn <= lsn && self.min_key <= key && key <= self.max_key
    }
}
