//! Sets of blocks of one chunk.

use std::ops::Range;

/// A set of numbers below 128, as plain words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct BlockSet {
    low: u64,
    high: u64,
}

impl BlockSet {
    /// No block.
    pub const EMPTY: BlockSet = BlockSet { low: 0, high: 0 };
    /// Numbers that a set can hold.
    pub const CAPACITY: u32 = 128;

    /// The numbers of the bits that are set.
    pub(super) fn of_bits(bits: u128) -> BlockSet {
        let [a, b, c, d, e, f, g, h, rest @ ..] = bits.to_le_bytes();
        BlockSet {
            low: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            high: u64::from_le_bytes(rest),
        }
    }

    /// A bit for each number.
    pub(super) fn bits(self) -> u128 {
        u128::from(self.low) | u128::from(self.high) << 64
    }

    /// One block.
    pub fn one(block: u32) -> BlockSet {
        BlockSet::of_bits(1u128.checked_shl(block).unwrap_or(0))
    }

    /// All blocks of a range; what cannot be in a set is left out.
    pub fn range(blocks: Range<u32>) -> BlockSet {
        let below = |end: u32| 1u128.checked_shl(end).map_or(u128::MAX, |bit| bit - 1);
        BlockSet::of_bits(below(blocks.end) & !below(blocks.start.min(blocks.end)))
    }

    /// Whether a block is in the set.
    pub fn contains(self, block: u32) -> bool {
        !self.and(BlockSet::one(block)).is_empty()
    }

    /// Whether no block is in the set.
    pub fn is_empty(self) -> bool {
        self == BlockSet::EMPTY
    }

    /// Number of blocks.
    pub fn len(self) -> u32 {
        self.low.count_ones() + self.high.count_ones()
    }

    /// Blocks in both.
    #[must_use]
    pub fn and(self, other: BlockSet) -> BlockSet {
        BlockSet { low: self.low & other.low, high: self.high & other.high }
    }

    /// Blocks in either.
    #[must_use]
    pub fn or(self, other: BlockSet) -> BlockSet {
        BlockSet { low: self.low | other.low, high: self.high | other.high }
    }

    /// Blocks that are not in `other`.
    #[must_use]
    pub fn without(self, other: BlockSet) -> BlockSet {
        BlockSet { low: self.low & !other.low, high: self.high & !other.high }
    }

    /// The blocks, ascending.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        let mut bits = self.bits();
        std::iter::from_fn(move || {
            let block = bits.trailing_zeros();
            bits &= bits.checked_sub(1)?;
            Some(block)
        })
    }

    /// The longest runs of consecutive blocks, ascending.
    pub fn runs(self) -> impl Iterator<Item = Range<u32>> {
        let mut bits = self.bits();
        std::iter::from_fn(move || {
            if bits == 0 {
                return None;
            }
            let start = bits.trailing_zeros();
            let length = (!(bits >> start)).trailing_zeros().min(BlockSet::CAPACITY - start);
            let run = start..start + length;
            bits &= !BlockSet::range(run.clone()).bits();
            Some(run)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn set_of(blocks: &BTreeSet<u32>) -> BlockSet {
        blocks.iter().fold(BlockSet::EMPTY, |set, block| set.or(BlockSet::one(*block)))
    }

    proptest! {
        #[test]
        fn behaves_like_a_set(
            a in prop::collection::btree_set(0u32..128, 0..128),
            b in prop::collection::btree_set(0u32..128, 0..128),
            start in 0u32..140, end in 0u32..140,
        ) {
            let (x, y) = (set_of(&a), set_of(&b));
            prop_assert_eq!(x.iter().collect::<Vec<_>>(), a.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(x.len() as usize, a.len());
            prop_assert_eq!(x.and(y), set_of(&(&a & &b)));
            prop_assert_eq!(x.or(y), set_of(&(&a | &b)));
            prop_assert_eq!(x.without(y), set_of(&(&a - &b)));
            prop_assert_eq!(x.contains(start), a.contains(&start));
            prop_assert_eq!(BlockSet::range(start..end), set_of(&(start..end.min(128)).collect()));
            let runs: Vec<_> = x.runs().collect();
            prop_assert_eq!(runs.iter().cloned().flatten().collect::<BTreeSet<_>>(), a);
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
