//! Replaying a record: stock redo, then the command ids.

use neon_wal::{Cid, HeapOp, PageError, RelationExtend, Trailer};
use pgrx::{pg_guard, pg_sys};

use super::rmgr::stock;
use super::{fail, info, main_data, page_mut, server};

/// `rm_redo`.
#[pg_guard]
pub unsafe extern "C-unwind" fn redo(record: *mut pg_sys::XLogReaderState) {
    // SAFETY: Postgres calls this with a decoded record.
    let (info, main_data) = unsafe { (info(record), main_data(record)) };
    let Some(op) = HeapOp::of_neon(info) else {
        // Nothing to do for a size: pages that are not there read as zeros or are made on the way.
        if info != RelationExtend::INFO {
            fail("cannot replay a record", &format_args!("unknown info {info:#04x}"));
        }
        if let Err(error) = RelationExtend::decode(main_data) {
            fail("cannot replay a record", &error);
        }
        return;
    };
    let Some((stock_data, trailer)) = Trailer::split(main_data) else {
        fail("cannot replay a record", &"no command ids in it");
    };
    let touched = match op.touched(info, stock_data) {
        Ok(touched) => touched,
        Err(error) => fail("cannot replay a record", &error),
    };
    if let Some(stock_redo) = stock(op).rm_redo {
        // SAFETY: the record is as stock logged it but for bytes behind its main data, whose length no heap redo
        // routine looks at.
        unsafe { stock_redo(record) };
    }
    let [new, old] = trailer.cids;
    // SAFETY: still the same record.
    let result = unsafe { set_cids(record, 0, touched.new.iter(), new) };
    let result = result.and_then(|()| match touched.old {
        Some(offnum) => {
            // SAFETY: as above.
            let block_id = if unsafe { block(record, 1) }.is_some() { 1 } else { 0 };
            // SAFETY: as above.
            unsafe { set_cids(record, block_id, std::iter::once(offnum), old) }
        }
        None => Ok(()),
    });
    if let Err(error) = result {
        fail("cannot replay a record", &error);
    }
}

/// Sets the command ids of tuples on the page of a block reference, if stock redo has just brought that page to
/// the state after the record. A page that is missing or newer is left alone, as stock redo does.
///
/// The page is looked up again: `XLogReadBufferForRedo` would restore an image twice, and it panics for blocks
/// that the record initialises.
///
/// # Safety
/// `record` is a decoded record that stock redo has replayed.
unsafe fn set_cids(
    record: *mut pg_sys::XLogReaderState,
    block_id: usize,
    offnums: impl Iterator<Item = u16>,
    cid: Cid,
) -> Result<(), PageError> {
    // SAFETY: block references of a decoded record; buffers are used as every redo routine does: pinned by the
    // read, locked exclusively, and left before anything else is called that could raise an error.
    unsafe {
        let Some(block) = block(record, block_id) else { return Ok(()) };
        let buffer = server::XLogReadBufferExtended(
            block.rlocator,
            block.forknum,
            block.blkno,
            pg_sys::ReadBufferMode::RBM_NORMAL,
            0,
        );
        if buffer == 0 {
            return Ok(());
        }
        server::LockBuffer(buffer, pg_sys::BUFFER_LOCK_EXCLUSIVE as i32);
        let page = page_mut(pg_sys::BufferGetPage(buffer));
        let mut result = Ok(());
        if pg_types::page::lsn(page).0 == (*record).EndRecPtr {
            for offnum in offnums {
                result = result.and(neon_wal::set_cid(page, offnum, cid));
            }
            server::MarkBufferDirty(buffer);
        }
        server::UnlockReleaseBuffer(buffer);
        result
    }
}

/// A block reference, if the record has it (`XLogRecHasBlockRef`).
///
/// # Safety
/// `record` is a decoded record.
unsafe fn block(
    record: *const pg_sys::XLogReaderState,
    block_id: usize,
) -> Option<pg_sys::DecodedBkpBlock> {
    // SAFETY: DecodeXLogRecord has filled the array up to max_block_id, which is -1 without blocks.
    unsafe {
        let decoded = (*record).record;
        let count = usize::try_from((*decoded).max_block_id + 1).unwrap_or(0);
        let blocks = std::slice::from_raw_parts((*decoded).blocks.as_ptr(), count);
        blocks.get(block_id).filter(|block| block.in_use).copied()
    }
}
