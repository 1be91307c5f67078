//! The extension's shared memory: one block, laid out here and nowhere else.
#![expect(unsafe_code, reason = "turns addresses in shared memory into references under locks")]

use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use compute_core::fixed_map::{self, Header, Key, Node, Table, TableMut};
use compute_core::last_written::{self, BlockKey};
use compute_core::relation_size::{self, ForkKey};
use compute_core::spill;
use pg_types::Lsn;
use pgrx::pg_sys;

use super::guc;
use super::lwlock::{LwLockGuard, ServerLock};
use crate::counters::Counters;

/// Locks that the last-written LSN cache is divided by.
pub const LAST_WRITTEN_PARTITIONS: usize = 32;
/// Locks that the relation sizes are divided by.
pub const SIZE_PARTITIONS: usize = 16;
/// Forks that can have spill files at a time.
const SPILL_FORKS: usize = 4096;
const LOCKS: usize = LAST_WRITTEN_PARTITIONS + SIZE_PARTITIONS + 1;
const TRANCHE: &std::ffi::CStr = c"neon";
const ALIGNMENT: usize = 64;

/// Fixed part of the block. All-zero bytes are a valid value.
#[repr(C)]
pub struct Fixed {
    /// Where the floors of the last-written LSN cache began (see `last_written_lsn`); 0 until they are known.
    pub started_at: AtomicU64,
    /// Forks that have a spill file; readers look at the table only if there are any.
    pub spilled_forks: AtomicU32,
    /// What has been counted.
    pub counters: Counters,
    last_written: [LastWrittenHeader; LAST_WRITTEN_PARTITIONS],
    sizes: [Header; SIZE_PARTITIONS],
    spilled: Header,
}

#[repr(C)]
struct LastWrittenHeader {
    floor: u64,
    table: Header,
}

static BASE: AtomicPtr<Fixed> = AtomicPtr::new(std::ptr::null_mut());
static LOCK_BASE: AtomicPtr<pg_sys::LWLockPadded> = AtomicPtr::new(std::ptr::null_mut());

/// One table's place in the block.
#[derive(Clone, Copy)]
struct Place {
    buckets: usize,
    nodes: usize,
    capacity: usize,
}

/// Hands out space from the start of the block.
pub(super) struct Space {
    pub(super) used: usize,
}

impl Space {
    pub(super) fn take(&mut self, bytes: usize) -> usize {
        let start = self.used.next_multiple_of(ALIGNMENT);
        self.used = start + bytes;
        start
    }

    fn table<K, V>(&mut self, capacity: usize) -> Place {
        let buckets = self.take(fixed_map::bucket_count(capacity) * size_of::<u32>());
        let nodes = self.take(capacity * size_of::<Node<K, V>>());
        Place { buckets, nodes, capacity }
    }
}

/// Where everything is. The sizes are settings that cannot change while the server runs, so every process computes
/// the same layout.
struct Layout {
    last_written: Place,
    last_written_stride: usize,
    sizes: Place,
    sizes_stride: usize,
    spilled: Place,
    total: usize,
}

impl Layout {
    fn compute() -> Layout {
        let mut space = Space { used: size_of::<Fixed>() };
        let per_lw = guc::last_written_lsn_cache_size().div_ceil(LAST_WRITTEN_PARTITIONS);
        let per_size = guc::relsize_hash_size().div_ceil(SIZE_PARTITIONS);
        let (last_written, last_written_stride) =
            repeated::<BlockKey, last_written::Entry>(&mut space, per_lw, LAST_WRITTEN_PARTITIONS);
        let (sizes, sizes_stride) =
            repeated::<ForkKey, relation_size::Entry>(&mut space, per_size, SIZE_PARTITIONS);
        let spilled = space.table::<ForkKey, spill::Entry>(SPILL_FORKS);
        Layout {
            last_written,
            last_written_stride,
            sizes,
            sizes_stride,
            spilled,
            total: space.used,
        }
    }
}

/// `count` equal tables one after the other: the first one's place, and the distance between two.
fn repeated<K, V>(space: &mut Space, capacity: usize, count: usize) -> (Place, usize) {
    let first = space.table::<K, V>(capacity);
    let mut stride = 0;
    for index in 1..count {
        let next = space.table::<K, V>(capacity);
        if index == 1 {
            stride = next.buckets - first.buckets;
        }
    }
    (first, stride)
}

static LAYOUT: std::sync::OnceLock<Layout> = std::sync::OnceLock::new();

fn layout() -> &'static Layout {
    LAYOUT.get_or_init(Layout::compute)
}

/// Asks Postgres for the space and the locks (`shmem_request_hook`).
pub fn request() {
    // SAFETY: called from the hook that exists for these two calls.
    unsafe {
        pg_sys::RequestAddinShmemSpace(layout().total);
        pg_sys::RequestNamedLWLockTranche(TRANCHE.as_ptr(), i32::try_from(LOCKS).unwrap_or(0));
    }
}

/// Attaches to the block, and fills it if this is the postmaster (`shmem_startup_hook`).
pub fn startup() {
    let (base, found) = attach(c"neon", layout().total);
    let base = base.cast::<Fixed>();
    // SAFETY: the tranche was requested under this name.
    let locks = unsafe { pg_sys::GetNamedLWLockTranche(TRANCHE.as_ptr()) };
    LOCK_BASE.store(locks, Ordering::Release);
    BASE.store(base, Ordering::Release);
    if !found {
        for partition in 0..LAST_WRITTEN_PARTITIONS {
            last_written_write(partition, |table, _| table.init());
        }
        for partition in 0..SIZE_PARTITIONS {
            sizes_write(partition, |table| table.init());
        }
        spilled_write(|table| table.init());
    }
}

/// A block of shared memory, aligned to a cache line, and whether it had been made before; if not it is all zeros now.
pub(super) fn attach(name: &std::ffi::CStr, bytes: usize) -> (*mut u8, bool) {
    let mut found = false;
    // SAFETY: called from the start-up hook, where Postgres' own modules do the same; the space was requested.
    let base = unsafe {
        let _held = LwLockGuard::acquire_server_lock(ServerLock::AddinShmemInit, true);
        let base = pg_sys::ShmemInitStruct(name.as_ptr(), bytes, &mut found);
        if !found {
            std::ptr::write_bytes(base.cast::<u8>(), 0, bytes);
        }
        base.cast::<u8>()
    };
    (base, found)
}

/// Whether the block exists: the library was loaded by `shared_preload_libraries` of a compute.
pub fn is_attached() -> bool {
    !BASE.load(Ordering::Acquire).is_null()
}

/// The fixed part; `None` when there is no block.
pub fn fixed() -> Option<&'static Fixed> {
    // SAFETY: the block lives as long as the process; what is reachable through a shared reference without a lock is
    // atomic, the rest is private to this module.
    unsafe { BASE.load(Ordering::Acquire).as_ref() }
}

fn base() -> *mut Fixed {
    let base = BASE.load(Ordering::Acquire);
    assert!(!base.is_null(), "the neon library is not in shared_preload_libraries");
    base
}

fn lock(index: usize) -> *mut pg_sys::LWLock {
    let locks = LOCK_BASE.load(Ordering::Acquire);
    assert!(!locks.is_null(), "the neon library is not in shared_preload_libraries");
    // SAFETY: the tranche has LOCKS locks and `index` is below that.
    unsafe { &raw mut (*locks.add(index)).lock }
}

/// Addresses of one table.
struct Parts<K, V> {
    header: *mut Header,
    buckets: *mut u32,
    bucket_count: usize,
    nodes: *mut Node<K, V>,
    capacity: usize,
}

impl<K: Key, V: Copy + Default> Parts<K, V> {
    fn new(header: *mut Header, place: Place, offset: usize) -> Parts<K, V> {
        let start = base().cast::<u8>();
        // SAFETY: the layout gave these offsets within the block, aligned to 64 bytes.
        let (buckets, nodes) =
            unsafe { (start.add(place.buckets + offset), start.add(place.nodes + offset)) };
        Parts {
            header,
            buckets: buckets.cast(),
            bucket_count: fixed_map::bucket_count(place.capacity),
            nodes: nodes.cast(),
            capacity: place.capacity,
        }
    }

    fn read<R>(&self, lock: *mut pg_sys::LWLock, f: impl FnOnce(Table<'_, K, V>) -> R) -> R {
        // SAFETY: the lock is one of this module's tranche; held shared, nobody changes the table while the
        // references live, and any bytes are valid values of these types.
        unsafe {
            let _held = LwLockGuard::acquire(lock, false);
            let buckets = std::slice::from_raw_parts(self.buckets, self.bucket_count);
            let nodes = std::slice::from_raw_parts(self.nodes, self.capacity);
            f(Table::new(&*self.header, buckets, nodes))
        }
    }

    fn write<R>(
        &self,
        lock: *mut pg_sys::LWLock,
        f: impl FnOnce(&mut TableMut<'_, K, V>) -> R,
    ) -> R {
        // SAFETY: as in `read`; held exclusively, these are the only references.
        unsafe {
            let _held = LwLockGuard::acquire(lock, true);
            let buckets = std::slice::from_raw_parts_mut(self.buckets, self.bucket_count);
            let nodes = std::slice::from_raw_parts_mut(self.nodes, self.capacity);
            f(&mut TableMut::new(&mut *self.header, buckets, nodes))
        }
    }
}

fn last_written_parts(partition: usize) -> (Parts<BlockKey, last_written::Entry>, *mut u64) {
    let at = partition % LAST_WRITTEN_PARTITIONS;
    // SAFETY: addresses of fields of the block; nothing is read yet.
    let (header, floor) = unsafe {
        let entry = &raw mut (*base()).last_written[at];
        (&raw mut (*entry).table, &raw mut (*entry).floor)
    };
    (Parts::new(header, layout().last_written, layout().last_written_stride * at), floor)
}

/// Reads a partition of the last-written LSN cache, with its floor.
pub fn last_written_read<R>(
    partition: usize,
    f: impl FnOnce(Table<'_, BlockKey, last_written::Entry>, Lsn) -> R,
) -> R {
    let (parts, floor) = last_written_parts(partition);
    // SAFETY: the floor belongs to the partition's lock, which is held inside the closure.
    parts.read(lock(partition % LAST_WRITTEN_PARTITIONS), |table| f(table, Lsn(unsafe { *floor })))
}

/// Changes a partition of the last-written LSN cache or its floor.
pub fn last_written_write<R>(
    partition: usize,
    f: impl FnOnce(&mut TableMut<'_, BlockKey, last_written::Entry>, &mut Lsn) -> R,
) -> R {
    let (parts, floor) = last_written_parts(partition);
    parts.write(lock(partition % LAST_WRITTEN_PARTITIONS), |table| {
        // SAFETY: the floor belongs to the partition's lock, which is held exclusively.
        let floor = unsafe { &mut *floor };
        let mut lsn = Lsn(*floor);
        let result = f(table, &mut lsn);
        *floor = lsn.0;
        result
    })
}

fn sizes_parts(partition: usize) -> (Parts<ForkKey, relation_size::Entry>, *mut pg_sys::LWLock) {
    let at = partition % SIZE_PARTITIONS;
    // SAFETY: the address of a field of the block; nothing is read yet.
    let header = unsafe { &raw mut (*base()).sizes[at] };
    let parts = Parts::new(header, layout().sizes, layout().sizes_stride * at);
    (parts, lock(LAST_WRITTEN_PARTITIONS + at))
}

/// Reads a partition of the relation sizes.
pub fn sizes_read<R>(
    partition: usize,
    f: impl FnOnce(Table<'_, ForkKey, relation_size::Entry>) -> R,
) -> R {
    let (parts, lock) = sizes_parts(partition);
    parts.read(lock, f)
}

/// Changes a partition of the relation sizes. Within it the last-written LSN cache may be changed, never the other
/// way round.
pub fn sizes_write<R>(partition: usize, f: impl FnOnce(&mut relation_size::Sizes<'_>) -> R) -> R {
    let (parts, lock) = sizes_parts(partition);
    parts.write(lock, f)
}

fn spilled_parts() -> (Parts<ForkKey, spill::Entry>, *mut pg_sys::LWLock) {
    // SAFETY: the address of a field of the block; nothing is read yet.
    let header = unsafe { &raw mut (*base()).spilled };
    (Parts::new(header, layout().spilled, 0), lock(LOCKS - 1))
}

/// Reads the table of spilled forks.
pub fn spilled_read<R>(f: impl FnOnce(Table<'_, ForkKey, spill::Entry>) -> R) -> R {
    let (parts, lock) = spilled_parts();
    parts.read(lock, f)
}

/// Changes the table of spilled forks.
pub fn spilled_write<R>(f: impl FnOnce(&mut spill::Spilled<'_>) -> R) -> R {
    let (parts, lock) = spilled_parts();
    parts.write(lock, |table| {
        let result = f(table);
        let forks = u32::try_from(table.as_table().len()).unwrap_or(u32::MAX);
        if let Some(fixed) = fixed() {
            fixed.spilled_forks.store(forks, Ordering::Release);
        }
        result
    })
}
