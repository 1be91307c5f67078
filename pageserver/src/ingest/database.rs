//! Database directories: entries, copies, drops.

use std::sync::Arc;

use pg_types::key::KeyKind;
use pg_types::{BLCKSZ, Key, Lsn, RelTag};
use wal_decoder::DecodedRecord;
use wal_decoder::effects::DatabaseDirectory;

use super::Ingest;
use super::batch::PRESENT;
use super::error::IngestError;
use super::storage::Storage;

impl<S: Storage> Ingest<S> {
    /// The directory has an entry.
    pub(super) fn ensure_database(
        &mut self,
        directory: DatabaseDirectory,
        lsn: Lsn,
    ) -> Result<(), IngestError> {
        let DatabaseDirectory { spc_oid, db_oid } = directory;
        let key = Key::database(spc_oid, db_oid);
        let known = self.databases.get(&(spc_oid, db_oid)).copied();
        let exists = match known {
            Some(exists) => exists,
            None => self.storage.get_image(key, self.stored_lsn())?.is_some(),
        };
        if !exists {
            self.batch.image(key, lsn, PRESENT);
        }
        self.databases.insert((spc_oid, db_oid), true);
        Ok(())
    }

    /// Removes a directory with all its relations. The open batch must have been put.
    pub(super) fn drop_database(
        &mut self,
        directory: DatabaseDirectory,
        lsn: Lsn,
    ) -> Result<(), IngestError> {
        let DatabaseDirectory { spc_oid, db_oid } = directory;
        for rel in self.relations_of(directory)? {
            self.drop_fork(rel, lsn)?;
        }
        self.batch.remove(Key::rel_map(spc_oid, db_oid), lsn);
        self.batch.remove(Key::database(spc_oid, db_oid), lsn);
        self.databases.insert((spc_oid, db_oid), false);
        Ok(())
    }

    fn relations_of(&self, directory: DatabaseDirectory) -> Result<Vec<RelTag>, IngestError> {
        let range = Key::rel_dir_range(directory.spc_oid, directory.db_oid);
        let keys = self.storage.scan_keys(range, self.stored_lsn())?;
        Ok(keys
            .into_iter()
            .filter_map(|key| match key.kind() {
                Some(KeyKind::RelDirEntry(rel)) => Some(rel),
                _ => None,
            })
            .collect())
    }

    /// `CREATE DATABASE ... STRATEGY file_copy`: the source as it is before this record, page by page, with the
    /// pages' LSNs as they are there. The open batch must have been put. All of the copy is one batch.
    pub(super) fn copy_database(
        &mut self,
        source: DatabaseDirectory,
        target: DatabaseDirectory,
        record: &DecodedRecord,
    ) -> Result<(), IngestError> {
        let pages = self.pages.as_ref().map(Arc::clone);
        let pages = pages.ok_or(IngestError::NoPageReader { lsn: record.start_lsn })?;
        let (from, lsn) = (self.stored_lsn(), record.next_lsn);
        self.drop_database(target, lsn)?;
        self.ensure_database(target, lsn)?;
        let map = self.storage.get_image(Key::rel_map(source.spc_oid, source.db_oid), from)?;
        if let Some(map) = map {
            self.batch.image(Key::rel_map(target.spc_oid, target.db_oid), lsn, &map);
        }
        for rel in self.relations_of(source)? {
            let mut copy = rel;
            copy.locator.spc_oid = target.spc_oid;
            copy.locator.db_oid = target.db_oid;
            let nblocks = self.sizes.relation(&self.storage, rel)?.nblocks.unwrap_or(0);
            self.copy_fork(copy, nblocks, lsn)?;
            for blkno in 0..nblocks {
                let key = Key::rel_block(rel, blkno);
                let page = pages.page_at(key, from);
                let page = page.map_err(|reason| IngestError::Page { key, lsn: from, reason })?;
                let to = Key::rel_block(copy, blkno);
                match page.as_ref().and_then(|page| page.get(..BLCKSZ)) {
                    Some(page) => self.batch.image(to, lsn, page),
                    None => self.batch.remove(to, lsn),
                }
            }
        }
        Ok(())
    }
}
