//! `RM_XACT_ID`: how transactions end (`ParseCommitRecord`, `ParseAbortRecord` in `xactdesc.c`).
//!
//! ```text
//!   i64 xact_time                         always
//!   u32 xinfo                             XLOG_XACT_HAS_INFO in the record's info byte; the rest only with its flag
//!   u32 database, u32 tablespace          HAS_DBINFO      (0x001)
//!   i32 n, u32 xid * n                    HAS_SUBXACTS    (0x002)
//!   i32 n, 12 bytes locator * n           HAS_RELFILELOCATORS (0x004)
//!   i32 n, 12 bytes item * n              HAS_DROPPED_STATS   (0x100)
//!   i32 n, 16 bytes message * n           HAS_INVALS      (0x008), commit only
//!   u32 xid                               HAS_TWOPHASE    (0x010)
//!   text, NUL                             HAS_GID         (0x080), only behind HAS_TWOPHASE
//!   u64 lsn, i64 time                     HAS_ORIGIN      (0x020), unaligned
//! ```

use pg_types::Lsn;

use crate::effects::{Effect, OriginProgress, Outcome, TransactionEnd};
use crate::reader::Reader;
use crate::record::DecodedRecord;

use super::{Effects, InterpretErrorKind, count, locator};

const XLOG_XACT_COMMIT: u8 = 0x00;
const XLOG_XACT_PREPARE: u8 = 0x10;
const XLOG_XACT_ABORT: u8 = 0x20;
const XLOG_XACT_COMMIT_PREPARED: u8 = 0x30;
const XLOG_XACT_ABORT_PREPARED: u8 = 0x40;
const XLOG_XACT_ASSIGNMENT: u8 = 0x50;
const XLOG_XACT_INVALIDATIONS: u8 = 0x60;
const XLOG_XACT_OPMASK: u8 = 0x70;
const XLOG_XACT_HAS_INFO: u8 = 0x80;

const HAS_DBINFO: u32 = 1;
const HAS_SUBXACTS: u32 = 1 << 1;
const HAS_RELFILELOCATORS: u32 = 1 << 2;
const HAS_INVALS: u32 = 1 << 3;
const HAS_TWOPHASE: u32 = 1 << 4;
const HAS_ORIGIN: u32 = 1 << 5;
const HAS_GID: u32 = 1 << 7;
const HAS_DROPPED_STATS: u32 = 1 << 8;

const SIZE_OF_STATS_ITEM: usize = 12;
const SIZE_OF_SHARED_INVALIDATION_MESSAGE: usize = 16;

pub(super) fn interpret(record: &DecodedRecord, effects: &mut Vec<Effect>) -> Effects {
    let end = match record.info & XLOG_XACT_OPMASK {
        XLOG_XACT_COMMIT => transaction_end(record, true, false)?,
        XLOG_XACT_COMMIT_PREPARED => transaction_end(record, true, true)?,
        XLOG_XACT_ABORT => transaction_end(record, false, false)?,
        XLOG_XACT_ABORT_PREPARED => transaction_end(record, false, true)?,
        XLOG_XACT_PREPARE => {
            // xl_xact_prepare: magic, total_len, xid.
            let mut main = Reader::new(record.main_data());
            main.take(8)?;
            let xid = main.u32()?;
            effects.push(Effect::Prepare { xid, state: record.main_data_from(0) });
            return Ok(());
        }
        XLOG_XACT_ASSIGNMENT | XLOG_XACT_INVALIDATIONS => return Ok(()),
        _ => return Err(InterpretErrorKind::UnknownInfo),
    };
    effects.push(Effect::TransactionEnd(end));
    Ok(())
}

fn transaction_end(
    record: &DecodedRecord,
    commit: bool,
    prepared: bool,
) -> Result<TransactionEnd, InterpretErrorKind> {
    let mut main = Reader::new(record.main_data());
    let time = main.i64()?;
    let xinfo = if record.info & XLOG_XACT_HAS_INFO != 0 { main.u32()? } else { 0 };
    let has = |flag: u32| xinfo & flag != 0;

    let outcome = if commit { Outcome::Committed(time) } else { Outcome::Aborted };
    let mut end = TransactionEnd {
        xid: record.xid,
        subxacts: Vec::new(),
        outcome,
        dropped: Vec::new(),
        prepared,
        origin: None,
    };
    if has(HAS_DBINFO) {
        main.take(8)?;
    }
    if has(HAS_SUBXACTS) {
        let n = count("nsubxacts", main.i32()?)?;
        end.subxacts = main.u32s(n)?;
    }
    if has(HAS_RELFILELOCATORS) {
        let n = count("nrels", main.i32()?)?;
        let mut locators = Reader::new(main.items(n, 12)?);
        while !locators.rest().is_empty() {
            end.dropped.push(locator(&mut locators)?);
        }
    }
    if has(HAS_DROPPED_STATS) {
        let n = count("nitems", main.i32()?)?;
        main.items(n, SIZE_OF_STATS_ITEM)?;
    }
    if commit && has(HAS_INVALS) {
        let n = count("nmsgs", main.i32()?)?;
        main.items(n, SIZE_OF_SHARED_INVALIDATION_MESSAGE)?;
    }
    let mut prepared_xid = None;
    if has(HAS_TWOPHASE) {
        prepared_xid = Some(main.u32()?);
        if has(HAS_GID) {
            let nul = main.rest().iter().position(|byte| *byte == 0);
            main.take(nul.ok_or(InterpretErrorKind::Text { field: "gid" })? + 1)?;
        }
    }
    if prepared {
        // Without the flag there is no telling which transaction ended.
        end.xid = prepared_xid
            .ok_or(InterpretErrorKind::Field { field: "xinfo", value: xinfo.into() })?;
    }
    if has(HAS_ORIGIN) {
        let remote_lsn = Lsn(main.u64()?);
        main.i64()?;
        end.origin = Some(OriginProgress { id: record.origin, remote_lsn });
    }
    Ok(end)
}
