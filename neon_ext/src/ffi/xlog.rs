//! WAL positions and the records that this extension writes.
#![expect(unsafe_code, reason = "calls the server's WAL functions")]

use compute_core::request_lsn;
use neon_wal::{RM_NEON_ID, RelationExtend};
use pg_types::page::Page;
use pg_types::{BlockNumber, Lsn, RelFileLocator, RelTag};
use pgrx::pg_sys;

use super::process;

/// A page in private memory, aligned as Postgres wants pages.
#[repr(C, align(8))]
pub struct OwnedPage(pub Page);

impl OwnedPage {
    /// A copy of a page.
    pub fn copy_of(page: &Page) -> Box<OwnedPage> {
        Box::new(OwnedPage(*page))
    }
}

/// The locator as Postgres spells it.
pub fn pg_locator(locator: RelFileLocator) -> pg_sys::RelFileLocator {
    pg_sys::RelFileLocator {
        spcOid: locator.spc_oid.into(),
        dbOid: locator.db_oid.into(),
        relNumber: locator.rel_number.into(),
    }
}

/// Where the next record goes, as a position that can be waited for.
pub fn insert_position() -> Lsn {
    // SAFETY: reads shared memory under a spinlock.
    request_lsn::wait_position(Lsn(unsafe { pg_sys::GetXLogInsertRecPtr() }))
}

/// Up to where WAL is flushed to the local disk and may travel to storage.
pub fn flush_position() -> Lsn {
    // SAFETY: reads shared memory; a null timeline pointer is allowed.
    Lsn(unsafe { pg_sys::GetFlushRecPtr(std::ptr::null_mut()) })
}

/// Bytes of WAL that this process has written in its life (`pgWalUsage`; parallel workers' are added when they end).
pub fn bytes_written_by_this_process() -> u64 {
    // SAFETY: a variable of this process.
    unsafe { pg_sys::pgWalUsage.wal_bytes }
}

/// Whether the server is still starting.
pub fn in_recovery() -> bool {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// A position at or after the one that the server started at, and at or before the newest checkpoint's: the redo
/// position. Not the flush position: WAL that the server wrote since its start gets to the page server only when
/// walproposer has logged in, and logging in reads catalogs.
pub fn started_position() -> Lsn {
    // SAFETY: reads shared memory; StartupXLOG sets it before anything is read from relations.
    request_lsn::wait_position(Lsn(unsafe { pg_sys::GetRedoRecPtr() }))
}

/// Flushes local WAL up to `lsn`, unless that was done.
pub fn flush(lsn: Lsn) {
    if !in_recovery() && request_lsn::must_flush(lsn, flush_position()) {
        // SAFETY: `lsn` was a page's LSN, a record's end or an insert position, so WAL up to it exists.
        unsafe { pg_sys::XLogFlush(lsn.0) };
    }
}

/// Whether this process may insert WAL for a page that it writes out.
///
/// Not in recovery; not in the checkpointer once it writes the shutdown checkpoint, whose record must be the last one;
/// not in a walsender, which may still run then.
pub fn may_log_evicted_page() -> bool {
    // SAFETY: reads shared and local variables.
    !process::is_shutting_down()
        && !process::is_walsender()
        && unsafe { pg_sys::XLogInsertAllowed() }
}

/// Whether this process may insert WAL at all.
pub fn insert_allowed() -> bool {
    // SAFETY: reads shared and local variables.
    unsafe { pg_sys::XLogInsertAllowed() }
}

/// Logs "this fork has at least `nblocks` blocks"; returns the end of the record.
pub fn log_relation_extend(rel: RelTag, nblocks: BlockNumber) -> Lsn {
    let mut data = RelationExtend { rel, nblocks }.encode();
    // SAFETY: the data outlives XLogInsert, which copies it; no other record is being put together, since storage
    // managers are not called between XLogBeginInsert and XLogInsert.
    unsafe {
        pg_sys::XLogBeginInsert();
        pg_sys::XLogRegisterData(data.as_mut_ptr().cast(), DATA_LEN);
        Lsn(pg_sys::XLogInsert(RM_NEON_ID, RelationExtend::INFO))
    }
}

/// Logs an image of a page (`log_newpage`) and stamps the record's end into the given private copy.
pub fn log_page_image(rel: RelTag, block: BlockNumber, copy: &mut OwnedPage) -> Lsn {
    let mut locator = pg_locator(rel.locator);
    let fork = i32::from(rel.fork.number());
    // SAFETY: the page is private, 8192 bytes and aligned; the locator outlives the call. As above for the record.
    Lsn(unsafe {
        pg_sys::log_newpage(&raw mut locator, fork, block, copy.0.as_mut_ptr().cast(), false)
    })
}

/// Bytes of [`RelationExtend`].
const DATA_LEN: u32 = 20;
