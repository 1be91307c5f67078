//! Shared memory, locks and condition variables of the local file cache.
#![expect(unsafe_code, reason = "turns addresses in shared memory into references under locks")]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use compute_core::file_cache::{
    Chunk, ChunkKey, Geometry, PARTITIONS_MAX, Partition, PartitionHeader, PartitionView, SlotState,
};
use compute_core::fixed_map::{self, Node};
use compute_core::working_set::{self, WorkingSet};
use pgrx::pg_sys;

use super::guc_file_cache as guc;
use super::latch::WaitEvent;
use super::lwlock::LwLockGuard;
use super::shmem::{self, Space};
use crate::file_cache::Stats;

/// Condition variables that those who wait for pending blocks are spread over.
const WAITING_ROOMS: usize = 64;
const TRANCHE: &std::ffi::CStr = c"neon_file_cache";

/// Fixed part of the block. All-zero bytes are a valid value for what is reachable without a lock.
#[repr(C)]
pub struct Fixed {
    /// Whether the cache is in use.
    pub is_on: AtomicBool,
    /// Whether the file is of no use any more and takes space.
    pub must_empty: AtomicBool,
    /// Chunks that it may hold, as set last.
    pub limit: AtomicU64,
    /// What has happened.
    pub stats: Stats,
    /// For [`WorkingSet`].
    working_set: [AtomicU32; working_set::WORDS],
    waiting_rooms: [pg_sys::ConditionVariable; WAITING_ROOMS],
    partitions: [PartitionHeader; PARTITIONS_MAX],
}

impl Fixed {
    /// The estimate of the working set.
    pub fn working_set(&self) -> WorkingSet<'_> {
        WorkingSet::new(&self.working_set)
    }
}

/// Where the parts of partition 0 are in the block; those of the others follow at equal distances.
struct Layout {
    geometry: Geometry,
    buckets: usize,
    nodes: usize,
    slots: usize,
    stride: usize,
    total: usize,
}

static BASE: AtomicPtr<Fixed> = AtomicPtr::new(std::ptr::null_mut());
static LOCK_BASE: AtomicPtr<pg_sys::LWLockPadded> = AtomicPtr::new(std::ptr::null_mut());
static LAYOUT: OnceLock<Option<Layout>> = OnceLock::new();

/// The layout; `None` when the cache is configured away. The settings cannot change while the server runs.
fn layout() -> Option<&'static Layout> {
    LAYOUT.get_or_init(compute_layout).as_ref()
}

fn compute_layout() -> Option<Layout> {
    let geometry = Geometry::new(guc::max_size(), guc::chunk_blocks())?;
    let mut space = Space { used: size_of::<Fixed>() };
    let capacity = geometry.partition_capacity();
    let mut take_partition = || {
        let buckets = space.take(fixed_map::bucket_count(capacity) * size_of::<u32>());
        let nodes = space.take(capacity * size_of::<Node<ChunkKey, Chunk>>());
        let slots = space.take(capacity * size_of::<SlotState>());
        (buckets, nodes, slots)
    };
    let (buckets, nodes, slots) = take_partition();
    let stride = take_partition().0 - buckets;
    for _ in 2..geometry.partitions() {
        take_partition();
    }
    Some(Layout { geometry, buckets, nodes, slots, stride, total: space.used })
}

/// Asks Postgres for the space and the locks (`shmem_request_hook`).
pub fn request() {
    let Some(layout) = layout() else { return };
    // One for each partition, and the one for switching on and off.
    let locks = i32::try_from(layout.geometry.partitions() + 1).unwrap_or(0);
    // SAFETY: called from the hook that exists for these two calls.
    unsafe {
        pg_sys::RequestAddinShmemSpace(layout.total);
        pg_sys::RequestNamedLWLockTranche(TRANCHE.as_ptr(), locks);
    }
}

/// Attaches to the block, and makes it if this is the postmaster (`shmem_startup_hook`).
pub fn startup() {
    let Some(layout) = layout() else { return };
    let (base, found) = shmem::attach(c"neon file cache", layout.total);
    let base = base.cast::<Fixed>();
    // SAFETY: the tranche was requested under this name.
    let locks = unsafe { pg_sys::GetNamedLWLockTranche(TRANCHE.as_ptr()) };
    LOCK_BASE.store(locks, Ordering::Release);
    BASE.store(base, Ordering::Release);
    if found {
        return;
    }
    for room in 0..WAITING_ROOMS {
        // SAFETY: a place in the block, which nobody else knows yet.
        unsafe { pg_sys::ConditionVariableInit(&raw mut (*base).waiting_rooms[room]) };
    }
    for partition in 0..layout.geometry.partitions() {
        exclusive(partition, |chunks| chunks.init());
    }
}

/// The fixed part and the geometry; `None` when there is no cache in this server.
pub fn attached() -> Option<(&'static Fixed, Geometry)> {
    // SAFETY: the block lives as long as the process; what is reachable through a shared reference without a lock is
    // atomic, the rest is private to this module.
    let fixed = unsafe { BASE.load(Ordering::Acquire).as_ref() }?;
    Some((fixed, layout()?.geometry))
}

/// Addresses of one partition.
struct Parts {
    lock: *mut pg_sys::LWLock,
    header: *mut PartitionHeader,
    buckets: *mut u32,
    bucket_count: usize,
    nodes: *mut Node<ChunkKey, Chunk>,
    slots: *const SlotState,
    capacity: usize,
}

impl Parts {
    fn new(partition: usize) -> Parts {
        let base = BASE.load(Ordering::Acquire);
        let locks = LOCK_BASE.load(Ordering::Acquire);
        assert!(!base.is_null() && !locks.is_null(), "there is a file cache");
        let layout = layout().unwrap_or_else(|| super::report::panic("no file cache"));
        let at = partition % layout.geometry.partitions();
        let offset = layout.stride * at;
        let capacity = layout.geometry.partition_capacity();
        // SAFETY: the layout gave these offsets within the block, aligned to 64 bytes; the tranche has a lock for each
        // partition, of which there are at most PARTITIONS_MAX.
        unsafe {
            let start = base.cast::<u8>().add(offset);
            Parts {
                lock: &raw mut (*locks.add(at)).lock,
                header: &raw mut (*base).partitions[at],
                buckets: start.add(layout.buckets).cast(),
                bucket_count: fixed_map::bucket_count(capacity),
                nodes: start.add(layout.nodes).cast(),
                slots: start.add(layout.slots).cast(),
                capacity,
            }
        }
    }

    fn slots(&self) -> &'static [SlotState] {
        // SAFETY: the block lives as long as the process, and the elements are atomics.
        unsafe { std::slice::from_raw_parts(self.slots, self.capacity) }
    }
}

/// Looks at a partition.
pub fn shared<R>(partition: usize, f: impl FnOnce(PartitionView<'_>) -> R) -> R {
    let parts = Parts::new(partition);
    // SAFETY: the partition's lock; held shared, nobody changes the table while the references live, and any bytes are
    // valid values of these types.
    unsafe {
        let _held = LwLockGuard::acquire(parts.lock, false);
        let buckets = std::slice::from_raw_parts(parts.buckets, parts.bucket_count);
        let nodes = std::slice::from_raw_parts(parts.nodes, parts.capacity);
        f(PartitionView::new(&*parts.header, buckets, nodes, parts.slots()))
    }
}

/// Runs `f`, which switches the cache on or off, while nobody else does. Partitions may be changed meanwhile.
pub fn controlling<R>(f: impl FnOnce() -> R) -> R {
    let locks = LOCK_BASE.load(Ordering::Acquire);
    assert!(!locks.is_null(), "there is a file cache");
    let partitions = layout().map_or(0, |layout| layout.geometry.partitions());
    // SAFETY: the tranche has one lock more than there are partitions.
    unsafe {
        let _held = LwLockGuard::acquire(&raw mut (*locks.add(partitions)).lock, true);
        f()
    }
}

/// Changes a partition.
pub fn exclusive<R>(partition: usize, f: impl FnOnce(&mut Partition<'_>) -> R) -> R {
    let parts = Parts::new(partition);
    // SAFETY: as in `shared`; held exclusively, these are the only references to what is not atomic.
    unsafe {
        let _held = LwLockGuard::acquire(parts.lock, true);
        let buckets = std::slice::from_raw_parts_mut(parts.buckets, parts.bucket_count);
        let nodes = std::slice::from_raw_parts_mut(parts.nodes, parts.capacity);
        f(&mut Partition::new(&mut *parts.header, buckets, nodes, parts.slots()))
    }
}

/// What can be looked at of a slot without a lock.
pub fn slot_state(partition: usize, slot: u32) -> Option<&'static SlotState> {
    Parts::new(partition).slots().get(slot as usize)
}

fn room_of(key: &ChunkKey) -> *mut pg_sys::ConditionVariable {
    let base = BASE.load(Ordering::Acquire);
    assert!(!base.is_null(), "there is a file cache");
    let room = Geometry::waiting_room(key, WAITING_ROOMS);
    // SAFETY: an address within the block.
    unsafe { &raw mut (*base).waiting_rooms[room] }
}

/// Wakes all that wait for blocks of a chunk.
pub fn wake(key: &ChunkKey) {
    // SAFETY: initialised when the block was made; takes a spinlock and sets latches.
    unsafe { pg_sys::ConditionVariableBroadcast(room_of(key)) };
}

/// This process in the queue of those who wait for blocks of a chunk. Wakings are not missed from its creation on; it
/// leaves the queue when dropped, also when a cancel request unwinds.
pub struct Queued {
    room: *mut pg_sys::ConditionVariable,
    slept: bool,
}

impl Queued {
    /// Joins the queue.
    pub fn new(key: &ChunkKey) -> Queued {
        let room = room_of(key);
        // SAFETY: initialised when the block was made.
        unsafe { pg_sys::ConditionVariablePrepareToSleep(room) };
        Queued { room, slept: false }
    }

    /// Sleeps until woken, perhaps for nothing. Serves interrupts unless they are held off.
    pub fn sleep(&mut self) {
        self.slept = true;
        // SAFETY: this process is prepared to sleep on it.
        unsafe { pg_sys::ConditionVariableSleep(self.room, WaitEvent::FileCache.info()) };
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        // SAFETY: leaving a queue never fails. The latch is set again because whoever called into the storage manager may
        // be in the middle of a loop that relies on it.
        unsafe {
            pg_sys::ConditionVariableCancelSleep();
            if self.slept {
                pg_sys::SetLatch(pg_sys::MyLatch);
            }
        }
    }
}
