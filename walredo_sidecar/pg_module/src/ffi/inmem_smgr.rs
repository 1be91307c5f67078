//! Storage manager that holds one page: the target of the request.
//!
//! Redo routines read and write pages through shared buffers; misses and evictions end here. The target reads
//! as the page that was pushed, or as zeros. **Every other block reads as an empty page with the greatest
//! possible LSN**: for stock redo it is "already up to date" (`BLK_DONE`), so that changes to it are skipped
//! (L103) without a filter in Postgres, and a page that only the target could lack never goes unnoticed.
#![expect(unsafe_code, reason = "callbacks from Postgres' storage manager switch")]

use std::ffi::{c_int, c_void};

use pg_types::page::{Page, SIZE_OF_PAGE_HEADER, ZERO_PAGE};
use pg_types::{BLCKSZ, RelTag};
use pgrx::pg_sys;
use walredo_protocol::BufferTag;

use super::single::Single;
use super::stdio::die;

/// Blocks that every fork claims to have: all but `InvalidBlockNumber` and `P_NEW`'s neighbours, so that no
/// redo routine tries to extend.
const NBLOCKS: pg_sys::BlockNumber = 0xFFFF_FFFD;

/// What the storage manager knows.
struct Store {
    target: Option<BufferTag>,
    page: Page,
    /// Relations opened since the last [`take_opened`].
    opened: u32,
    which: c_int,
}

static STORE: Single<Store> =
    Single::new(Store { target: None, page: ZERO_PAGE, opened: 0, which: 0 });

/// What a block that is not the target reads as.
static UP_TO_DATE: Page = up_to_date_page();

const fn up_to_date_page() -> Page {
    let mut page = ZERO_PAGE;
    // PageHeaderData: pd_lsn 0..8, pd_lower 12, pd_upper 14, pd_special 16, pd_pagesize_version 18.
    let mut i = 0;
    while i < 8 {
        page[i] = 0xFF;
        i += 1;
    }
    let (lower, size) = ((SIZE_OF_PAGE_HEADER as u16).to_le_bytes(), (BLCKSZ as u16).to_le_bytes());
    page[12] = lower[0];
    page[13] = lower[1];
    page[14] = size[0];
    page[15] = size[1];
    page[16] = size[0];
    page[17] = size[1];
    page[18] = 4; // PG_PAGE_LAYOUT_VERSION; the size occupies the upper byte
    page[19] = size[1];
    page
}

/// Starts a request: the target reads as zeros.
pub(super) fn begin(target: BufferTag) {
    // SAFETY: no reference into the store outlives this statement, and no callback is running.
    let store = unsafe { &mut *STORE.get() };
    store.target = Some(target);
    store.page = ZERO_PAGE;
}

/// Sets the target's content.
pub(super) fn push(page: &Page) {
    // SAFETY: as in `begin`.
    let store = unsafe { &mut *STORE.get() };
    store.page = *page;
}

/// How many relations were opened since the last call.
pub(super) fn take_opened() -> u32 {
    // SAFETY: as in `begin`.
    std::mem::take(unsafe { &mut (*STORE.get()).opened })
}

/// The target in Postgres' terms.
pub(super) fn locator(rel: RelTag) -> pg_sys::RelFileLocator {
    pg_sys::RelFileLocator {
        spcOid: rel.locator.spc_oid.into(),
        dbOid: rel.locator.db_oid.into(),
        relNumber: rel.locator.rel_number.into(),
    }
}

/// Registers the storage manager and selects it for every relation.
pub(super) fn register() {
    let table = pg_sys::f_smgr {
        smgr_open: Some(open),
        smgr_close: Some(close),
        smgr_create: Some(create),
        smgr_exists: Some(exists),
        smgr_unlink: Some(unlink),
        smgr_extend: Some(extend),
        smgr_zeroextend: Some(zeroextend),
        smgr_prefetch: Some(prefetch),
        smgr_readv: Some(readv),
        smgr_writev: Some(writev),
        smgr_writeback: Some(writeback),
        smgr_nblocks: Some(nblocks),
        smgr_truncate: Some(truncate),
        smgr_immedsync: Some(sync),
        smgr_registersync: Some(sync),
        ..Default::default()
    };
    // SAFETY: runs while libraries are loaded, before any relation is opened; smgr_register copies the table.
    unsafe {
        (*STORE.get()).which = pg_sys::smgr_register(&raw const table);
        pg_sys::smgr_select_hook = Some(select);
    }
}

/// Whether `(reln, fork, block)` is the target.
///
/// # Safety
/// `reln` is an open relation.
unsafe fn is_target(
    store: &Store,
    reln: pg_sys::SMgrRelation,
    fork: c_int,
    block: pg_sys::BlockNumber,
) -> bool {
    // SAFETY: by contract `reln` is an open relation, which smgr.c keeps in its hash table.
    let found = unsafe { (*reln).smgr_rlocator.locator };
    store.target.is_some_and(|target| {
        let wanted = target.rel.locator;
        target.blkno == block
            && c_int::from(target.rel.fork.number()) == fork
            && found.relNumber.to_u32() == wanted.rel_number
            && found.dbOid.to_u32() == wanted.db_oid
            && found.spcOid.to_u32() == wanted.spc_oid
    })
}

unsafe extern "C-unwind" fn select(_reln: pg_sys::SMgrRelation) -> c_int {
    // SAFETY: plain read; `register` wrote it before the hook was set.
    unsafe { (*STORE.get()).which }
}

unsafe extern "C-unwind" fn open(_reln: pg_sys::SMgrRelation) {
    // SAFETY: no other reference into the store exists while Postgres runs.
    let store = unsafe { &mut *STORE.get() };
    store.opened = store.opened.saturating_add(1);
}

unsafe extern "C-unwind" fn close(_reln: pg_sys::SMgrRelation, _fork: c_int) {}

/// `XLogReadBufferExtended` creates every fork it reads; here all exist.
unsafe extern "C-unwind" fn create(_reln: pg_sys::SMgrRelation, _fork: c_int, _redo: bool) {}

unsafe extern "C-unwind" fn exists(_reln: pg_sys::SMgrRelation, _fork: c_int) -> bool {
    true
}

unsafe extern "C-unwind" fn unlink(_: pg_sys::RelFileLocatorBackend, _fork: c_int, _redo: bool) {
    die("redo of a record tried to unlink a relation");
}

unsafe extern "C-unwind" fn extend(
    _: pg_sys::SMgrRelation,
    _: c_int,
    _: pg_sys::BlockNumber,
    _: *const c_void,
    _: bool,
) {
    die("redo of a record tried to extend a relation");
}

unsafe extern "C-unwind" fn zeroextend(
    _: pg_sys::SMgrRelation,
    _: c_int,
    _: pg_sys::BlockNumber,
    _: c_int,
    _: bool,
) {
    die("redo of a record tried to extend a relation");
}

unsafe extern "C-unwind" fn prefetch(
    _: pg_sys::SMgrRelation,
    _: c_int,
    _: pg_sys::BlockNumber,
    _: c_int,
) -> bool {
    true
}

unsafe extern "C-unwind" fn readv(
    reln: pg_sys::SMgrRelation,
    fork: c_int,
    block: pg_sys::BlockNumber,
    buffers: *mut *mut c_void,
    nblocks: pg_sys::BlockNumber,
) {
    // SAFETY: no other reference into the store exists while Postgres runs.
    let store = unsafe { &*STORE.get() };
    for i in 0..nblocks {
        // SAFETY: `reln` is the open relation being read; `buffers` holds `nblocks` pointers to pages of BLCKSZ
        // bytes each (smgrreadv's contract), none of which is inside the store.
        unsafe {
            let target = is_target(store, reln, fork, block.saturating_add(i));
            let source = if target { &store.page } else { &UP_TO_DATE };
            let page = (*buffers.add(i as usize)).cast::<u8>();
            std::ptr::copy_nonoverlapping(source.as_ptr(), page, BLCKSZ);
        }
    }
}

/// A dirty page was evicted. Only the target is worth keeping.
unsafe extern "C-unwind" fn writev(
    reln: pg_sys::SMgrRelation,
    fork: c_int,
    block: pg_sys::BlockNumber,
    buffers: *mut *const c_void,
    nblocks: pg_sys::BlockNumber,
    _skip_fsync: bool,
) {
    // SAFETY: no other reference into the store exists while Postgres runs.
    let store = unsafe { &mut *STORE.get() };
    for i in 0..nblocks {
        // SAFETY: as in `readv`.
        unsafe {
            if is_target(store, reln, fork, block.saturating_add(i)) {
                let page = (*buffers.add(i as usize)).cast::<u8>();
                std::ptr::copy_nonoverlapping(page, store.page.as_mut_ptr(), BLCKSZ);
            }
        }
    }
}

unsafe extern "C-unwind" fn writeback(
    _: pg_sys::SMgrRelation,
    _: c_int,
    _: pg_sys::BlockNumber,
    _: pg_sys::BlockNumber,
) {
}

unsafe extern "C-unwind" fn nblocks(_: pg_sys::SMgrRelation, _: c_int) -> pg_sys::BlockNumber {
    NBLOCKS
}

unsafe extern "C-unwind" fn truncate(
    _: pg_sys::SMgrRelation,
    _: c_int,
    _: pg_sys::BlockNumber,
    _: pg_sys::BlockNumber,
) {
    die("redo of a record tried to truncate a relation");
}

unsafe extern "C-unwind" fn sync(_: pg_sys::SMgrRelation, _: c_int) {}
