//! Where chunks lie in the file, and how the file is divided among partitions.

use std::ops::Range;

use pg_types::{BLCKSZ, BlockNumber, RelTag};

use super::{BlockSet, ChunkKey};
use crate::fixed_map::Key;

/// Blocks that a chunk can have.
pub const CHUNK_BLOCKS_MAX: u32 = BlockSet::CAPACITY;
/// Partitions that a cache can have.
pub const PARTITIONS_MAX: usize = 64;
/// Chunks that a partition should have at least: with fewer, an uneven spread of the hash would leave partitions unused
/// while others evict.
const CHUNKS_PER_PARTITION: usize = 32;

/// The division of the file, fixed while the server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    chunk_blocks: u32,
    chunks: usize,
    partitions: usize,
}

/// Blocks of a fork that lie in one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkSpan {
    /// The chunk.
    pub key: ChunkKey,
    /// The first block of the chunk that is meant.
    pub first: u32,
    /// How many blocks are meant.
    pub count: u32,
}

impl ChunkSpan {
    /// The blocks, as numbers within the chunk.
    pub fn blocks(&self) -> BlockSet {
        BlockSet::range(self.first..self.first + self.count)
    }
}

impl Geometry {
    /// For a file of at most `bytes` and chunks of about `chunk_blocks` blocks, which is rounded down to a power of two.
    /// `None` when not one chunk fits.
    pub fn new(bytes: u64, chunk_blocks: u32) -> Option<Geometry> {
        let chunk_blocks = 1 << chunk_blocks.clamp(1, CHUNK_BLOCKS_MAX).ilog2();
        let chunks = bytes / (u64::from(chunk_blocks) * BLCKSZ as u64);
        // Nodes are numbered with 32 bits, of which one number means "none".
        let chunks = usize::try_from(chunks.min(u64::from(u32::MAX - 1))).ok()?;
        let wanted = (chunks / CHUNKS_PER_PARTITION).clamp(1, PARTITIONS_MAX);
        let partitions = 1 << wanted.ilog2();
        (chunks > 0).then_some(Geometry { chunk_blocks, chunks, partitions })
    }

    /// Blocks of a chunk.
    pub fn chunk_blocks(&self) -> u32 {
        self.chunk_blocks
    }

    /// Bytes of a chunk.
    pub fn chunk_bytes(&self) -> u64 {
        u64::from(self.chunk_blocks) * BLCKSZ as u64
    }

    /// Number of partitions.
    pub fn partitions(&self) -> usize {
        self.partitions
    }

    /// Chunks that each partition has room for.
    pub fn partition_capacity(&self) -> usize {
        self.chunks.div_ceil(self.partitions)
    }

    /// Chunks that a file of `bytes` may hold: never more than there is room for.
    pub fn chunks_of(&self, bytes: u64) -> usize {
        usize::try_from(bytes / self.chunk_bytes()).map_or(self.chunks, |n| n.min(self.chunks))
    }

    /// A partition's part of a limit of `chunks`. The parts add up to the limit.
    pub fn partition_limit(&self, partition: usize, chunks: usize) -> usize {
        let chunks = chunks.min(self.chunks);
        let share = |at: usize| {
            // Both factors are far below 2^32.
            chunks.saturating_mul(at) / self.partitions
        };
        share(partition + 1) - share(partition)
    }

    /// The partition of a chunk.
    pub fn partition(&self, key: &ChunkKey) -> usize {
        key.partition(self.partitions)
    }

    /// Which of `count` condition variables those wait on that wait for a chunk.
    pub fn waiting_room(key: &ChunkKey, count: usize) -> usize {
        usize::try_from((key.hash() >> 40) % count.max(1) as u64).unwrap_or(0)
    }

    /// Where block `block` of a partition's slot lies in the file. Slots of all partitions take turns, so that a file that
    /// is not full is short.
    pub fn offset(&self, partition: usize, slot: u32, block: u32) -> u64 {
        let chunk = u64::from(slot) * self.partitions as u64 + partition as u64;
        chunk * self.chunk_bytes() + u64::from(block) * BLCKSZ as u64
    }

    /// A block's chunk, and its number there.
    pub fn locate(&self, rel: RelTag, block: BlockNumber) -> (ChunkKey, u32) {
        (ChunkKey::new(rel, block / self.chunk_blocks), block % self.chunk_blocks)
    }

    /// The chunks that a range of blocks touches.
    pub fn spans(self, rel: RelTag, blocks: Range<BlockNumber>) -> impl Iterator<Item = ChunkSpan> {
        let mut next = blocks.start;
        std::iter::from_fn(move || {
            if next >= blocks.end {
                return None;
            }
            let (key, first) = self.locate(rel, next);
            let count = (self.chunk_blocks - first).min(blocks.end - next);
            next += count;
            Some(ChunkSpan { key, first, count })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg_types::{ForkNumber, RelFileLocator};
    use proptest::prelude::*;
    use std::collections::HashSet;

    const MIB: u64 = 1024 * 1024;

    fn rel() -> RelTag {
        RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: 16384 }.fork(ForkNumber::Main)
    }

    #[test]
    fn tiny_files_have_few_partitions() {
        assert_eq!(Geometry::new(0, 16), None);
        let one = Geometry::new(MIB, 128).expect("a chunk");
        assert_eq!((one.partitions(), one.partition_capacity()), (1, 1));
        let small = Geometry::new(MIB, 16).expect("chunks");
        assert_eq!((small.partitions(), small.partition_capacity()), (1, 8));
        let large = Geometry::new(1024 * MIB, 16).expect("chunks");
        assert_eq!((large.partitions(), large.partition_capacity()), (64, 128));
        assert_eq!(Geometry::new(MIB, 100).map(|g| g.chunk_blocks()), Some(64));
    }

    proptest! {
        #[test]
        fn limits_add_up_and_fit(mib in 1u64..5000, power in 0u32..8, limit in 0u64..6000) {
            let geometry = Geometry::new(mib * MIB, 1 << power).expect("at least a chunk");
            let chunks = geometry.chunks_of(limit * MIB);
            let parts: Vec<usize> = (0..geometry.partitions())
                .map(|at| geometry.partition_limit(at, chunks))
                .collect();
            prop_assert_eq!(parts.iter().sum::<usize>(), chunks);
            prop_assert!(parts.iter().all(|part| *part <= geometry.partition_capacity()));
            prop_assert!(chunks as u64 * geometry.chunk_bytes() <= limit.min(mib) * MIB);
        }

        #[test]
        fn places_do_not_overlap(mib in 1u64..40, power in 0u32..8) {
            let geometry = Geometry::new(mib * MIB, 1 << power).expect("at least a chunk");
            let mut seen = HashSet::new();
            for partition in 0..geometry.partitions() {
                for slot in 0..u32::try_from(geometry.partition_capacity()).expect("few") {
                    let offset = geometry.offset(partition, slot, 0);
                    prop_assert_eq!(offset % geometry.chunk_bytes(), 0);
                    prop_assert!(seen.insert(offset));
                }
            }
        }

        #[test]
        fn spans_cover_a_range_once(power in 0u32..8, start in 0u32..1000, count in 0u32..600) {
            let geometry = Geometry::new(64 * MIB, 1 << power).expect("at least a chunk");
            let mut block = start;
            for span in geometry.spans(rel(), start..start + count) {
                prop_assert_eq!(geometry.locate(rel(), block), (span.key, span.first));
                prop_assert!(span.count > 0 && span.first + span.count <= geometry.chunk_blocks());
                prop_assert_eq!(span.blocks().len(), span.count);
                block += span.count;
            }
            prop_assert_eq!(block, start + count);
        }
    }
}
