//! A store that holds whole values only, as an import leaves it.

use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use layer_store::Store;
use pageserver::basebackup::{self, BackupRequest, BackupSource, BackupSummary, SourceError};
use pg_types::{Key, Lsn};

pub struct Whole<'a>(pub &'a Store);

impl BackupSource for Whole<'_> {
    fn value(&self, key: Key, lsn: Lsn) -> Result<Option<Bytes>, SourceError> {
        Ok(self.0.get_image(key, lsn)?.map(|(_, value)| value))
    }

    fn values(&self, range: Range<Key>, lsn: Lsn) -> Result<Vec<(Key, Bytes)>, SourceError> {
        Ok(self.0.scan(range, lsn)?)
    }

    fn first_key(&self, range: Range<Key>, lsn: Lsn) -> Result<Option<Key>, SourceError> {
        Ok(self.0.scan_keys(range, lsn)?.next().transpose()?)
    }

    fn page(&self, key: Key, lsn: Lsn) -> Result<Option<Bytes>, SourceError> {
        self.value(key, lsn)
    }
}

/// Makes a backup and unpacks it into `to`, over what is there.
pub fn unpack(store: &Store, request: &BackupRequest, to: &Path) -> BackupSummary {
    let mut bytes = Vec::new();
    let summary = basebackup::write(&Whole(store), request, &mut bytes).unwrap();
    tar::Archive::new(bytes.as_slice()).unpack(to).unwrap();
    summary
}
