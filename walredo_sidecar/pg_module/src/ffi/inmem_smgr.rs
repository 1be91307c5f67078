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
    const LOWER: u16 = 24;
    const SIZE: u16 = 8192;
    const { assert!(LOWER as usize == SIZE_OF_PAGE_HEADER && SIZE as usize == BLCKSZ) };
    let (lower, size) = (LOWER.to_le_bytes(), SIZE.to_le_bytes());
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

/// Whether a buffer tag is the target's.
pub(super) fn is_target_tag(tag: pg_sys::BufferTag) -> bool {
    // SAFETY: as in `begin`.
    let store = unsafe { &*STORE.get() };
    store.target.is_some_and(|target| {
        let wanted = target.rel.locator;
        target.blkno == tag.blockNum
            && c_int::from(target.rel.fork.number()) == tag.forkNum
            && tag.relNumber.to_u32() == wanted.rel_number
            && tag.dbOid.to_u32() == wanted.db_oid
            && tag.spcOid.to_u32() == wanted.spc_oid
    })
}

/// Tag of a block.
///
/// # Safety
/// `reln` is an open relation.
unsafe fn tag(
    reln: pg_sys::SMgrRelation,
    fork: c_int,
    block: pg_sys::BlockNumber,
) -> pg_sys::BufferTag {
    // SAFETY: by contract `reln` is an open relation, which smgr.c keeps in its hash table.
    let locator = unsafe { (*reln).smgr_rlocator.locator };
    pg_sys::BufferTag {
        spcOid: locator.spcOid,
        dbOid: locator.dbOid,
        relNumber: locator.relNumber,
        forkNum: fork,
        blockNum: block,
    }
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
            let target = is_target_tag(tag(reln, fork, block.saturating_add(i)));
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
    for i in 0..nblocks {
        // SAFETY: as in `readv`; no reference into the store exists while the page is copied into it.
        unsafe {
            if is_target_tag(tag(reln, fork, block.saturating_add(i))) {
                let page = (*buffers.add(i as usize)).cast::<u8>();
                let stored = (&raw mut (*STORE.get()).page).cast::<u8>();
                std::ptr::copy_nonoverlapping(page, stored, BLCKSZ);
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
