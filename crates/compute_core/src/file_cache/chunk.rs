//! State of the blocks of one chunk.

use std::sync::atomic::{AtomicU32, Ordering, fence};

use super::BlockSet;

/// What is known of the blocks of one chunk. Two bits for each:
///
/// | kept | pending | the block |
/// |---|---|---|
/// | no | no | is absent |
/// | yes | no | is available |
/// | yes | yes | is being written, and available after that |
/// | no | yes | is being written, and absent after that: it was invalidated meanwhile |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Chunk {
    kept: BlockSet,
    pending: BlockSet,
    /// Not 0: somebody waits for a pending block of the chunk.
    waited_for: u32,
    unused: u32,
}

impl Chunk {
    /// Blocks that can be read.
    pub fn available(&self) -> BlockSet {
        self.kept.without(self.pending)
    }

    /// Blocks that are being written.
    pub fn pending(&self) -> BlockSet {
        self.pending
    }

    /// Whether the chunk needs no slot.
    pub fn is_unused(&self) -> bool {
        self.kept.or(self.pending).is_empty()
    }

    /// Marks an absent or available block pending.
    pub(super) fn begin(&mut self, block: u32) {
        let one = BlockSet::one(block);
        self.kept = self.kept.or(one);
        self.pending = self.pending.or(one);
    }

    /// Ends what [`Chunk::begin`] began; `stored` says whether the file has the page now. Returns whether somebody waits.
    pub(super) fn finish(&mut self, block: u32, stored: bool) -> bool {
        let one = BlockSet::one(block);
        self.pending = self.pending.without(one);
        if !stored {
            self.kept = self.kept.without(one);
        }
        std::mem::take(&mut self.waited_for) != 0
    }

    /// Makes blocks absent, those that are pending as soon as they are not.
    pub(super) fn invalidate(&mut self, blocks: BlockSet) {
        self.kept = self.kept.without(blocks);
    }

    /// Notes that somebody waits.
    pub(super) fn wait_for(&mut self) {
        self.waited_for = 1;
    }
}

/// What readers look at without a lock, one for each slot. All-zero bytes are a valid value.
#[derive(Debug, Default)]
#[repr(C)]
pub struct SlotState {
    /// Changes when bytes in the slot that can be read now may change or are given up.
    version: AtomicU32,
    /// How often the slot was used lately, up to [`SlotState::USES_MAX`].
    uses: AtomicU32,
}

impl SlotState {
    /// Rounds that a chunk survives at most without being used.
    pub const USES_MAX: u32 = 3;

    /// The version, to be kept before the file is read. Taken under the partition's lock.
    pub fn version(&self) -> u32 {
        self.version.load(Ordering::Relaxed)
    }

    /// Whether what was read from the file since `version` was taken is what it was taken for.
    pub fn is_unchanged(&self, version: u32) -> bool {
        // The read of the file is above this line.
        fence(Ordering::Acquire);
        self.version.load(Ordering::Relaxed) == version
    }

    /// Recent uses.
    pub fn uses(&self) -> u32 {
        self.uses.load(Ordering::Relaxed)
    }

    /// The slot's bytes may change from now on. Called under the lock.
    pub(super) fn change(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// A read found what it wanted.
    pub(super) fn use_it(&self) {
        let uses = self.uses.load(Ordering::Relaxed);
        if uses < SlotState::USES_MAX {
            // Two that do this at a time may count as one.
            self.uses.store(uses + 1, Ordering::Relaxed);
        }
    }

    /// Takes one use back; `false` when there was none.
    pub(super) fn age(&self) -> bool {
        let uses = self.uses.load(Ordering::Relaxed);
        self.uses.store(uses.saturating_sub(1), Ordering::Relaxed);
        uses > 0
    }

    pub(super) fn reset_uses(&self) {
        self.uses.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_becomes_available_when_its_writer_is_done() {
        let mut chunk = Chunk::default();
        chunk.begin(3);
        assert!(chunk.available().is_empty() && !chunk.is_unused());
        assert!(!chunk.finish(3, true));
        assert_eq!(chunk.available(), BlockSet::one(3));
    }

    #[test]
    fn a_failed_overwrite_leaves_nothing() {
        let mut chunk = Chunk::default();
        chunk.begin(3);
        chunk.finish(3, true);
        chunk.begin(3);
        chunk.wait_for();
        assert!(chunk.finish(3, false), "somebody waits");
        assert!(chunk.is_unused());
    }

    #[test]
    fn what_is_invalidated_while_pending_becomes_absent() {
        let mut chunk = Chunk::default();
        chunk.begin(3);
        chunk.begin(4);
        chunk.invalidate(BlockSet::one(3));
        assert_eq!(chunk.pending().len(), 2);
        chunk.finish(3, true);
        chunk.finish(4, true);
        assert_eq!(chunk.available(), BlockSet::one(4));
    }
}
