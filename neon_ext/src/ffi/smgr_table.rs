//! The table of callbacks that Postgres calls, and its registration.
#![expect(unsafe_code, reason = "callbacks get raw pointers from the server")]

use std::ffi::{c_char, c_void};
use std::sync::atomic::{AtomicI32, Ordering};

use compute_core::route::{self, Route};
use pg_types::page::Page;
use pg_types::{ForkNumber, RelFileLocator, RelTag};
use pgrx::pg_guard;
use pgrx::pg_sys;

use super::{hooks, report};
use crate::ffi::xlog;
use crate::page_client;
use crate::smgr::{self, PageServerStorage, StorageManager};

/// Index of Postgres' own storage manager.
const MD: i32 = 0;
static PAGE_SERVER: AtomicI32 = AtomicI32::new(MD);

/// Registers the storage manager and the hooks that route relations to it.
pub fn install() {
    let table = pg_sys::f_smgr {
        smgr_init: None,
        smgr_shutdown: None,
        smgr_open: Some(open),
        smgr_close: Some(close),
        smgr_create: Some(create),
        smgr_exists: Some(exists),
        smgr_unlink: Some(unlink),
        smgr_extend: Some(extend),
        smgr_zeroextend: Some(zero_extend),
        smgr_prefetch: Some(prefetch),
        smgr_readv: Some(read),
        smgr_writev: Some(write),
        smgr_writeback: Some(write_back),
        smgr_nblocks: Some(nblocks),
        smgr_truncate: Some(truncate),
        smgr_immedsync: Some(immediate_sync),
        smgr_registersync: Some(register_sync),
    };
    // SAFETY: runs in the postmaster before it has children; the server copies the table.
    unsafe {
        PAGE_SERVER.store(hooks::smgr_register(&raw const table), Ordering::Relaxed);
        hooks::smgr_select_hook = Some(select);
        hooks::smgr_create_storage_hook = Some(create_storage);
        hooks::dbsize_hook = Some(database_size);
    }
}

fn index_of(route: Route) -> i32 {
    match route {
        Route::Local => MD,
        Route::PageServer => PAGE_SERVER.load(Ordering::Relaxed),
    }
}

fn locator_of(locator: pg_sys::RelFileLocator) -> RelFileLocator {
    RelFileLocator {
        spc_oid: locator.spcOid.to_u32(),
        db_oid: locator.dbOid.to_u32(),
        rel_number: locator.relNumber.to_u32(),
    }
}

/// # Safety
/// `reln` is a live relation of the storage manager.
unsafe fn locator(reln: pg_sys::SMgrRelation) -> RelFileLocator {
    // SAFETY: as required of the caller.
    locator_of(unsafe { (*reln).smgr_rlocator.locator })
}

fn fork(number: i32) -> ForkNumber {
    let fork = u32::try_from(number).ok().and_then(ForkNumber::from_number);
    fork.unwrap_or_else(|| report::panic(&format!("{number} is no fork number")))
}

/// # Safety
/// As [`locator`].
unsafe fn rel(reln: pg_sys::SMgrRelation, number: i32) -> RelTag {
    // SAFETY: as required of the caller.
    unsafe { locator(reln) }.fork(fork(number))
}

fn value<T>(result: Result<T, smgr::Error>) -> T {
    result.unwrap_or_else(|error| report::raise(&error))
}

#[pg_guard]
unsafe extern "C-unwind" fn select(reln: pg_sys::SMgrRelation) -> i32 {
    // SAFETY: the server calls this with the relation that it has just entered into its table.
    let (locator, backend) = unsafe { (locator(reln), (*reln).smgr_rlocator.backend) };
    index_of(smgr::select(locator, backend != pg_sys::INVALID_PROC_NUMBER))
}

#[pg_guard]
unsafe extern "C-unwind" fn create_storage(reln: pg_sys::SMgrRelation, relpersistence: c_char) {
    let route = route::on_create(relpersistence.cast_unsigned());
    // SAFETY: RelationCreateStorage calls this between opening and creating. No file of the relation is open yet, and
    // both storage managers leave the same fields behind when a relation is opened (see `open`).
    unsafe { (*reln).smgr_which = index_of(route) };
}

#[pg_guard]
unsafe extern "C-unwind" fn database_size(db_oid: pg_sys::Oid) -> i64 {
    let last_written = xlog::insert_position();
    value(page_client::db_size(db_oid.to_u32(), last_written).map_err(smgr::Error::from))
}

/// Does what `mdopen` does, so that the relation can be handed to md.c by [`create_storage`].
#[pg_guard]
unsafe extern "C-unwind" fn open(reln: pg_sys::SMgrRelation) {
    // SAFETY: a relation that is being opened.
    unsafe { (*reln).md_num_open_segs = [0; 4] };
}

unsafe extern "C-unwind" fn close(_reln: pg_sys::SMgrRelation, _fork: i32) {}

#[pg_guard]
unsafe extern "C-unwind" fn create(reln: pg_sys::SMgrRelation, fork: i32, _is_redo: bool) {
    // SAFETY: a live relation.
    value(PageServerStorage.create(unsafe { rel(reln, fork) }));
}

#[pg_guard]
unsafe extern "C-unwind" fn exists(reln: pg_sys::SMgrRelation, fork: i32) -> bool {
    // SAFETY: a live relation.
    value(PageServerStorage.exists(unsafe { rel(reln, fork) }))
}

#[pg_guard]
unsafe extern "C-unwind" fn unlink(
    rlocator: pg_sys::RelFileLocatorBackend,
    number: i32,
    _is_redo: bool,
) {
    PageServerStorage.unlink(locator_of(rlocator.locator).fork(fork(number)));
}

#[pg_guard]
unsafe extern "C-unwind" fn extend(
    reln: pg_sys::SMgrRelation,
    fork: i32,
    block: u32,
    buffer: *const c_void,
    _skip_fsync: bool,
) {
    // SAFETY: a live relation, and a page that nobody changes meanwhile.
    let (rel, page) = unsafe { (rel(reln, fork), &*buffer.cast::<Page>()) };
    value(PageServerStorage.extend(rel, block, page));
}

#[pg_guard]
unsafe extern "C-unwind" fn zero_extend(
    reln: pg_sys::SMgrRelation,
    fork: i32,
    block: u32,
    nblocks: i32,
    _skip_fsync: bool,
) {
    let start = u64::from(block);
    let end = start + u64::try_from(nblocks).unwrap_or(0);
    // SAFETY: a live relation.
    value(PageServerStorage.zero_extend(unsafe { rel(reln, fork) }, start..end));
}

#[pg_guard]
unsafe extern "C-unwind" fn prefetch(
    reln: pg_sys::SMgrRelation,
    fork: i32,
    block: u32,
    nblocks: i32,
) -> bool {
    let end = block.saturating_add(u32::try_from(nblocks).unwrap_or(0));
    // SAFETY: a live relation.
    PageServerStorage.prefetch(unsafe { rel(reln, fork) }, block..end);
    true
}

#[pg_guard]
unsafe extern "C-unwind" fn read(
    reln: pg_sys::SMgrRelation,
    fork: i32,
    block: u32,
    buffers: *mut *mut c_void,
    nblocks: u32,
) {
    // SAFETY: a live relation, and `nblocks` distinct pages that this process alone uses until their I/O is over.
    let (rel, mut pages) = unsafe {
        let pages: Vec<&mut Page> =
            (0..nblocks as usize).map(|at| &mut *(*buffers.add(at)).cast::<Page>()).collect();
        (rel(reln, fork), pages)
    };
    value(PageServerStorage.read(rel, block, &mut pages));
}

#[pg_guard]
unsafe extern "C-unwind" fn write(
    reln: pg_sys::SMgrRelation,
    fork: i32,
    block: u32,
    buffers: *mut *const c_void,
    nblocks: u32,
    _skip_fsync: bool,
) {
    // SAFETY: a live relation.
    let rel = unsafe { rel(reln, fork) };
    for (block, at) in (block..).zip(0..nblocks as usize) {
        // SAFETY: one of `nblocks` pages, held under its content lock. Hint bits may be set meanwhile by holders of a
        // shared lock (`MarkBufferDirtyHint`); stock md.c writes such pages just so.
        let page = unsafe { &*(*buffers.add(at)).cast::<Page>() };
        value(PageServerStorage.write(rel, block, page));
    }
}

unsafe extern "C-unwind" fn write_back(
    _reln: pg_sys::SMgrRelation,
    _fork: i32,
    _block: u32,
    _nblocks: u32,
) {
}

#[pg_guard]
unsafe extern "C-unwind" fn nblocks(reln: pg_sys::SMgrRelation, fork: i32) -> u32 {
    // SAFETY: a live relation.
    value(PageServerStorage.nblocks(unsafe { rel(reln, fork) }))
}

#[pg_guard]
unsafe extern "C-unwind" fn truncate(
    reln: pg_sys::SMgrRelation,
    fork: i32,
    _old_blocks: u32,
    nblocks: u32,
) {
    // SAFETY: a live relation.
    PageServerStorage.truncate(unsafe { rel(reln, fork) }, nblocks);
}

unsafe extern "C-unwind" fn immediate_sync(_reln: pg_sys::SMgrRelation, _fork: i32) {}

unsafe extern "C-unwind" fn register_sync(_reln: pg_sys::SMgrRelation, _fork: i32) {}
