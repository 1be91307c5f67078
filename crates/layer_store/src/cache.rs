//! Uncompressed blocks of layer files in memory, within a byte budget.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use foldhash::fast::RandomState;
use quick_cache::Weighter;
use quick_cache::sync::{Cache, DefaultLifecycle};

use crate::layer::format::BLOCK_BYTES;

/// Layer and offset of a block.
type BlockId = (u64, u64);
type Lifecycle = DefaultLifecycle<BlockId, Bytes>;
type Blocks = Cache<BlockId, Bytes, BlockWeight, RandomState, Lifecycle>;

/// Cost of an entry beyond its bytes, about.
const ENTRY_COST: u64 = 100;

#[derive(Clone, Debug)]
struct BlockWeight;

impl Weighter<BlockId, Bytes> for BlockWeight {
    fn weight(&self, _: &BlockId, block: &Bytes) -> u64 {
        block.len() as u64 + ENTRY_COST
    }
}

/// The block cache of a process. Clones are handles to the same cache.
#[derive(Clone)]
pub(crate) struct BlockCache {
    blocks: Arc<Blocks>,
    next_id: Arc<AtomicU64>,
}

impl BlockCache {
    pub(crate) fn new(bytes: u64) -> BlockCache {
        let items = usize::try_from(bytes / BLOCK_BYTES as u64).unwrap_or(usize::MAX).max(1);
        let state = RandomState::default();
        let blocks = Cache::with(items, bytes, BlockWeight, state, Lifecycle::default());
        BlockCache { blocks: Arc::new(blocks), next_id: Arc::default() }
    }

    /// A number that no other layer of this process has.
    pub(crate) fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn get(&self, layer: u64, offset: u64) -> Option<Bytes> {
        self.blocks.get(&(layer, offset))
    }

    pub(crate) fn insert(&self, layer: u64, offset: u64, block: Bytes) {
        self.blocks.insert((layer, offset), block);
    }

    /// Bytes in use.
    pub(crate) fn bytes(&self) -> u64 {
        self.blocks.weight()
    }
}

impl fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockCache").field("bytes", &self.bytes()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_its_budget() {
        let cache = BlockCache::new(1024 * 1024);
        for number in 0..1000 {
            cache.insert(cache.new_id(), number, Bytes::from(vec![0; BLOCK_BYTES]));
            assert!(cache.bytes() <= 1024 * 1024);
        }
        assert!(cache.bytes() > 512 * 1024);
        cache.insert(0, 0, Bytes::from(vec![0; 2 * 1024 * 1024]));
        assert!(cache.bytes() <= 1024 * 1024);
    }
}
