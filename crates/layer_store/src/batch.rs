//! Versions that become visible together.

use bytes::Bytes;
use pg_types::{Key, Lsn};

use crate::limits::{CHUNK_BYTES, VALUE_BYTES_MAX};
use crate::value::{Value, ValueKind};

/// Versions to be put together. Keys and LSNs may come in any order; versions of one key with the same LSN keep
/// the order in which they were added.
///
/// Values are copied into chunks that the memtable takes over as they are, so that nothing is copied again.
#[derive(Debug, Default)]
pub struct WriteBatch {
    pub(crate) entries: Vec<BatchEntry>,
    full_chunks: Vec<Vec<u8>>,
    chunk: Vec<u8>,
    /// A value that no memtable takes; reported by `put`.
    pub(crate) too_large: Option<(Key, Lsn, usize)>,
    pub(crate) ascending: bool,
}

/// One version; its bytes are in a chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchEntry {
    pub(crate) key: Key,
    pub(crate) kind: ValueKind,
    pub(crate) lsn: Lsn,
    pub(crate) blob: Blob,
}

/// Place of a value's bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blob {
    pub(crate) chunk: u32,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

impl WriteBatch {
    /// A batch with nothing in it.
    pub fn new() -> WriteBatch {
        WriteBatch { ascending: true, ..WriteBatch::default() }
    }

    /// Adds a whole value.
    pub fn put_image(&mut self, key: Key, lsn: Lsn, data: &[u8]) {
        self.add(key, lsn, ValueKind::Image, data);
    }

    /// Adds a change; `will_init` when it needs no older version.
    pub fn put_delta(&mut self, key: Key, lsn: Lsn, will_init: bool, data: &[u8]) {
        let kind = if will_init { ValueKind::DeltaWillInit } else { ValueKind::Delta };
        self.add(key, lsn, kind, data);
    }

    /// Adds one change for several keys; its bytes are kept once.
    pub fn put_shared_delta(&mut self, keys: &[(Key, bool)], lsn: Lsn, data: &[u8]) {
        let Some(((first, first_will_init), rest)) = keys.split_first() else { return };
        self.put_delta(*first, lsn, *first_will_init, data);
        let Some(blob) = self.entries.last().map(|entry| entry.blob) else { return };
        for (key, will_init) in rest {
            let kind = if *will_init { ValueKind::DeltaWillInit } else { ValueKind::Delta };
            self.entries.push(BatchEntry { key: *key, kind, lsn, blob });
        }
    }

    /// Says that a key has no value from `lsn` on: an empty image.
    pub fn remove(&mut self, key: Key, lsn: Lsn) {
        self.put_image(key, lsn, &[]);
    }

    /// Adds a version.
    pub fn put(&mut self, key: Key, lsn: Lsn, value: &Value) {
        self.add(key, lsn, value.kind(), value.data());
    }

    /// Number of versions.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no version in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of all values.
    pub fn value_bytes(&self) -> usize {
        self.full_chunks.iter().fold(self.chunk.len(), |sum, chunk| sum.saturating_add(chunk.len()))
    }

    fn add(&mut self, key: Key, lsn: Lsn, kind: ValueKind, data: &[u8]) {
        if data.len() > VALUE_BYTES_MAX {
            self.too_large.get_or_insert((key, lsn, data.len()));
            return;
        }
        if !self.chunk.is_empty() && self.chunk.len() + data.len() > CHUNK_BYTES {
            self.full_chunks.push(std::mem::take(&mut self.chunk));
        }
        let place = (
            u32::try_from(self.full_chunks.len()),
            u32::try_from(self.chunk.len()),
            u32::try_from(data.len()),
        );
        let (Ok(chunk), Ok(offset), Ok(len)) = place else {
            self.too_large.get_or_insert((key, lsn, data.len()));
            return;
        };
        self.chunk.extend_from_slice(data);
        self.ascending &= self.entries.last().is_none_or(|last| last.lsn <= lsn);
        self.entries.push(BatchEntry { key, kind, lsn, blob: Blob { chunk, offset, len } });
    }

    /// The versions by ascending LSN, and the chunks they point into.
    pub(crate) fn finish(mut self) -> (Vec<BatchEntry>, Vec<Chunk>) {
        if !self.ascending {
            self.entries.sort_by_key(|entry| entry.lsn);
        }
        self.full_chunks.push(self.chunk);
        let chunks = self.full_chunks.into_iter().map(Chunk::new).collect();
        (self.entries, chunks)
    }
}

/// Value bytes that readers share, and what they cost.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) bytes: Bytes,
    pub(crate) allocated: usize,
}

impl Chunk {
    fn new(mut buffer: Vec<u8>) -> Chunk {
        if buffer.capacity() / 4 * 3 > buffer.len() {
            buffer.shrink_to_fit();
        }
        let allocated = buffer.capacity();
        Chunk { bytes: Bytes::from(buffer), allocated }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_change_for_several_keys_is_kept_once() {
        let mut batch = WriteBatch::new();
        let data = [7_u8; 100];
        batch.put_shared_delta(&[(Key::MIN, true), (Key::MAX, false)], Lsn(8), &data);
        assert_eq!((batch.len(), batch.value_bytes()), (2, 100));
        let (entries, _) = batch.finish();
        assert_eq!(entries[0].kind, ValueKind::DeltaWillInit);
        assert_eq!(entries[1].kind, ValueKind::Delta);
        assert_eq!(entries[0].blob.offset, entries[1].blob.offset);
    }

    #[test]
    fn versions_are_sorted_by_lsn_and_stay_in_order_at_one_lsn() {
        let mut batch = WriteBatch::new();
        batch.put_image(Key::MIN, Lsn(16), b"c");
        batch.put_image(Key::MIN, Lsn(8), b"a");
        batch.put_image(Key::MIN, Lsn(8), b"b");
        let (entries, chunks) = batch.finish();
        let values: Vec<&[u8]> =
            entries.iter().map(|e| &chunks[0].bytes[e.blob.offset as usize..][..1]).collect();
        assert_eq!(values, [b"a", b"b", b"c"]);
    }

    #[test]
    fn big_values_get_chunks_of_their_own() {
        let mut batch = WriteBatch::new();
        batch.put_image(Key::MIN, Lsn(8), b"small");
        batch.put_image(Key::MIN, Lsn(9), &vec![1; CHUNK_BYTES + 1]);
        batch.put_image(Key::MIN, Lsn(10), b"small");
        let (_, chunks) = batch.finish();
        assert_eq!(
            chunks.iter().map(|c| c.bytes.len()).collect::<Vec<_>>(),
            [5, CHUNK_BYTES + 1, 5]
        );
    }
}
