//! `RM_DBASE_ID`: database directories (`commands/dbcommands_xlog.h`).

use crate::effects::{DatabaseDirectory, Effect};
use crate::reader::{Reader, ShortRead};
use crate::record::DecodedRecord;

use super::{Effects, InterpretErrorKind, count, rmgr_info};

const XLOG_DBASE_CREATE_FILE_COPY: u8 = 0x00;
const XLOG_DBASE_CREATE_WAL_LOG: u8 = 0x10;
const XLOG_DBASE_DROP: u8 = 0x20;

pub(super) fn interpret(record: &DecodedRecord, effects: &mut Vec<Effect>) -> Effects {
    let mut main = Reader::new(record.main_data());
    match rmgr_info(record) {
        XLOG_DBASE_CREATE_FILE_COPY => {
            let target = directory(&mut main)?;
            let source = directory(&mut main)?;
            effects.push(Effect::DatabaseCopy { source, target });
        }
        XLOG_DBASE_CREATE_WAL_LOG => {
            effects.push(Effect::DatabaseCreate(directory(&mut main)?));
        }
        XLOG_DBASE_DROP => {
            let db_oid = main.u32()?;
            let n = count("ntablespaces", main.i32()?)?;
            for spc_oid in main.u32s(n)? {
                effects.push(Effect::DatabaseDrop(DatabaseDirectory { spc_oid, db_oid }));
            }
        }
        _ => return Err(InterpretErrorKind::UnknownInfo),
    }
    Ok(())
}

/// These records name the database first.
fn directory(main: &mut Reader<'_>) -> Result<DatabaseDirectory, ShortRead> {
    let db_oid = main.u32()?;
    Ok(DatabaseDirectory { spc_oid: main.u32()?, db_oid })
}
