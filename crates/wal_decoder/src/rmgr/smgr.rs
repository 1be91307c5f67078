//! `RM_SMGR_ID`: files of relations (`catalog/storage_xlog.h`).

use pg_types::ForkNumber;

use crate::effects::{Effect, RelationTruncate};
use crate::reader::Reader;
use crate::record::DecodedRecord;

use super::{Effects, InterpretErrorKind, locator, rmgr_info};

const XLOG_SMGR_CREATE: u8 = 0x10;
const XLOG_SMGR_TRUNCATE: u8 = 0x20;

const SMGR_TRUNCATE_HEAP: u32 = 1;
const SMGR_TRUNCATE_VM: u32 = 2;
const SMGR_TRUNCATE_FSM: u32 = 4;

pub(super) fn interpret(record: &DecodedRecord, effects: &mut Vec<Effect>) -> Effects {
    let mut main = Reader::new(record.main_data());
    match rmgr_info(record) {
        XLOG_SMGR_CREATE => {
            let rel = locator(&mut main)?;
            let number = main.u32()?;
            let fork = ForkNumber::from_number(number)
                .ok_or(InterpretErrorKind::Field { field: "forkNum", value: number.into() })?;
            effects.push(Effect::RelationCreate(rel.fork(fork)));
        }
        XLOG_SMGR_TRUNCATE => {
            let nblocks = main.u32()?;
            let rel = locator(&mut main)?;
            let flags = main.u32()?;
            effects.push(Effect::RelationTruncate(RelationTruncate {
                rel,
                nblocks,
                heap: flags & SMGR_TRUNCATE_HEAP != 0,
                vm: flags & SMGR_TRUNCATE_VM != 0,
                fsm: flags & SMGR_TRUNCATE_FSM != 0,
            }));
        }
        _ => return Err(InterpretErrorKind::UnknownInfo),
    }
    Ok(())
}
