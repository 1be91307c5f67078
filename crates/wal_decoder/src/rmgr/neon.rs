//! Resource manager 134 of `neon_rmgr`: heap records that carry command ids, and relation extension.
//!
//! The heap records have the stock main data, info nibbles and block references, and behind the main data a
//! trailer of 12 bytes (two command ids). `MULTI_INSERT` keeps the nibble it has in `RM_HEAP2_ID`, which is free
//! in `RM_HEAP_ID`. Extension is nibble 0x30, `XLOG_HEAP_TRUNCATE` of the stock manager, which never comes here:
//!
//! ```text
//!   u32 tablespace, u32 database, u32 relation, u32 fork, u32 nblocks      "this fork has at least N blocks"
//! ```

use pg_types::{ForkNumber, INVALID_BLOCK_NUMBER};

use crate::effects::Effect;
use crate::reader::Reader;
use crate::record::DecodedRecord;

use super::{Effects, InterpretErrorKind, heap, locator};

const XLOG_NEON_RELATION_EXTEND: u8 = 0x30;
/// Bytes behind the stock main data.
pub const SIZE_OF_TRAILER: usize = 12;

pub(super) fn interpret(record: &DecodedRecord, effects: &mut Vec<Effect>) -> Effects {
    match record.info & heap::XLOG_HEAP_OPMASK {
        XLOG_NEON_RELATION_EXTEND => return relation_extend(record, effects),
        heap::XLOG_HEAP_INSERT => heap::insert(record, effects)?,
        heap::XLOG_HEAP_DELETE => heap::delete(record, effects)?,
        heap::XLOG_HEAP_UPDATE | heap::XLOG_HEAP_HOT_UPDATE => heap::update(record, effects)?,
        heap::XLOG_HEAP_LOCK => heap::lock(record, effects)?,
        heap::XLOG_HEAP2_MULTI_INSERT => heap::multi_insert(record, effects)?,
        _ => return Err(InterpretErrorKind::UnknownInfo),
    }
    Reader::new(record.main_data()).take(SIZE_OF_TRAILER)?;
    Ok(())
}

fn relation_extend(record: &DecodedRecord, effects: &mut Vec<Effect>) -> Effects {
    let mut main = Reader::new(record.main_data());
    let rel = locator(&mut main)?;
    let number = main.u32()?;
    let fork = ForkNumber::from_number(number)
        .ok_or(InterpretErrorKind::Field { field: "fork", value: number.into() })?;
    let nblocks = main.u32()?;
    if nblocks == INVALID_BLOCK_NUMBER {
        return Err(InterpretErrorKind::Field { field: "nblocks", value: nblocks.into() });
    }
    effects.push(Effect::RelationExtend { rel: rel.fork(fork), nblocks });
    Ok(())
}
