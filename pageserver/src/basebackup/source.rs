//! Where the contents come from.

use std::ops::Range;

use bytes::Bytes;
use pg_types::{Key, Lsn};

/// Why the source has no answer.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// A timeline, as far as a backup reads it. All LSNs are ones that it has reached.
pub trait BackupSource {
    /// The newest whole value of a key; `None` when there is none or it was removed.
    fn value(&self, key: Key, lsn: Lsn) -> Result<Option<Bytes>, SourceError>;
    /// The newest whole values of a range of keys, in order, without removed ones.
    fn values(&self, range: Range<Key>, lsn: Lsn) -> Result<Vec<(Key, Bytes)>, SourceError>;
    /// The first key of a range that has a value.
    fn first_key(&self, range: Range<Key>, lsn: Lsn) -> Result<Option<Key>, SourceError>;
    /// A page, rebuilt; `None` when it was never written. A page of `pg_xact` may have bytes behind its end.
    fn page(&self, key: Key, lsn: Lsn) -> Result<Option<Bytes>, SourceError>;
}
