//! `RM_XLOG_ID`: checkpoints, counters, full-page images (`xlog_redo` in `xlog.c`).

use pg_types::Lsn;
use pg_types::xlog::SIZE_OF_XLOG_RECORD;

use crate::checkpoint::CheckPoint;
use crate::effects::Effect;
use crate::reader::Reader;
use crate::record::DecodedRecord;

use super::{Effects, InterpretErrorKind, rmgr_info};

/// A checkpoint with nothing running.
pub const XLOG_CHECKPOINT_SHUTDOWN: u8 = 0x00;
/// A checkpoint while transactions run.
pub const XLOG_CHECKPOINT_ONLINE: u8 = 0x10;
const XLOG_NOOP: u8 = 0x20;
const XLOG_NEXTOID: u8 = 0x30;
/// The rest of the segment is empty.
pub const XLOG_SWITCH: u8 = 0x40;
const XLOG_BACKUP_END: u8 = 0x50;
const XLOG_PARAMETER_CHANGE: u8 = 0x60;
const XLOG_RESTORE_POINT: u8 = 0x70;
const XLOG_FPW_CHANGE: u8 = 0x80;
const XLOG_END_OF_RECOVERY: u8 = 0x90;
/// Full-page images because of hint bits.
pub const XLOG_FPI_FOR_HINT: u8 = 0xA0;
/// Full-page images alone.
pub const XLOG_FPI: u8 = 0xB0;
/// Follows a record that was given up in the middle.
pub const XLOG_OVERWRITE_CONTRECORD: u8 = 0xD0;
const XLOG_CHECKPOINT_REDO: u8 = 0xE0;

pub(super) fn interpret(record: &DecodedRecord, effects: &mut Vec<Effect>) -> Effects {
    let mut main = Reader::new(record.main_data());
    match rmgr_info(record) {
        info @ (XLOG_CHECKPOINT_SHUTDOWN | XLOG_CHECKPOINT_ONLINE) => {
            effects.push(Effect::Checkpoint {
                shutdown: info == XLOG_CHECKPOINT_SHUTDOWN,
                checkpoint: CheckPoint::decode(record.main_data())?,
            });
        }
        XLOG_NEXTOID => effects.push(Effect::NextOid(main.u32()?)),
        XLOG_PARAMETER_CHANGE => {
            main.take(20)?;
            effects.push(Effect::WalLevel(main.i32()?));
        }
        XLOG_END_OF_RECOVERY => {
            main.take(16)?;
            effects.push(Effect::WalLevel(main.i32()?));
        }
        XLOG_FPW_CHANGE => effects.push(Effect::FullPageWrites(main.u8()? != 0)),
        XLOG_FPI => {
            if let Some(bare) = record.blocks().iter().find(|block| block.image.is_none()) {
                return Err(InterpretErrorKind::Field {
                    field: "image of block",
                    value: bare.id.into(),
                });
            }
        }
        XLOG_FPI_FOR_HINT
        | XLOG_NOOP
        | XLOG_SWITCH
        | XLOG_BACKUP_END
        | XLOG_RESTORE_POINT
        | XLOG_OVERWRITE_CONTRECORD
        | XLOG_CHECKPOINT_REDO => {}
        _ => return Err(InterpretErrorKind::UnknownInfo),
    }
    Ok(())
}

/// `overwritten_lsn` of a whole `XLOG_OVERWRITE_CONTRECORD` record (short main data: two header bytes).
pub(crate) fn overwritten_lsn(record: &[u8]) -> Option<Lsn> {
    let mut reader = Reader::new(record);
    reader.take(SIZE_OF_XLOG_RECORD + 2).ok()?;
    reader.u64().ok().map(Lsn)
}
