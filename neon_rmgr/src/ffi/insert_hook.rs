//! Adding command ids to heap records while they are made.

use std::cell::UnsafeCell;

use neon_wal::{Cid, HeapOp, PageError, RM_NEON_ID, SIZE_OF_TRAILER, Touched, Trailer};
use pgrx::{pg_guard, pg_sys};

use super::{TRAILER_LEN, fail, page_ref, server};

/// Memory that WAL insertion reads the trailer from, after the hook has returned.
struct TrailerBytes(UnsafeCell<[u8; SIZE_OF_TRAILER]>);

// SAFETY: a Postgres process has one thread.
unsafe impl Sync for TrailerBytes {}

static TRAILER: TrailerBytes = TrailerBytes(UnsafeCell::new([0; SIZE_OF_TRAILER]));

/// The hook that was there before ours.
struct Previous(UnsafeCell<server::XlogInsertHook>);

// SAFETY: as above; set once, while libraries are preloaded.
unsafe impl Sync for Previous {}

static PREVIOUS: Previous = Previous(UnsafeCell::new(None));

/// Puts our hook before the one that is there.
pub fn install() {
    // SAFETY: libraries are loaded by the only thread, before any WAL is written.
    unsafe {
        *PREVIOUS.0.get() = server::xlog_insert_hook;
        server::xlog_insert_hook = Some(xlog_insert);
    }
}

/// `xlog_insert_hook`: a record is about to be put together, its pages are locked and already changed.
#[pg_guard]
unsafe extern "C-unwind" fn xlog_insert(rmid: pg_sys::RmgrId, info: u8) -> pg_sys::RmgrId {
    // SAFETY: set before any WAL was written.
    let rmid = match unsafe { *PREVIOUS.0.get() } {
        // SAFETY: another library's hook of the same kind.
        Some(previous) => unsafe { previous(rmid, info) },
        None => rmid,
    };
    let Some(op) = HeapOp::of_stock(rmid, info) else { return rmid };
    // SAFETY: the hook is called with main data registered. Its first chunk is the whole fixed part of a heap
    // record (heapam.c registers each of them by one call), and it stays until the record is inserted.
    let main_data = unsafe {
        let chunk = server::XLogGetMainData();
        std::slice::from_raw_parts((*chunk).data.cast::<u8>(), (*chunk).len as usize)
    };
    let touched = match op.touched(info, main_data) {
        Ok(touched) => touched,
        Err(error) => fail("cannot log a record", &error),
    };
    let trailer = match trailer(&touched) {
        Ok(trailer) => trailer,
        Err(error) => fail("cannot log a record", &error),
    };
    if trailer.is_default() {
        return rmid;
    }
    // SAFETY: WAL insertion is not re-entered, so the last record's trailer is no longer read.
    unsafe {
        *TRAILER.0.get() = trailer.encode();
        server::XLogRegisterData(TRAILER.0.get().cast(), TRAILER_LEN);
    }
    RM_NEON_ID
}

/// The command ids as they are on the registered pages.
fn trailer(touched: &Touched<'_>) -> Result<Trailer, PageError> {
    // All tuples of a record have the same one (heap_multi_insert stamps them alike).
    let new = match touched.new.iter().next() {
        Some(offnum) => registered_cid(&[0], offnum)?,
        None => Cid::default(),
    };
    let old = match touched.old {
        Some(offnum) => registered_cid(&[1, 0], offnum)?,
        None => Cid::default(),
    };
    Ok(Trailer { cids: [new, old] })
}

/// The command id of a tuple on the first of these block references that is registered.
fn registered_cid(block_ids: &[u8], offnum: u16) -> Result<Cid, PageError> {
    for block_id in block_ids {
        // SAFETY: a plain look-up.
        let page = unsafe { server::XLogGetRegisteredPage(*block_id) };
        if !page.is_null() {
            // SAFETY: whoever inserts WAL for a page holds it locked exclusively (access/transam/README).
            return neon_wal::cid(unsafe { page_ref(page) }, offnum);
        }
    }
    Err(PageError { offnum })
}
