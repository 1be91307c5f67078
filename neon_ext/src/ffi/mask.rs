//! The masks that hide what Postgres changes without WAL.
#![expect(unsafe_code, reason = "calls the resource managers' mask functions")]

use compute_core::audit::PageKind;
use neon_wal::RM_NEON_ID;
use pg_types::BlockNumber;
use pgrx::pg_sys;

use super::xlog::OwnedPage;

/// Numbers of `access/rmgrlist.h`.
mod rmgr {
    pub const HEAP: usize = 10;
    pub const BTREE: usize = 11;
    pub const HASH: usize = 12;
    pub const GIN: usize = 13;
    pub const GIST: usize = 14;
    pub const SEQ: usize = 15;
    pub const SPGIST: usize = 16;
    pub const BRIN: usize = 17;
    pub const GENERIC: usize = 20;
}

fn manager(index: usize) -> pg_sys::RmgrData {
    // SAFETY: the table has 256 entries, filled by the postmaster before any other process exists.
    unsafe { (&raw const pg_sys::RmgrTable).cast::<pg_sys::RmgrData>().add(index).read() }
}

/// Masks a private page with the function of the resource manager that logs its kind.
///
/// For heap pages that is the one of resource manager 134 where it is loaded: it hides the same as stock Postgres'
/// but not the command ids, which that resource manager keeps.
pub fn apply(kind: PageKind, page: &mut OwnedPage, block: BlockNumber) {
    let index = match kind {
        PageKind::Heap if manager(RM_NEON_ID.into()).rm_mask.is_some() => RM_NEON_ID.into(),
        PageKind::Heap => rmgr::HEAP,
        PageKind::Btree => rmgr::BTREE,
        PageKind::Hash => rmgr::HASH,
        PageKind::Gin => rmgr::GIN,
        PageKind::Gist => rmgr::GIST,
        PageKind::Sequence => rmgr::SEQ,
        PageKind::Spgist => rmgr::SPGIST,
        PageKind::Brin => rmgr::BRIN,
        PageKind::Generic | PageKind::Map => rmgr::GENERIC,
    };
    let Some(mask) = manager(index).rm_mask else { return };
    let page = page.0.as_mut_ptr().cast();
    // SAFETY: the functions change only the page that they get, which is private. They raise an error on a broken
    // header, hence the guard.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| mask(page, block)) };
}
