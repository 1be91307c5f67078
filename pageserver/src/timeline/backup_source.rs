//! A timeline as the source of a backup.

use std::ops::Range;

use bytes::Bytes;
use pg_types::{Key, Lsn};

use super::Timeline;
use crate::basebackup::{BackupSource, SourceError};

impl BackupSource for Timeline {
    fn value(&self, key: Key, lsn: Lsn) -> Result<Option<Bytes>, SourceError> {
        Ok(self.store.get_image(key, lsn)?.map(|(_, value)| value))
    }

    fn values(&self, range: Range<Key>, lsn: Lsn) -> Result<Vec<(Key, Bytes)>, SourceError> {
        Ok(self.store.scan(range, lsn)?)
    }

    fn first_key(&self, range: Range<Key>, lsn: Lsn) -> Result<Option<Key>, SourceError> {
        Ok(self.store.scan_keys(range, lsn)?.next().transpose()?)
    }

    fn page(&self, key: Key, lsn: Lsn) -> Result<Option<Bytes>, SourceError> {
        Ok(self.page_at(key, lsn, lsn)?)
    }
}
