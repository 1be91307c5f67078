//! `RM_RELMAP_ID`: the relation map file of a database (`utils/relmapper.h`).

use crate::effects::{DatabaseDirectory, Effect};
use crate::reader::Reader;
use crate::record::DecodedRecord;

use super::{Effects, InterpretErrorKind, rmgr_info};

const XLOG_RELMAP_UPDATE: u8 = 0x00;
/// `sizeof(RelMapFile)` (`relmapper.c`).
pub const SIZE_OF_RELMAP_FILE: usize = 524;
const SIZE_OF_HEADER: usize = 12;

pub(super) fn interpret(record: &DecodedRecord, effects: &mut Vec<Effect>) -> Effects {
    if rmgr_info(record) != XLOG_RELMAP_UPDATE {
        return Err(InterpretErrorKind::UnknownInfo);
    }
    let mut main = Reader::new(record.main_data());
    let directory = DatabaseDirectory { db_oid: main.u32()?, spc_oid: main.u32()? };
    let nbytes = main.i32()?;
    if usize::try_from(nbytes) != Ok(SIZE_OF_RELMAP_FILE) {
        return Err(InterpretErrorKind::Field { field: "nbytes", value: nbytes.into() });
    }
    main.take(SIZE_OF_RELMAP_FILE)?;
    let file = record.main_data_from(SIZE_OF_HEADER).slice(..SIZE_OF_RELMAP_FILE);
    effects.push(Effect::RelMapUpdate { directory, file });
    Ok(())
}
