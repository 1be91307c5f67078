//! Block references to versions of blocks.

use pg_types::page::{self, ZERO_PAGE};
use pg_types::{BLCKSZ, INVALID_BLOCK_NUMBER, Key, Lsn};
use wal_decoder::{BlockRef, DecodedRecord, image};
use walredo_sidecar::NeonWalRecord;

use super::Ingest;
use super::error::IngestError;
use super::storage::Storage;

impl<S: Storage> Ingest<S> {
    /// A block with an image becomes that image (`RestoreBlockImage`: redo does nothing else to it); any other
    /// gets the record itself, whose bytes all blocks of the record share.
    pub(super) fn apply_blocks(&mut self, record: &DecodedRecord) -> Result<(), IngestError> {
        let blocks = record.blocks();
        if blocks.is_empty() {
            return Ok(());
        }
        for (index, block) in blocks.iter().enumerate() {
            let initialised = block.will_init || has_image(block);
            self.extend_to_block(block.rel, block.blkno, initialised, record.next_lsn)?;
            let repeated = blocks.iter().take(index).any(|earlier| same_block(earlier, block));
            if has_image(block) && !repeated {
                self.put_restored(record, block)?;
            }
        }
        for will_init in [true, false] {
            self.put_deltas(record, will_init);
        }
        Ok(())
    }

    fn put_restored(
        &mut self,
        record: &DecodedRecord,
        block: &BlockRef,
    ) -> Result<(), IngestError> {
        let mut page = [0; BLCKSZ];
        image::restore(record, block, &mut page)
            .map_err(|source| IngestError::Image { lsn: record.start_lsn, source })?;
        let key = Key::rel_block(block.rel, block.blkno);
        if !page::is_new(&page) {
            page::set_lsn(&mut page, record.next_lsn);
        } else if page == ZERO_PAGE {
            self.batch.remove(key, record.next_lsn);
            return Ok(());
        }
        self.batch.image(key, record.next_lsn, &page);
        Ok(())
    }

    /// The record for those of its blocks that redo makes from nothing, or for those that it changes: the two
    /// differ in the stored bytes.
    fn put_deltas(&mut self, record: &DecodedRecord, will_init: bool) {
        let blocks = record.blocks();
        let mut keys: [(Key, bool); 4] = [(Key::MIN, false); 4];
        let mut used = 0;
        let change = || NeonWalRecord::Postgres { will_init, rec: record.bytes().clone() };
        for (index, block) in blocks.iter().enumerate() {
            let repeated = blocks.iter().take(index).any(|earlier| same_block(earlier, block));
            if has_image(block) || block.will_init != will_init || repeated {
                continue;
            }
            if let Some(slot) = keys.get_mut(used) {
                *slot = (Key::rel_block(block.rel, block.blkno), will_init);
                used += 1;
            }
            if used == keys.len() {
                self.batch.delta(&keys, record.next_lsn, &change());
                used = 0;
            }
        }
        if let Some(keys) = keys.get(..used).filter(|keys| !keys.is_empty()) {
            self.batch.delta(keys, record.next_lsn, &change());
        }
    }

    /// A version of a block that is no part of a WAL record.
    pub(super) fn put_change(&mut self, key: Key, lsn: Lsn, change: &NeonWalRecord) {
        self.batch.delta(&[(key, change.will_init())], lsn, change);
    }
}

fn has_image(block: &BlockRef) -> bool {
    block.image.is_some_and(|image| image.apply)
}

/// `XLogRegisterBuffer` never lets a record name a block twice; should one do so, its first reference counts.
fn same_block(a: &BlockRef, b: &BlockRef) -> bool {
    a.blkno == b.blkno && a.rel == b.rel
}

/// Refuses references to blocks that cannot exist; their keys would mean something else.
pub(super) fn check(record: &DecodedRecord) -> Result<(), IngestError> {
    let impossible = |block: &&BlockRef| {
        block.blkno == INVALID_BLOCK_NUMBER || block.rel.locator.rel_number == 0
    };
    match record.blocks().iter().find(impossible) {
        None => Ok(()),
        Some(BlockRef { rel, blkno, .. }) => {
            Err(IngestError::Block { lsn: record.start_lsn, rel: *rel, blkno: *blkno })
        }
    }
}
