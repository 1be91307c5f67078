//! The values of the records that are ingested but not readable yet.

use bytes::BytesMut;
use layer_store::WriteBatch;
use pg_types::{Key, Lsn};
use walredo_sidecar::NeonWalRecord;

/// Value of a directory entry that exists.
pub const PRESENT: &[u8] = b"r";

/// Values of whole records, to be put together.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) writes: WriteBatch,
    /// Records in it, including those that write nothing.
    pub(super) records: usize,
    scratch: BytesMut,
}

impl Batch {
    pub(super) fn new() -> Batch {
        Batch { writes: WriteBatch::new(), records: 0, scratch: BytesMut::new() }
    }

    /// A whole value.
    pub(super) fn image(&mut self, key: Key, lsn: Lsn, value: &[u8]) {
        self.writes.put_image(key, lsn, value);
    }

    /// No value from here on: a page of zeros, a directory entry or size that is gone.
    pub(super) fn remove(&mut self, key: Key, lsn: Lsn) {
        self.writes.remove(key, lsn);
    }

    /// A size in blocks.
    pub(super) fn size(&mut self, key: Key, lsn: Lsn, nblocks: u32) {
        self.writes.put_image(key, lsn, &nblocks.to_le_bytes());
    }

    /// One change, for each of the keys, which share its bytes.
    pub(super) fn delta(&mut self, keys: &[(Key, bool)], lsn: Lsn, change: &NeonWalRecord) {
        self.scratch.clear();
        change.encode_to(&mut self.scratch);
        self.writes.put_shared_delta(keys, lsn, &self.scratch);
    }

    /// Takes everything out.
    pub(super) fn take(&mut self) -> WriteBatch {
        self.records = 0;
        std::mem::replace(&mut self.writes, WriteBatch::new())
    }
}
