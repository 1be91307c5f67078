//! Requests made of heap records as `heap_insert` logs them (`heapam_xlog.h`, `xlogrecord.h`).

use bytes::{BufMut, Bytes};
use pg_types::page::{ZERO_PAGE, set_lsn};
use pg_types::{ForkNumber, Lsn, RelFileLocator};
use walredo_protocol::BufferTag;
use walredo_sidecar::NeonWalRecord;

const LOCATOR: RelFileLocator = RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: 16_384 };
const TAG: BufferTag =
    BufferTag { rel: pg_types::RelTag { locator: LOCATOR, fork: ForkNumber::Main }, blkno: 0 };
const START: Lsn = Lsn(0x0150_0000);

/// One request.
pub struct Request {
    pub tag: BufferTag,
    pub base: Option<(Lsn, Bytes)>,
    pub records: Vec<(Lsn, NeonWalRecord)>,
}

/// Four rows of 100 bytes.
pub fn short() -> Request {
    Request { tag: TAG, base: None, records: inserts(4, 100) }
}

/// As many rows of one integer as a page holds.
pub fn medium() -> Request {
    Request { tag: TAG, base: None, records: inserts(226, 4) }
}

/// A page, empty but for its header, and one row.
pub fn image() -> Request {
    let mut page = ZERO_PAGE;
    set_lsn(&mut page, START);
    // pd_lower, pd_upper, pd_special, pd_pagesize_version
    page[12..20].copy_from_slice(&[24, 0, 0, 0x20, 0, 0x20, 4, 0x20]);
    let base = Some((START, Bytes::copy_from_slice(&page)));
    let lsn = Lsn(START.0 + 256);
    Request { tag: TAG, base, records: vec![(lsn, insert(1, 100, false))] }
}

fn inserts(count: u16, width: usize) -> Vec<(Lsn, NeonWalRecord)> {
    let lsn = |number: u16| Lsn(START.0 + 256 * u64::from(number));
    (1..=count).map(|number| (lsn(number), insert(number, width, number == 1))).collect()
}

/// XLOG_HEAP_INSERT of a row of `width` bytes at line pointer `offnum`.
fn insert(offnum: u16, width: usize, init: bool) -> NeonWalRecord {
    let mut block_data = Vec::new();
    block_data.put_u16_le(1); // t_infomask2: one column
    block_data.put_u16_le(0x0800); // t_infomask: HEAP_XMAX_INVALID
    block_data.put_u8(24); // t_hoff
    block_data.put_u8(0); // padding between the header's 23 bytes and t_hoff
    block_data.resize(block_data.len() + width, b'x');

    let mut rec = Vec::new();
    rec.put_u32_le(0); // xl_tot_len, set below
    rec.put_u32_le(1000); // xl_xid
    rec.put_u64_le(0); // xl_prev
    rec.put_u8(if init { 0x80 } else { 0 }); // xl_info: XLOG_HEAP_INSERT, XLOG_HEAP_INIT_PAGE
    rec.put_u8(10); // xl_rmid: RM_HEAP_ID
    rec.put_u16_le(0);
    rec.put_u32_le(0); // xl_crc, checked at ingest
    rec.put_u8(0); // block id
    rec.put_u8(if init { 0x60 } else { 0x20 }); // BKPBLOCK_HAS_DATA, BKPBLOCK_WILL_INIT
    rec.put_u16_le(u16::try_from(block_data.len()).unwrap_or(u16::MAX));
    rec.put_u32_le(LOCATOR.spc_oid);
    rec.put_u32_le(LOCATOR.db_oid);
    rec.put_u32_le(LOCATOR.rel_number);
    rec.put_u32_le(TAG.blkno);
    rec.put_u8(255); // XLR_BLOCK_ID_DATA_SHORT
    rec.put_u8(3);
    rec.extend_from_slice(&block_data);
    rec.put_u16_le(offnum);
    rec.put_u8(0); // flags
    let len = u32::try_from(rec.len()).unwrap_or(u32::MAX);
    if let Some(slot) = rec.first_chunk_mut() {
        *slot = len.to_le_bytes();
    }
    NeonWalRecord::Postgres { will_init: init, rec: rec.into() }
}
