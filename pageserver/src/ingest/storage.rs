//! What ingest asks of the store.

use std::ops::Range;

use bytes::Bytes;
use layer_store::{PutError, ReadError, RecordPosition, Store, WriteBatch};
use pg_types::{Key, Lsn};

/// The part of a timeline's store that ingest uses.
pub trait Storage {
    /// How far the store has come.
    fn position(&self) -> RecordPosition;
    /// Adds versions and moves the position.
    fn put(&self, batch: WriteBatch, position: RecordPosition) -> Result<(), PutError>;
    /// The newest whole value of a key; `None` when there is none.
    fn get_image(&self, key: Key, lsn: Lsn) -> Result<Option<Bytes>, ReadError>;
    /// The keys of a range that have a value.
    fn scan_keys(&self, range: Range<Key>, lsn: Lsn) -> Result<Vec<Key>, ReadError>;
}

impl Storage for Store {
    fn position(&self) -> RecordPosition {
        Store::position(self)
    }

    fn put(&self, batch: WriteBatch, position: RecordPosition) -> Result<(), PutError> {
        Store::put(self, batch, position)
    }

    fn get_image(&self, key: Key, lsn: Lsn) -> Result<Option<Bytes>, ReadError> {
        Ok(Store::get_image(self, key, lsn)?.map(|(_, value)| value))
    }

    fn scan_keys(&self, range: Range<Key>, lsn: Lsn) -> Result<Vec<Key>, ReadError> {
        Store::scan_keys(self, range, lsn)?.collect()
    }
}

/// Rebuilds pages: the timeline's read path.
pub trait PageReader: Send + Sync {
    /// The page at an LSN that has been ingested; `None` when it was never written. The error is for the log.
    fn page_at(&self, key: Key, lsn: Lsn) -> Result<Option<Bytes>, String>;
}
