//! What all stores of a process share: the memory budget and the settings.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use crate::cache::BlockCache;
use crate::disk::Disk;
use crate::error::StoreError;
use crate::options::Options;
use crate::store::{Store, StoreInner};

/// What all stores of a process share. Clones are handles to the same thing.
#[derive(Clone, Debug)]
pub struct Shared {
    inner: Arc<SharedInner>,
}

#[derive(Debug)]
struct SharedInner {
    options: Options,
    disk: Disk,
    cache: BlockCache,
    memtable_bytes: Arc<AtomicU64>,
    stores: Mutex<Vec<Weak<StoreInner>>>,
    /// Signalled when memory in use passes a mark.
    flush_wanted: Condvar,
}

/// Bytes that one memtable is charged with; given back when it goes.
#[derive(Debug)]
pub(crate) struct BudgetShare {
    total: Arc<AtomicU64>,
    mine: AtomicU64,
}

impl BudgetShare {
    pub(crate) fn grow(&self, bytes: u64) {
        self.mine.fetch_add(bytes, Ordering::Relaxed);
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.mine.load(Ordering::Relaxed)
    }
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes(), Ordering::Relaxed);
    }
}

impl Shared {
    /// Settings and an empty budget.
    pub fn new(options: Options) -> Shared {
        Shared::with_disk(options, Disk::default())
    }

    pub(crate) fn with_disk(options: Options, disk: Disk) -> Shared {
        let cache = BlockCache::new(options.block_cache_bytes);
        Shared {
            inner: Arc::new(SharedInner {
                options,
                disk,
                cache,
                memtable_bytes: Arc::default(),
                stores: Mutex::default(),
                flush_wanted: Condvar::new(),
            }),
        }
    }

    /// The settings.
    pub fn options(&self) -> &Options {
        &self.inner.options
    }

    /// Bytes of all memtables of the process.
    pub fn memtable_bytes(&self) -> u64 {
        self.inner.memtable_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of the block cache in use.
    pub fn block_cache_bytes(&self) -> u64 {
        self.inner.cache.bytes()
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.inner.disk
    }

    pub(crate) fn cache(&self) -> &BlockCache {
        &self.inner.cache
    }

    /// The store to flush next, when one should be: the one with the largest memtable when memory is at three
    /// quarters of the budget, else one whose memtable has reached its own mark. Waits up to `timeout` for it.
    /// Stores that take no more flushes ([`StoreError::Poisoned`]) are left out.
    ///
    /// Meant for one blocking loop of the process: `while running { if let Some(store) =
    /// shared.wait_flush_wanted(second) { store.flush()?; } }`.
    pub fn wait_flush_wanted(&self, timeout: Duration) -> Option<Store> {
        let stores = self.inner.stores.lock().unwrap_or_else(PoisonError::into_inner);
        let (stores, _) = self
            .inner
            .flush_wanted
            .wait_timeout_while(stores, timeout, |stores| self.choose(stores).is_none())
            .unwrap_or_else(PoisonError::into_inner);
        self.choose(&stores)
    }

    /// Returns when memory is not used up, flushing stores, the largest first, in the calling thread. A store that
    /// cannot be flushed is passed over; its error counts only when no other gives way.
    pub(crate) fn make_room(&self) -> Result<(), StoreError> {
        let mut result = Ok(());
        for store in self.largest_first() {
            if !self.is_full() {
                return Ok(());
            }
            let mut flusher = store.lock_flusher();
            // Whoever held the lock may have made room.
            if self.is_full() {
                result = result.and(store.flush_locked(&mut flusher).map(|_| ()));
            }
        }
        if self.is_full() { result } else { Ok(()) }
    }

    fn is_full(&self) -> bool {
        self.memtable_bytes() >= self.options().memtable_bytes
    }

    /// The stores to flush for room; none while there is room.
    fn largest_first(&self) -> Vec<Store> {
        if !self.is_full() {
            return Vec::new();
        }
        let stores = self.inner.stores.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stores: Vec<(u64, Store)> = sizes(&stores).collect();
        stores.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        stores.into_iter().map(|(_, store)| store).collect()
    }

    pub(crate) fn budget_share(&self) -> BudgetShare {
        BudgetShare { total: Arc::clone(&self.inner.memtable_bytes), mine: AtomicU64::new(0) }
    }

    pub(crate) fn register(&self, store: &Arc<StoreInner>) {
        let mut stores = self.inner.stores.lock().unwrap_or_else(PoisonError::into_inner);
        stores.retain(|store| store.strong_count() > 0);
        stores.push(Arc::downgrade(store));
    }

    /// Wakes the flush loop when there may be something to do.
    pub(crate) fn notify_growth(&self, memtable_bytes: u64) {
        if self.pressing() || memtable_bytes >= self.options().memtable_flush_bytes {
            // The lock is taken so that a loop between its check and its wait does not miss the signal.
            drop(self.inner.stores.lock().unwrap_or_else(PoisonError::into_inner));
            self.inner.flush_wanted.notify_one();
        }
    }

    fn pressing(&self) -> bool {
        self.memtable_bytes() >= self.options().memtable_bytes / 4 * 3
    }

    fn choose(&self, stores: &[Weak<StoreInner>]) -> Option<Store> {
        let (bytes, store) = sizes(stores)
            .filter(|(_, store)| !store.inner.poisoned.load(Ordering::Relaxed))
            .max_by_key(|(bytes, _)| *bytes)?;
        (self.pressing() || bytes >= self.options().memtable_flush_bytes).then_some(store)
    }
}

/// The stores that hold versions in memory, with their bytes.
fn sizes(stores: &[Weak<StoreInner>]) -> impl Iterator<Item = (u64, Store)> {
    stores
        .iter()
        .filter_map(Weak::upgrade)
        .map(|inner| Store { inner })
        .map(|store| (store.memtable_bytes(), store))
        .filter(|(bytes, _)| *bytes > 0)
}
