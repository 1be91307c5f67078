//! `RM_CLOG_ID`: pages of `pg_xact` (`clog_redo` in `clog.c`). Commits themselves are in `xact.rs`.

use pg_types::SlruKind;

use crate::effects::Effect;
use crate::reader::Reader;
use crate::record::DecodedRecord;

use super::{Effects, InterpretErrorKind, rmgr_info, slru_page};

const CLOG_ZEROPAGE: u8 = 0x00;
const CLOG_TRUNCATE: u8 = 0x10;

pub(super) fn interpret(record: &DecodedRecord, effects: &mut Vec<Effect>) -> Effects {
    let mut main = Reader::new(record.main_data());
    let pageno = slru_page(main.i64()?)?;
    effects.push(match rmgr_info(record) {
        CLOG_ZEROPAGE => Effect::SlruZeroPage { kind: SlruKind::Clog, pageno },
        CLOG_TRUNCATE => {
            Effect::ClogTruncate { pageno, oldest_xid: main.u32()?, oldest_xid_db: main.u32()? }
        }
        _ => return Err(InterpretErrorKind::UnknownInfo),
    });
    Ok(())
}
