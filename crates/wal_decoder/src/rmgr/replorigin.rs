//! `RM_REPLORIGIN_ID`: progress of replication origins (`replication/origin.h`).

use pg_types::Lsn;

use crate::effects::Effect;
use crate::reader::Reader;
use crate::record::DecodedRecord;

use super::{Effects, InterpretErrorKind, rmgr_info};

const XLOG_REPLORIGIN_SET: u8 = 0x00;
const XLOG_REPLORIGIN_DROP: u8 = 0x10;

pub(super) fn interpret(record: &DecodedRecord, effects: &mut Vec<Effect>) -> Effects {
    let mut main = Reader::new(record.main_data());
    effects.push(match rmgr_info(record) {
        XLOG_REPLORIGIN_SET => {
            let remote_lsn = Lsn(main.u64()?);
            Effect::OriginSet { id: main.u16()?, remote_lsn, force: main.u8()? != 0 }
        }
        XLOG_REPLORIGIN_DROP => Effect::OriginDrop { id: main.u16()? },
        _ => return Err(InterpretErrorKind::UnknownInfo),
    });
    Ok(())
}
