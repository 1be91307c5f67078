//! `RM_STANDBY_ID`: what a hot standby needs to know of running transactions (`storage/standbydefs.h`).

use crate::effects::Effect;
use crate::reader::Reader;
use crate::record::DecodedRecord;

use super::{Effects, InterpretErrorKind, rmgr_info};

const XLOG_STANDBY_LOCK: u8 = 0x00;
const XLOG_RUNNING_XACTS: u8 = 0x10;
const XLOG_INVALIDATIONS: u8 = 0x20;

pub(super) fn interpret(record: &DecodedRecord, effects: &mut Vec<Effect>) -> Effects {
    match rmgr_info(record) {
        XLOG_RUNNING_XACTS => {
            let mut main = Reader::new(record.main_data());
            // xcnt, subxcnt, subxid_overflow with its padding.
            main.take(12)?;
            let next_xid = main.u32()?;
            let oldest_running_xid = main.u32()?;
            effects.push(Effect::RunningXacts { next_xid, oldest_running_xid });
            Ok(())
        }
        XLOG_STANDBY_LOCK | XLOG_INVALIDATIONS => Ok(()),
        _ => Err(InterpretErrorKind::UnknownInfo),
    }
}
