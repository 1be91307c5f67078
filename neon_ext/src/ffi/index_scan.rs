//! Looking ahead in btree index scans: the heap blocks of the rows to come are on the index page that the scan holds.
//!
//! When a plan is started, each index scan's routine is put behind one of ours (`ExecProcNodeReal`, which
//! `ExecProcNodeFirst` has not looked at yet). After a row it asks for the heap blocks of the next ones, as far as
//! `compute_core::readahead::Scans` says. PostgreSQL needs no change for it.
#![expect(unsafe_code, reason = "sets hook variables of the server and reads executor nodes")]

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};

use compute_core::readahead::{Position, Scans};
use pgrx::pg_guard;
use pgrx::pg_sys::{self, NodeTag};

use super::guc;
use crate::smgr;

mod raw {
    use pgrx::pg_sys;

    // SAFETY: declarations of `executor/executor.h` and `nodes/nodeFuncs.h`, without the wrapper that pgrx puts around
    // them: errors jump over the frames of this module, which have no destructors.
    unsafe extern "C-unwind" {
        #[link_name = "standard_ExecutorStart"]
        pub fn standard_start(query: *mut pg_sys::QueryDesc, flags: i32);
        #[link_name = "planstate_tree_walker_impl"]
        pub fn walk(
            node: *mut pg_sys::PlanState,
            visit: Option<
                unsafe extern "C-unwind" fn(*mut pg_sys::PlanState, *mut std::ffi::c_void) -> bool,
            >,
            context: *mut std::ffi::c_void,
        ) -> bool;
    }
}

/// `BTScanPosItem` of `access/nbtree.h`, which the bindings leave out.
#[repr(C)]
struct BtScanPosItem {
    heap_tid: pg_sys::ItemPointerData,
    index_offset: u16,
    tuple_offset: u16,
}

/// `BTScanPosData` without its items, which follow.
#[repr(C)]
struct BtScanPos {
    buf: i32,
    lsn: u64,
    curr_page: u32,
    next_page: u32,
    more_left: bool,
    more_right: bool,
    dir: i32,
    next_tuple_offset: i32,
    first_item: i32,
    last_item: i32,
    item_index: i32,
    items: [BtScanPosItem; 0],
}

/// `BTScanOpaqueData` up to the current position.
#[repr(C)]
struct BtScanOpaque {
    qual_ok: bool,
    number_of_keys: i32,
    key_data: *mut std::ffi::c_void,
    num_array_keys: i32,
    need_prim_scan: bool,
    scan_behind: bool,
    array_keys: *mut std::ffi::c_void,
    order_procs: *mut std::ffi::c_void,
    array_context: *mut std::ffi::c_void,
    killed_items: *mut i32,
    num_killed: i32,
    curr_tuples: *mut std::ffi::c_char,
    mark_tuples: *mut std::ffi::c_char,
    mark_item_index: i32,
    curr_pos: BtScanPos,
}

/// The same numbers are held against the server's headers in `tests/modules/abi_probe/abi_probe.c`.
const _: () = {
    use std::mem::offset_of;
    assert!(offset_of!(BtScanOpaque, curr_pos) == 88);
    assert!(offset_of!(BtScanPos, curr_page) == 16);
    assert!(offset_of!(BtScanPos, dir) == 28);
    assert!(offset_of!(BtScanPos, first_item) == 36);
    assert!(offset_of!(BtScanPos, last_item) == 40);
    assert!(offset_of!(BtScanPos, item_index) == 44);
    assert!(offset_of!(BtScanPos, items) == 48);
    assert!(size_of::<BtScanPosItem>() == 10);
    assert!(offset_of!(BtScanPosItem, heap_tid) == 0);
};

/// Most items of a position (`MaxTIDsPerBTreePage`): a guard against a cursor that makes no sense.
const MAX_ITEMS: i32 = 1358;

type StartHook = unsafe extern "C-unwind" fn(*mut pg_sys::QueryDesc, i32);
type Routine = unsafe extern "C-unwind" fn(*mut pg_sys::PlanState) -> *mut pg_sys::TupleTableSlot;

static mut PREVIOUS: Option<StartHook> = None;
/// Address of `ExecIndexScan`, which is static in `nodeIndexscan.c`: the routine of the first node that was seen. Nodes with
/// another one, put there by another extension, are left alone.
static ORIGINAL: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SCANS: RefCell<Scans> = RefCell::default();
}

/// Installs the hook.
pub fn install() {
    // SAFETY: runs in the postmaster before it has children.
    unsafe {
        PREVIOUS = pg_sys::ExecutorStart_hook;
        pg_sys::ExecutorStart_hook = Some(executor_start);
    }
}

unsafe extern "C-unwind" fn executor_start(query: *mut pg_sys::QueryDesc, flags: i32) {
    // SAFETY: the arguments are passed on as they came; afterwards the plan state is complete, and the walker visits
    // each node once. No value here has a destructor, so an error may jump over this frame.
    unsafe {
        PREVIOUS.unwrap_or(raw::standard_start)(query, flags);
        visit((*query).planstate, std::ptr::null_mut());
    }
}

unsafe extern "C-unwind" fn visit(
    node: *mut pg_sys::PlanState,
    context: *mut std::ffi::c_void,
) -> bool {
    if node.is_null() {
        return false;
    }
    // SAFETY: the walker gives live nodes of the plan state.
    unsafe {
        if (*node).type_ == NodeTag::T_IndexScanState {
            wrap(node);
        }
        raw::walk(node, Some(visit), context)
    }
}

/// # Safety
/// `node` is an index scan that has not run yet.
unsafe fn wrap(node: *mut pg_sys::PlanState) {
    let scan = node.cast::<pg_sys::IndexScanState>();
    // SAFETY: as required of the caller. Without a relation the node is only explained.
    unsafe {
        let (index, heap) = ((*scan).iss_RelationDesc, (*scan).ss.ss_currentRelation);
        let Some(routine) = (*node).ExecProcNodeReal else { return };
        let address = routine as *const () as usize;
        if index.is_null()
            || heap.is_null()
            || address == exec_index_scan as *const () as usize
            || (*(*index).rd_rel).relam != pg_sys::BTREE_AM_OID
            || (*(*heap).rd_rel).relam != pg_sys::HEAP_TABLE_AM_OID
        {
            return;
        }
        let first = ORIGINAL.compare_exchange(0, address, Ordering::Relaxed, Ordering::Relaxed);
        if first.is_ok() || first == Err(address) {
            (*node).ExecProcNodeReal = Some(exec_index_scan);
        }
    }
}

unsafe extern "C-unwind" fn exec_index_scan(
    node: *mut pg_sys::PlanState,
) -> *mut pg_sys::TupleTableSlot {
    let before = smgr::far_reads();
    // SAFETY: `wrap` set this routine only on nodes whose own was the stored one; a function pointer of that type.
    let slot = unsafe {
        let original: Routine =
            std::mem::transmute::<usize, Routine>(ORIGINAL.load(Ordering::Relaxed));
        original(node)
    };
    let far = smgr::far_reads() != before;
    let idle = !far && SCANS.with_borrow(Scans::is_idle);
    if !idle && !slot.is_null() && guc::enable_prefetch() {
        // SAFETY: the node is an index scan that has just returned a row.
        unsafe { look_ahead(node.cast(), far) };
    }
    slot
}

#[pg_guard]
unsafe extern "C-unwind" fn look_ahead(node: *mut pg_sys::IndexScanState, far: bool) {
    // SAFETY: a btree scan's private state is a BTScanOpaqueData (`btbeginscan`), whose current position lists the
    // matching items of one page from `firstItem` to `lastItem`.
    unsafe {
        let scan = (*node).iss_ScanDesc;
        if scan.is_null() || (*scan).opaque.is_null() {
            return;
        }
        let position = &raw const (*(*scan).opaque.cast::<BtScanOpaque>()).curr_pos;
        let (first, last, at) =
            ((*position).first_item, (*position).last_item, (*position).item_index);
        let sane = 0 <= first && first <= at && at <= last && last < MAX_ITEMS;
        if (*position).curr_page == pg_sys::InvalidBlockNumber || !sane {
            return;
        }
        let backward = (*position).dir < 0;
        let row = if backward { last - at } else { at - first };
        let here = Position {
            page: (*position).curr_page,
            row: row.unsigned_abs(),
            rows: (last - first + 1).unsigned_abs(),
        };
        let max_distance = u32::try_from(guc::readahead_buffer_size() / 2).unwrap_or(0);
        let rows = SCANS.with_borrow_mut(|scans| scans.step(node.addr(), here, far, max_distance));
        let items = (&raw const (*position).items).cast::<BtScanPosItem>();
        let mut before = pg_sys::InvalidBlockNumber;
        for row in rows {
            let row = row.cast_signed();
            let item = if backward { last - row } else { first + row };
            let tid = (*items.add(item.unsigned_abs() as usize)).heap_tid.ip_blkid;
            let block = u32::from(tid.bi_hi) << 16 | u32::from(tid.bi_lo);
            if block != before {
                pg_sys::PrefetchBuffer(
                    (*scan).heapRelation,
                    pg_sys::ForkNumber::MAIN_FORKNUM,
                    block,
                );
            }
            before = block;
        }
    }
}
