//! One partition: which chunks are in its slots.

use super::{BlockSet, Chunk, ChunkKey, SlotState};
use crate::fixed_map::{self, Node, Table, TableMut};

/// Chunks that an eviction looks at before it takes the oldest whether it was used or not: the lock is held meanwhile.
const EVICTION_STEPS_MAX: usize = 64;

/// Fixed part of a partition in shared memory.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct PartitionHeader {
    table: fixed_map::Header,
    limit: u32,
}

/// A partition under its lock, held shared.
#[derive(Clone, Copy)]
pub struct PartitionView<'a> {
    table: Table<'a, ChunkKey, Chunk>,
    slots: &'a [SlotState],
    limit: u32,
}

/// A partition under its lock, held exclusively.
pub struct Partition<'a> {
    table: TableMut<'a, ChunkKey, Chunk>,
    limit: &'a mut u32,
    slots: &'a [SlotState],
}

/// What a reader found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where the chunk is.
    pub slot: u32,
    /// To be compared after the read ([`SlotState::is_unchanged`]).
    pub version: u32,
    /// Wanted blocks that can be read.
    pub available: BlockSet,
    /// Wanted blocks that somebody is writing.
    pub pending: BlockSet,
}

/// Answer to somebody who wants to write a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// The block is pending now; [`Partition::finish`] must follow whatever happens.
    Go {
        /// Where to write.
        slot: u32,
        /// Pages of another chunk that had to go.
        evicted_pages: u32,
    },
    /// Somebody else is writing the block. Its finish will say that there is somebody to wake.
    Wait,
    /// The block is there, or on its way (only for fills).
    Present,
    /// There is no room, and nothing of the block either.
    NoRoom,
}

/// One step of giving up slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shrink {
    /// The limit holds.
    Done,
    /// Chunks with pending blocks are in the way.
    Blocked,
    /// This slot's space can be given back; [`Partition::end_shrink`] must follow.
    Hole {
        /// The slot.
        slot: u32,
    },
}

fn at(slot: u32) -> usize {
    slot as usize
}

/// Key of the entry that keeps a slot from being used while its space is given back. No relation has number 0.
fn hole_key(slot: u32) -> ChunkKey {
    ChunkKey { block: slot, ..ChunkKey::default() }
}

impl<'a> PartitionView<'a> {
    /// A view of initialised memory.
    pub fn new(
        header: &'a PartitionHeader,
        buckets: &'a [u32],
        nodes: &'a [Node<ChunkKey, Chunk>],
        slots: &'a [SlotState],
    ) -> Self {
        let table = Table::new(&header.table, buckets, nodes);
        PartitionView { table, slots, limit: header.limit }
    }

    /// Which of the wanted blocks of a chunk are there, counting a use if any is.
    pub fn look(&self, key: &ChunkKey, wanted: BlockSet) -> Option<Found> {
        let slot = self.table.index_of(key)?;
        let chunk = self.table.get(key)?;
        let state = self.slots.get(at(slot))?;
        let available = chunk.available().and(wanted);
        if !available.is_empty() {
            state.use_it();
        }
        let pending = chunk.pending().and(wanted);
        Some(Found { slot, version: state.version(), available, pending })
    }

    /// Whether a block is there or on its way.
    pub fn contains(&self, key: &ChunkKey, block: u32) -> bool {
        self.table
            .get(key)
            .is_some_and(|chunk| chunk.available().or(chunk.pending()).contains(block))
    }

    /// Whether a block of the chunk can be stored without another chunk having to go.
    pub fn has_room(&self, key: &ChunkKey) -> bool {
        self.table.get(key).is_some() || self.used() < at(self.limit)
    }

    /// All chunks with their recent uses, from the one that came first to the one that came last.
    pub fn chunks(&self) -> impl Iterator<Item = (ChunkKey, Chunk, u32)> + use<'a> {
        let (table, slots) = (self.table, self.slots);
        table.iter().filter(|(key, _)| key.rel_number != 0).map(move |(key, chunk)| {
            let slot = table.index_of(&key).and_then(|slot| slots.get(at(slot)));
            (key, chunk, slot.map_or(0, SlotState::uses))
        })
    }

    /// Chunks that may be in the partition.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Chunks in the partition.
    pub fn used(&self) -> usize {
        self.table.len()
    }
}

impl<'a> Partition<'a> {
    /// A view of initialised memory.
    pub fn new(
        header: &'a mut PartitionHeader,
        buckets: &'a mut [u32],
        nodes: &'a mut [Node<ChunkKey, Chunk>],
        slots: &'a [SlotState],
    ) -> Self {
        let table = TableMut::new(&mut header.table, buckets, nodes);
        Partition { table, limit: &mut header.limit, slots }
    }

    /// Makes an empty partition of any bytes, in which nothing has room yet.
    pub fn init(&mut self) {
        self.table.init();
        *self.limit = 0;
    }

    fn slot_state(&self, slot: u32) -> Option<&'a SlotState> {
        self.slots.get(at(slot))
    }

    /// Wants to write a block that is newer than what may be here.
    ///
    /// Whatever the answer, no older version of the block can be read once the caller is through: it is overwritten, or
    /// absent if the caller finishes without having stored it, or there was none.
    pub fn begin_write(&mut self, key: &ChunkKey, block: u32) -> Begin {
        let Some(slot) = self.table.as_table().index_of(key) else {
            return self.begin_in_new_chunk(key, block);
        };
        let state = self.slot_state(slot);
        let Some(chunk) = self.table.get_mut(key) else { return Begin::NoRoom };
        if chunk.pending().contains(block) {
            chunk.wait_for();
            return Begin::Wait;
        }
        if chunk.available().contains(block)
            && let Some(state) = state
        {
            state.change();
        }
        chunk.begin(block);
        Begin::Go { slot, evicted_pages: 0 }
    }

    /// Wants to write a block that came from the page server, unless there is one already.
    pub fn begin_fill(&mut self, key: &ChunkKey, block: u32) -> Begin {
        if let Some(chunk) = self.table.get_mut(key)
            && chunk.pending().or(chunk.available()).contains(block)
        {
            return Begin::Present;
        }
        self.begin_write(key, block)
    }

    fn begin_in_new_chunk(&mut self, key: &ChunkKey, block: u32) -> Begin {
        let limit = at(*self.limit);
        if limit == 0 || self.table.as_table().len() > limit {
            return Begin::NoRoom;
        }
        let mut evicted_pages = 0;
        if self.table.as_table().len() == limit {
            let Some(victim) = self.victim() else { return Begin::NoRoom };
            let gone = self.table.as_table().get(&victim);
            evicted_pages = gone.map_or(0, |chunk| chunk.available().len());
            self.remove(&victim);
        }
        let mut chunk = Chunk::default();
        chunk.begin(block);
        if !self.table.try_insert(*key, chunk) {
            return Begin::NoRoom;
        }
        let Some(slot) = self.table.as_table().index_of(key) else { return Begin::NoRoom };
        if let Some(state) = self.slot_state(slot) {
            state.reset_uses();
        }
        Begin::Go { slot, evicted_pages }
    }

    /// Ends what a [`Begin::Go`] began; `stored` says whether the page is in the file now. Returns whether somebody waits
    /// and must be woken.
    #[must_use = "who waits is not woken by itself"]
    pub fn finish(&mut self, key: &ChunkKey, block: u32, stored: bool) -> bool {
        let Some(chunk) = self.table.get_mut(key) else { return false };
        let wake = chunk.finish(block, stored);
        if chunk.is_unused() {
            self.remove(key);
        }
        wake
    }

    /// Whether some of the blocks are pending. If so, somebody waits for them from now on.
    pub fn wait_for(&mut self, key: &ChunkKey, blocks: BlockSet) -> bool {
        let Some(chunk) = self.table.get_mut(key) else { return false };
        let pending = !chunk.pending().and(blocks).is_empty();
        if pending {
            chunk.wait_for();
        }
        pending
    }

    /// The blocks are not what they were: nothing of them can be read from now on, nor when their writers are done.
    pub fn invalidate(&mut self, key: &ChunkKey, blocks: BlockSet) {
        let Some(slot) = self.table.as_table().index_of(key) else { return };
        let state = self.slot_state(slot);
        let Some(chunk) = self.table.get_mut(key) else { return };
        if !chunk.available().and(blocks).is_empty()
            && let Some(state) = state
        {
            state.change();
        }
        chunk.invalidate(blocks);
        if chunk.is_unused() {
            self.remove(key);
        }
    }

    /// As [`Partition::invalidate`], for whole chunks.
    pub fn invalidate_where(&mut self, mut drop_it: impl FnMut(&ChunkKey) -> bool) {
        let keys: Vec<ChunkKey> =
            self.table.as_table().iter().map(|(key, _)| key).filter(|key| drop_it(key)).collect();
        for key in keys {
            self.invalidate(&key, BlockSet::range(0..BlockSet::CAPACITY));
        }
    }

    /// Sets how many chunks may be here. Those beyond it go with [`Partition::begin_shrink`].
    pub fn set_limit(&mut self, chunks: usize) {
        *self.limit = u32::try_from(chunks).unwrap_or(u32::MAX);
    }

    /// Takes a chunk out if there are too many.
    pub fn begin_shrink(&mut self) -> Shrink {
        if self.table.as_table().len() <= at(*self.limit) {
            return Shrink::Done;
        }
        let Some(victim) = self.victim() else { return Shrink::Blocked };
        let Some(slot) = self.table.as_table().index_of(&victim) else { return Shrink::Blocked };
        self.remove(&victim);
        let mut hole = Chunk::default();
        hole.begin(0);
        let key = hole_key(slot);
        if self.table.try_insert(key, hole) && self.table.as_table().index_of(&key) == Some(slot) {
            return Shrink::Hole { slot };
        }
        // The node that was freed last is the first to be used, so this does not happen; the space is just kept then.
        self.table.remove(&key);
        Shrink::Blocked
    }

    /// The slot's space was given back (or could not be).
    pub fn end_shrink(&mut self, slot: u32) {
        self.table.remove(&hole_key(slot));
    }

    /// A chunk to give up: the oldest of those that were not used since they were looked at last (CLOCK with
    /// [`SlotState::USES_MAX`] lives). A scan that fills chunks and does not come back thus pushes out its own.
    fn victim(&mut self) -> Option<ChunkKey> {
        let steps = self.table.as_table().len().saturating_mul(at(SlotState::USES_MAX) + 1);
        for _ in 0..steps.min(EVICTION_STEPS_MAX) {
            let oldest = self.table.as_table().oldest()?;
            let table = self.table.as_table();
            let pending = table.get(&oldest).is_some_and(|chunk| !chunk.pending().is_empty());
            let state = table.index_of(&oldest).and_then(|slot| self.slot_state(slot));
            if !pending && !state.is_some_and(SlotState::age) {
                return Some(oldest);
            }
            self.table.touch(&oldest);
        }
        let mut chunks = self.table.as_table().iter();
        chunks.find(|(_, chunk)| chunk.pending().is_empty()).map(|(key, _)| key)
    }

    fn remove(&mut self, key: &ChunkKey) {
        if let Some(state) = self.table.as_table().index_of(key).and_then(|s| self.slot_state(s)) {
            state.change();
        }
        self.table.remove(key);
    }
}

#[cfg(test)]
pub(super) mod owned {
    use super::*;

    /// A partition in memory of its own.
    pub(crate) struct Owned {
        header: PartitionHeader,
        buckets: Vec<u32>,
        nodes: Vec<Node<ChunkKey, Chunk>>,
        pub(crate) slots: Vec<SlotState>,
    }

    impl Owned {
        pub(crate) fn new(capacity: usize) -> Owned {
            let mut owned = Owned {
                header: PartitionHeader::default(),
                buckets: vec![0; fixed_map::bucket_count(capacity)],
                nodes: vec![Node::default(); capacity],
                slots: (0..capacity).map(|_| SlotState::default()).collect(),
            };
            owned.exclusive().init();
            owned.exclusive().set_limit(capacity);
            owned
        }

        pub(crate) fn exclusive(&mut self) -> Partition<'_> {
            Partition::new(&mut self.header, &mut self.buckets, &mut self.nodes, &self.slots)
        }

        pub(crate) fn shared(&self) -> PartitionView<'_> {
            PartitionView::new(&self.header, &self.buckets, &self.nodes, &self.slots)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::owned::Owned;
    use super::*;
    use pg_types::{ForkNumber, RelFileLocator};

    fn key(chunk: u32) -> ChunkKey {
        let locator = RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: 16384 };
        ChunkKey::new(locator.fork(ForkNumber::Main), chunk)
    }

    fn store(owned: &mut Owned, chunk: u32, block: u32) -> bool {
        let Begin::Go { evicted_pages, .. } = owned.exclusive().begin_write(&key(chunk), block)
        else {
            panic!("no room for chunk {chunk}");
        };
        assert!(!owned.exclusive().finish(&key(chunk), block, true));
        evicted_pages > 0
    }

    fn available(owned: &Owned, chunk: u32) -> BlockSet {
        let all = BlockSet::range(0..128);
        owned.shared().look(&key(chunk), all).map_or(BlockSet::EMPTY, |found| found.available)
    }

    #[test]
    fn a_used_chunk_outlives_a_scan() {
        let mut owned = Owned::new(4);
        store(&mut owned, 0, 0);
        for _ in 0..5 {
            assert_eq!(available(&owned, 0).len(), 1);
        }
        let evicted = (1..12).filter(|chunk| store(&mut owned, *chunk, 0)).count();
        assert_eq!(evicted, 8);
        assert_eq!(available(&owned, 0).len(), 1, "used often");
        assert_eq!(available(&owned, 1).len(), 0);
        for chunk in 12..40 {
            store(&mut owned, chunk, 0);
        }
        assert_eq!(available(&owned, 0).len(), 0, "not used any more");
    }

    #[test]
    fn a_chunk_that_is_being_written_stays() {
        let mut owned = Owned::new(2);
        assert!(matches!(owned.exclusive().begin_write(&key(0), 0), Begin::Go { .. }));
        for chunk in 1..6 {
            store(&mut owned, chunk, 0);
        }
        assert!(matches!(owned.exclusive().begin_fill(&key(9), 0), Begin::Go { .. }));
        assert_eq!(owned.exclusive().begin_fill(&key(10), 0), Begin::NoRoom);
        assert_eq!(owned.exclusive().begin_fill(&key(9), 0), Begin::Present);
        assert_eq!(owned.exclusive().begin_write(&key(9), 0), Begin::Wait);
        assert!(owned.exclusive().finish(&key(9), 0, true), "somebody waits");
        assert!(!owned.exclusive().finish(&key(0), 0, true));
        assert_eq!(available(&owned, 0).len(), 1);
    }

    #[test]
    fn shrinking_gives_slots_back_one_by_one() {
        let mut owned = Owned::new(4);
        for chunk in 0..4 {
            store(&mut owned, chunk, 0);
        }
        assert!(matches!(owned.exclusive().begin_write(&key(3), 1), Begin::Go { .. }));
        owned.exclusive().set_limit(0);
        assert_eq!(owned.exclusive().begin_write(&key(7), 0), Begin::NoRoom);
        for _ in 0..3 {
            let Shrink::Hole { slot } = owned.exclusive().begin_shrink() else {
                panic!("chunks are left");
            };
            owned.exclusive().end_shrink(slot);
        }
        assert_eq!(owned.exclusive().begin_shrink(), Shrink::Blocked);
        assert!(!owned.exclusive().finish(&key(3), 1, true));
        assert!(matches!(owned.exclusive().begin_shrink(), Shrink::Hole { slot: 3 }));
        owned.exclusive().end_shrink(3);
        assert_eq!(owned.exclusive().begin_shrink(), Shrink::Done);
        owned.exclusive().set_limit(4);
        store(&mut owned, 5, 0);
        assert_eq!(owned.shared().used(), 1);
    }

    #[test]
    fn a_version_changes_when_readable_bytes_may() {
        let mut owned = Owned::new(1);
        store(&mut owned, 0, 0);
        let found = owned.shared().look(&key(0), BlockSet::one(0)).expect("stored");
        store(&mut owned, 0, 1);
        assert!(owned.slots[0].is_unchanged(found.version), "another block was filled");
        store(&mut owned, 0, 0);
        assert!(!owned.slots[0].is_unchanged(found.version), "overwritten");
        let found = owned.shared().look(&key(0), BlockSet::one(0)).expect("stored");
        assert!(store(&mut owned, 1, 0));
        assert!(!owned.slots[0].is_unchanged(found.version), "the slot is another chunk's");
        let found = owned.shared().look(&key(1), BlockSet::one(0)).expect("stored");
        owned.exclusive().invalidate(&key(1), BlockSet::one(0));
        assert!(!owned.slots[0].is_unchanged(found.version), "invalidated");
        assert_eq!(owned.shared().used(), 0);
    }
}
