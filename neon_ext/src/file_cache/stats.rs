//! What the local file cache has done since the server started, in shared memory.

use std::sync::atomic::{AtomicU64, Ordering};

/// The numbers. All-zero bytes are a valid value.
#[repr(C)]
pub struct Stats {
    /// Blocks that were read from the cache.
    pub hits: AtomicU64,
    /// Blocks that were asked for and not there.
    pub misses: AtomicU64,
    /// Blocks written to the cache.
    pub writes: AtomicU64,
    /// Chunks that had to go for others.
    pub evictions: AtomicU64,
}

/// Adds to a number.
pub fn add(number: &AtomicU64, amount: u64) {
    number.fetch_add(amount, Ordering::Relaxed);
}
