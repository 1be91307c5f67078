//! `RM_HEAP_ID` and `RM_HEAP2_ID`: visibility map bits that heap records clear (`access/heapam_xlog.h`).
//!
//! Since 17.11 a record that clears a bit references the map's block, and its redo changes that block like any
//! other: nothing is left to do here. Records of older minors, and records whose bit was clear already, carry the
//! flag alone; then redo clears the bit "on the side" (`heap_xlog_vm_clear`), and so must we.
//!
//! | record | heap block of the flag | map block reference |
//! |---|---|---|
//! | INSERT, MULTI_INSERT, DELETE | 0 | 1 |
//! | UPDATE, HOT_UPDATE, new | 0 | 2 (also covers the old block when on the same map block) |
//! | UPDATE, HOT_UPDATE, old | 1 if referenced, else 0 | 3 |
//! | LOCK, LOCK_UPDATED | 0, all-frozen bit alone | 1 |

use pg_types::{BlockNumber, RelFileLocator};

use crate::effects::{Effect, VmClear};
use crate::reader::Reader;
use crate::record::DecodedRecord;

use super::{Effects, InterpretErrorKind};

const XLOG_HEAP_INSERT: u8 = 0x00;
const XLOG_HEAP_DELETE: u8 = 0x10;
const XLOG_HEAP_UPDATE: u8 = 0x20;
const XLOG_HEAP_TRUNCATE: u8 = 0x30;
const XLOG_HEAP_HOT_UPDATE: u8 = 0x40;
const XLOG_HEAP_CONFIRM: u8 = 0x50;
const XLOG_HEAP_LOCK: u8 = 0x60;
const XLOG_HEAP_INPLACE: u8 = 0x70;
pub(super) const XLOG_HEAP_OPMASK: u8 = 0x70;

const XLOG_HEAP2_REWRITE: u8 = 0x00;
const XLOG_HEAP2_PRUNE_ON_ACCESS: u8 = 0x10;
const XLOG_HEAP2_PRUNE_VACUUM_SCAN: u8 = 0x20;
const XLOG_HEAP2_PRUNE_VACUUM_CLEANUP: u8 = 0x30;
const XLOG_HEAP2_VISIBLE: u8 = 0x40;
const XLOG_HEAP2_MULTI_INSERT: u8 = 0x50;
const XLOG_HEAP2_LOCK_UPDATED: u8 = 0x60;
const XLOG_HEAP2_NEW_CID: u8 = 0x70;

/// `XLH_INSERT_ALL_VISIBLE_CLEARED`, `XLH_DELETE_ALL_VISIBLE_CLEARED`, `XLH_LOCK_ALL_FROZEN_CLEARED`,
/// `XLH_UPDATE_OLD_ALL_VISIBLE_CLEARED`: all the lowest bit.
const CLEARED: u8 = 1;
const UPDATE_NEW_ALL_VISIBLE_CLEARED: u8 = 1 << 1;

const VISIBILITYMAP_ALL_FROZEN: u8 = 0x02;
const VISIBILITYMAP_VALID_BITS: u8 = 0x03;

const BLKREF_HEAP: u8 = 0;
const UPDATE_BLKREF_HEAP_OLD: u8 = 1;
/// Map block of every record but an update.
const BLKREF_VM: u8 = 1;
const UPDATE_BLKREF_VM_NEW: u8 = 2;
const UPDATE_BLKREF_VM_OLD: u8 = 3;

/// Offset of the flags byte in the main data.
const INSERT_FLAGS: usize = 2;
const MULTI_INSERT_FLAGS: usize = 0;
const DELETE_FLAGS: usize = 7;
const UPDATE_FLAGS: usize = 7;
const LOCK_FLAGS: usize = 7;

pub(super) fn interpret_heap(record: &DecodedRecord, effects: &mut Vec<Effect>) -> Effects {
    match record.info & XLOG_HEAP_OPMASK {
        XLOG_HEAP_INSERT => insert(record, effects),
        XLOG_HEAP_DELETE => delete(record, effects),
        XLOG_HEAP_UPDATE | XLOG_HEAP_HOT_UPDATE => update(record, effects),
        XLOG_HEAP_LOCK => lock(record, effects),
        XLOG_HEAP_TRUNCATE | XLOG_HEAP_CONFIRM | XLOG_HEAP_INPLACE => Ok(()),
        _ => Err(InterpretErrorKind::UnknownInfo),
    }
}

pub(super) fn interpret_heap2(record: &DecodedRecord, effects: &mut Vec<Effect>) -> Effects {
    match record.info & XLOG_HEAP_OPMASK {
        XLOG_HEAP2_MULTI_INSERT => multi_insert(record, effects),
        XLOG_HEAP2_LOCK_UPDATED => lock(record, effects),
        XLOG_HEAP2_REWRITE
        | XLOG_HEAP2_PRUNE_ON_ACCESS
        | XLOG_HEAP2_PRUNE_VACUUM_SCAN
        | XLOG_HEAP2_PRUNE_VACUUM_CLEANUP
        | XLOG_HEAP2_VISIBLE
        | XLOG_HEAP2_NEW_CID => Ok(()),
        _ => Err(InterpretErrorKind::UnknownInfo),
    }
}

pub(super) fn insert(record: &DecodedRecord, effects: &mut Vec<Effect>) -> Effects {
    one_block(record, INSERT_FLAGS, VISIBILITYMAP_VALID_BITS, effects)
}

pub(super) fn multi_insert(record: &DecodedRecord, effects: &mut Vec<Effect>) -> Effects {
    one_block(record, MULTI_INSERT_FLAGS, VISIBILITYMAP_VALID_BITS, effects)
}

pub(super) fn delete(record: &DecodedRecord, effects: &mut Vec<Effect>) -> Effects {
    one_block(record, DELETE_FLAGS, VISIBILITYMAP_VALID_BITS, effects)
}

pub(super) fn lock(record: &DecodedRecord, effects: &mut Vec<Effect>) -> Effects {
    one_block(record, LOCK_FLAGS, VISIBILITYMAP_ALL_FROZEN, effects)
}

fn one_block(
    record: &DecodedRecord,
    flags_offset: usize,
    bits: u8,
    effects: &mut Vec<Effect>,
) -> Effects {
    let (rel, blkno) = heap_block(record, BLKREF_HEAP)?;
    if flags_at(record, flags_offset)? & CLEARED != 0 && record.block(BLKREF_VM).is_none() {
        effects.push(Effect::VmClear(VmClear {
            rel,
            new_heap_blkno: Some(blkno),
            old_heap_blkno: None,
            flags: bits,
        }));
    }
    Ok(())
}

pub(super) fn update(record: &DecodedRecord, effects: &mut Vec<Effect>) -> Effects {
    let (rel, new_blkno) = heap_block(record, BLKREF_HEAP)?;
    let flags = flags_at(record, UPDATE_FLAGS)?;
    let referenced = record.block(UPDATE_BLKREF_VM_NEW).is_some()
        || record.block(UPDATE_BLKREF_VM_OLD).is_some();
    if flags & (CLEARED | UPDATE_NEW_ALL_VISIBLE_CLEARED) == 0 || referenced {
        return Ok(());
    }
    let old_blkno = record.block(UPDATE_BLKREF_HEAP_OLD).map_or(new_blkno, |block| block.blkno);
    effects.push(Effect::VmClear(VmClear {
        rel,
        new_heap_blkno: (flags & UPDATE_NEW_ALL_VISIBLE_CLEARED != 0).then_some(new_blkno),
        old_heap_blkno: (flags & CLEARED != 0).then_some(old_blkno),
        flags: VISIBILITYMAP_VALID_BITS,
    }));
    Ok(())
}

fn heap_block(
    record: &DecodedRecord,
    id: u8,
) -> Result<(RelFileLocator, BlockNumber), InterpretErrorKind> {
    let block = record.block(id).ok_or(InterpretErrorKind::MissingBlock(id))?;
    Ok((block.rel.locator, block.blkno))
}

fn flags_at(record: &DecodedRecord, offset: usize) -> Result<u8, InterpretErrorKind> {
    let mut main = Reader::new(record.main_data());
    main.take(offset)?;
    Ok(main.u8()?)
}
