//! Files of relations: create, extend, truncate, drop; and bits of their visibility maps.

use pg_types::page::Page;
use pg_types::{BLCKSZ, BlockNumber, ForkNumber, Key, Lsn, RelFileLocator, RelTag};
use wal_decoder::effects::{DatabaseDirectory, RelationTruncate, VmClear};
use walredo_sidecar::NeonWalRecord;

use super::Ingest;
use super::error::IngestError;
use super::maps;
use super::sizes::{Fork, directory_entry};
use super::storage::Storage;

/// Leftover blocks that one record may cover at most (32 GiB): a greater jump is no extension that PostgreSQL does,
/// and must not fill memory.
const GAP_BLOCKS_MAX: usize = 4 * 1024 * 1024;

impl<S: Storage> Ingest<S> {
    /// The fork exists, with the size it has or none (`smgrcreate` in redo).
    pub(super) fn create_relation(&mut self, rel: RelTag, lsn: Lsn) -> Result<(), IngestError> {
        self.extend_relation(rel, 0, lsn)
    }

    /// The fork exists and has at least `nblocks` blocks; new ones are zeros until they are written.
    pub(super) fn extend_relation(
        &mut self,
        rel: RelTag,
        nblocks: BlockNumber,
        lsn: Lsn,
    ) -> Result<(), IngestError> {
        self.extend_up_to(rel, nblocks, nblocks, lsn)
    }

    /// The fork has a block that the current record writes: from nothing (`initialised`), or on top of what is
    /// there.
    pub(super) fn extend_to_block(
        &mut self,
        rel: RelTag,
        blkno: BlockNumber,
        initialised: bool,
        lsn: Lsn,
    ) -> Result<(), IngestError> {
        let nblocks = blkno.saturating_add(1);
        self.extend_up_to(rel, nblocks, if initialised { blkno } else { nblocks }, lsn)
    }

    /// Extends to `nblocks` blocks, of which those below `zeroed` must read as zeros. Blocks without any version
    /// do so by themselves; only what an earlier life of the fork left needs to be covered.
    fn extend_up_to(
        &mut self,
        rel: RelTag,
        nblocks: BlockNumber,
        zeroed: BlockNumber,
        lsn: Lsn,
    ) -> Result<(), IngestError> {
        let fork = self.sizes.relation(&self.storage, rel)?;
        if fork.nblocks.is_some_and(|size| size >= nblocks) {
            return Ok(());
        }
        if fork.nblocks.is_none() {
            self.put_directory_entry(rel, fork.high_water, lsn)?;
        }
        let leftover = fork.nblocks.unwrap_or(0)..zeroed.min(fork.high_water);
        if leftover.len() > GAP_BLOCKS_MAX {
            return Err(IngestError::Gap { lsn, rel, nblocks });
        }
        for blkno in leftover {
            self.batch.remove(Key::rel_block(rel, blkno), lsn);
        }
        self.set_relation_size(rel, nblocks, fork.high_water, lsn);
        Ok(())
    }

    fn put_directory_entry(
        &mut self,
        rel: RelTag,
        high_water: u32,
        lsn: Lsn,
    ) -> Result<(), IngestError> {
        let RelFileLocator { spc_oid, db_oid, .. } = rel.locator;
        self.ensure_database(DatabaseDirectory { spc_oid, db_oid }, lsn)?;
        self.batch.image(Key::rel_dir_entry(rel), lsn, &directory_entry(high_water));
        Ok(())
    }

    fn set_relation_size(&mut self, rel: RelTag, nblocks: BlockNumber, high_water: u32, lsn: Lsn) {
        self.batch.size(Key::rel_size(rel), lsn, nblocks);
        self.sizes.set_relation(rel, Fork { nblocks: Some(nblocks), high_water });
    }

    /// Makes a fork of exactly this size, all of whose blocks the caller writes.
    pub(super) fn copy_fork(
        &mut self,
        rel: RelTag,
        nblocks: BlockNumber,
        lsn: Lsn,
    ) -> Result<(), IngestError> {
        let fork = self.sizes.relation(&self.storage, rel)?;
        self.put_directory_entry(rel, fork.high_water, lsn)?;
        self.set_relation_size(rel, nblocks, fork.high_water, lsn);
        Ok(())
    }

    /// Cuts the fork, if it exists and is longer. Versions of the blocks that go stay in the store, behind the
    /// size; the high-water mark remembers them.
    fn cut_relation(
        &mut self,
        rel: RelTag,
        nblocks: BlockNumber,
        lsn: Lsn,
    ) -> Result<(), IngestError> {
        let fork = self.sizes.relation(&self.storage, rel)?;
        let Some(size) = fork.nblocks.filter(|size| *size > nblocks) else { return Ok(()) };
        let high_water = fork.high_water.max(size);
        if high_water != fork.high_water {
            self.put_directory_entry(rel, high_water, lsn)?;
        }
        self.set_relation_size(rel, nblocks, high_water, lsn);
        Ok(())
    }

    /// `smgr_redo` for `XLOG_SMGR_TRUNCATE`.
    pub(super) fn truncate_relation(
        &mut self,
        truncate: &RelationTruncate,
        lsn: Lsn,
    ) -> Result<(), IngestError> {
        let RelationTruncate { rel, nblocks, heap, vm, fsm } = *truncate;
        self.create_relation(rel.fork(ForkNumber::Main), lsn)?;
        if heap {
            self.cut_relation(rel.fork(ForkNumber::Main), nblocks, lsn)?;
        }
        if fsm {
            self.truncate_fsm(rel.fork(ForkNumber::Fsm), nblocks, lsn)?;
        }
        if vm {
            self.truncate_vm(rel.fork(ForkNumber::Vm), nblocks, lsn)?;
        }
        Ok(())
    }

    /// `visibilitymap_prepare_truncate`.
    fn truncate_vm(
        &mut self,
        rel: RelTag,
        heap_nblocks: BlockNumber,
        lsn: Lsn,
    ) -> Result<(), IngestError> {
        let fork = self.sizes.relation(&self.storage, rel)?;
        let Some(size) = fork.nblocks else { return Ok(()) };
        let boundary = maps::vm_block(heap_nblocks);
        let (trunc_byte, trunc_offs) = maps::vm_position(heap_nblocks);
        if (trunc_byte, trunc_offs) == (0, 0) {
            return self.cut_relation(rel, boundary, lsn);
        }
        if boundary < size {
            let change = NeonWalRecord::TruncateVisibilityMap { trunc_byte, trunc_offs };
            self.put_change(Key::rel_block(rel, boundary), lsn, &change);
        }
        self.cut_relation(rel, boundary + 1, lsn)
    }

    /// `FreeSpaceMapPrepareTruncateRel`. The upper levels are left as they are: a reader that follows them finds
    /// that the blocks are gone and mends them (`fsm_search`).
    fn truncate_fsm(
        &mut self,
        rel: RelTag,
        heap_nblocks: BlockNumber,
        lsn: Lsn,
    ) -> Result<(), IngestError> {
        let fork = self.sizes.relation(&self.storage, rel)?;
        let Some(size) = fork.nblocks else { return Ok(()) };
        let (boundary, first_slot) = maps::fsm_location(heap_nblocks);
        if first_slot == 0 {
            return self.cut_relation(rel, boundary, lsn);
        }
        if boundary < size {
            self.truncate_fsm_page(Key::rel_block(rel, boundary), first_slot, lsn)?;
        }
        self.cut_relation(rel, boundary + 1, lsn)
    }

    /// Free space map pages are logged as images alone, so the stored page can be changed here. Should one have
    /// changes on top of it, it is emptied: the map then underestimates free space, which is always allowed.
    fn truncate_fsm_page(
        &mut self,
        key: Key,
        first_slot: usize,
        lsn: Lsn,
    ) -> Result<(), IngestError> {
        let stored = match self.storage.get_image(key, self.stored_lsn()) {
            Err(layer_store::ReadError::NotAnImage { .. }) => None,
            other => other?,
        };
        let page: Option<&Page> = stored.as_ref().and_then(|page| page.first_chunk::<BLCKSZ>());
        match page {
            Some(page) => {
                let mut page = *page;
                maps::fsm_truncate_page(&mut page, first_slot);
                self.batch.image(key, lsn, &page);
            }
            None => self.batch.remove(key, lsn),
        }
        Ok(())
    }

    /// Removes all forks of a relation. One that does not exist is no error: temporary and unlogged relations of
    /// which storage knows nothing are dropped, too.
    pub(super) fn drop_relation(
        &mut self,
        rel: RelFileLocator,
        lsn: Lsn,
    ) -> Result<(), IngestError> {
        for fork in ForkNumber::ALL {
            self.drop_fork(rel.fork(fork), lsn)?;
        }
        Ok(())
    }

    /// Removes a fork if it exists. Its size key keeps the high-water mark for a later life under this number.
    pub(super) fn drop_fork(&mut self, rel: RelTag, lsn: Lsn) -> Result<(), IngestError> {
        let fork = self.sizes.relation(&self.storage, rel)?;
        let Some(nblocks) = fork.nblocks else { return Ok(()) };
        let high_water = fork.high_water.max(nblocks);
        self.batch.remove(Key::rel_dir_entry(rel), lsn);
        self.batch.size(Key::rel_size(rel), lsn, high_water);
        self.sizes.set_relation(rel, Fork { nblocks: None, high_water });
        Ok(())
    }

    /// Clears bits of map pages that exist (`heap_xlog_vm_clear` without a reference to the map's block).
    pub(super) fn clear_vm(&mut self, clear: &VmClear, lsn: Lsn) -> Result<(), IngestError> {
        let rel = clear.rel.fork(ForkNumber::Vm);
        let size = self.sizes.relation(&self.storage, rel)?.nblocks.unwrap_or(0);
        let new_block = clear.new_heap_blkno.map(maps::vm_block);
        let old_block = clear.old_heap_blkno.map(maps::vm_block);
        let mut put = |blkno: Option<u32>, new: Option<u32>, old: Option<u32>| {
            if let Some(blkno) = blkno.filter(|blkno| *blkno < size) {
                let change = NeonWalRecord::ClearVisibilityMapFlags {
                    new_heap_blkno: new,
                    old_heap_blkno: old,
                    flags: clear.flags,
                };
                self.put_change(Key::rel_block(rel, blkno), lsn, &change);
            }
        };
        if new_block.is_some() && new_block == old_block {
            put(new_block, clear.new_heap_blkno, clear.old_heap_blkno);
        } else {
            put(new_block, clear.new_heap_blkno, None);
            put(old_block, None, clear.old_heap_blkno);
        }
        Ok(())
    }
}
