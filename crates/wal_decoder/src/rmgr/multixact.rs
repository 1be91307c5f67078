//! `RM_MULTIXACT_ID` (`multixact_redo` in `multixact.c`).

use pg_types::SlruKind;

use crate::effects::{Effect, MultiXactMember, MultiXactTruncate};
use crate::reader::Reader;
use crate::record::DecodedRecord;

use super::{Effects, InterpretErrorKind, count, rmgr_info, slru_page};

const XLOG_MULTIXACT_ZERO_OFF_PAGE: u8 = 0x00;
const XLOG_MULTIXACT_ZERO_MEM_PAGE: u8 = 0x10;
const XLOG_MULTIXACT_CREATE_ID: u8 = 0x20;
const XLOG_MULTIXACT_TRUNCATE_ID: u8 = 0x30;

/// `MultiXactStatusUpdate`, the greatest of the enum.
const MULTIXACT_STATUS_MAX: u8 = 5;
/// Bytes of a `MultiXactMember` in WAL.
const SIZE_OF_MEMBER: usize = 8;

pub(super) fn interpret(record: &DecodedRecord, effects: &mut Vec<Effect>) -> Effects {
    let mut main = Reader::new(record.main_data());
    effects.push(match rmgr_info(record) {
        XLOG_MULTIXACT_ZERO_OFF_PAGE => {
            let pageno = slru_page(main.i64()?)?;
            Effect::SlruZeroPage { kind: SlruKind::MultiXactOffsets, pageno }
        }
        XLOG_MULTIXACT_ZERO_MEM_PAGE => {
            let pageno = slru_page(main.i64()?)?;
            Effect::SlruZeroPage { kind: SlruKind::MultiXactMembers, pageno }
        }
        XLOG_MULTIXACT_CREATE_ID => {
            let mid = main.u32()?;
            let moff = main.u32()?;
            let n = count("nmembers", main.i32()?)?;
            let mut items = Reader::new(main.items(n, SIZE_OF_MEMBER)?);
            let mut members = Vec::with_capacity(items.rest().len() / SIZE_OF_MEMBER);
            while !items.rest().is_empty() {
                members.push(member(&mut items)?);
            }
            Effect::MultiXactCreate { mid, moff, members }
        }
        XLOG_MULTIXACT_TRUNCATE_ID => Effect::MultiXactTruncate(MultiXactTruncate {
            oldest_multi_db: main.u32()?,
            start_trunc_off: main.u32()?,
            end_trunc_off: main.u32()?,
            start_trunc_memb: main.u32()?,
            end_trunc_memb: main.u32()?,
        }),
        _ => return Err(InterpretErrorKind::UnknownInfo),
    });
    Ok(())
}

fn member(items: &mut Reader<'_>) -> Result<MultiXactMember, InterpretErrorKind> {
    let xid = items.u32()?;
    let status = items.u32()?;
    match u8::try_from(status) {
        Ok(status) if status <= MULTIXACT_STATUS_MAX => Ok(MultiXactMember { xid, status }),
        _ => Err(InterpretErrorKind::Field { field: "member status", value: status.into() }),
    }
}
