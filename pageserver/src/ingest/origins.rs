//! Progress of replication origins (`replorigin_advance` in `origin.c`).

use pg_types::{Key, Lsn};

use super::Ingest;
use super::error::IngestError;
use super::storage::Storage;

impl<S: Storage> Ingest<S> {
    /// Sets an origin's position; unless forced, it never goes back. The open batch must have been put.
    pub(super) fn set_origin(
        &mut self,
        id: u16,
        remote_lsn: Lsn,
        force: bool,
        lsn: Lsn,
    ) -> Result<(), IngestError> {
        let key = Key::repl_origin(id);
        let stored_lsn = self.stored_lsn();
        let stored = self.storage.get_image(key, stored_lsn)?;
        let current = match stored.as_ref().map(|value| value.first_chunk::<8>()) {
            None => Lsn::INVALID,
            Some(Some(bytes)) => Lsn(u64::from_be_bytes(*bytes)),
            Some(None) => return Err(IngestError::StoredValue { key, lsn: stored_lsn }),
        };
        if force || remote_lsn > current {
            self.put_origin(id, remote_lsn, lsn);
        }
        Ok(())
    }

    /// Notes the position that a commit carries; commits of one origin come in its order.
    pub(super) fn put_origin(&mut self, id: u16, remote_lsn: Lsn, lsn: Lsn) {
        self.batch.image(Key::repl_origin(id), lsn, &remote_lsn.0.to_be_bytes());
    }
}
