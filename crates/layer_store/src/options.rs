//! Settings of all stores of a process.

/// Settings of all stores of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of all memtables together. At three quarters of it a flush is asked for; at the whole of it, `put`
    /// flushes before it returns.
    pub memtable_bytes: u64,
    /// Bytes of one memtable at which it is asked to be flushed even when the rest of the process is idle; about
    /// the size of a layer file before compression.
    pub memtable_flush_bytes: u64,
    /// Bytes of the cache of uncompressed layer blocks (data, index and filter alike).
    pub block_cache_bytes: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            memtable_bytes: 512 * 1024 * 1024,
            memtable_flush_bytes: 128 * 1024 * 1024,
            block_cache_bytes: 128 * 1024 * 1024,
        }
    }
}
