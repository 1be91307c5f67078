//! Resource manager 134 of `neon_rmgr`: heap records that carry command ids, and relation extension.
//!
//! `neon_wal` reads what is this system's own. Block references, info nibbles and the main data before the trailer
//! are those of the stock heap records.

use neon_wal::{HeapOp, RelationExtend, Trailer};

use crate::effects::Effect;
use crate::record::DecodedRecord;

use super::{Effects, InterpretErrorKind, heap};

pub(super) fn interpret(record: &DecodedRecord, effects: &mut Vec<Effect>) -> Effects {
    if record.info & heap::XLOG_HEAP_OPMASK == RelationExtend::INFO {
        let RelationExtend { rel, nblocks } = RelationExtend::decode(record.main_data())?;
        effects.push(Effect::RelationExtend { rel, nblocks });
        return Ok(());
    }
    match HeapOp::of_neon(record.info).ok_or(InterpretErrorKind::UnknownInfo)? {
        HeapOp::Insert => heap::insert(record, effects)?,
        HeapOp::Delete => heap::delete(record, effects)?,
        HeapOp::Update | HeapOp::HotUpdate => heap::update(record, effects)?,
        HeapOp::Lock => heap::lock(record, effects)?,
        HeapOp::MultiInsert => heap::multi_insert(record, effects)?,
    }
    Trailer::split(record.main_data()).ok_or(InterpretErrorKind::Trailer)?;
    Ok(())
}
