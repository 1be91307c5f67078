//! Readers, writers, fillers, evictions and changes of the limit, step by step in any order, against a model.
//!
//! A page is the number of its version; the file keeps it in two halves that are written and read one after the other.
//! Actors that hold the I/O lock of a buffer exclude each other for the block, as in Postgres; the others do not.

use std::collections::HashMap;

use proptest::prelude::*;

use super::partition::owned::Owned;
use super::{Begin, BlockSet, ChunkKey, Shrink};
use pg_types::{ForkNumber, RelFileLocator};

const CHUNKS: u32 = 3;
const BLOCKS: u32 = 2;
const CAPACITY: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Block {
    chunk: u32,
    block: u32,
}

fn key(chunk: u32) -> ChunkKey {
    let locator = RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: 16384 };
    ChunkKey::new(locator.fork(ForkNumber::Main), chunk)
}

/// What the storage manager does with the cache.
#[derive(Clone, Copy, Debug)]
enum Job {
    /// Reads a block, with the buffer's I/O lock or without.
    Read { at: Block, locked: bool },
    /// Writes a new version of a block, with the I/O lock.
    Write { at: Block, works: bool },
    /// Fills a block from the page server, with the I/O lock or without.
    Fill { at: Block, locked: bool, works: bool },
    /// Makes a new version of a block that is not here, as growing a fork does.
    Grow { at: Block },
    /// Changes the limit and gives slots back.
    Resize { limit: usize },
    /// Gives everything up, after an error.
    TurnOff,
}

/// Where in its job an actor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Start,
    /// Has the lock; noted the oldest version that may be read (readers), or has the page (fillers).
    Ready {
        version: u64,
    },
    /// Reader: half of the page was read.
    HalfRead {
        least: u64,
        slot: u32,
        slot_version: u32,
        first: u64,
    },
    /// Writer or filler: the block is pending.
    Pending {
        slot: u32,
        version: u64,
    },
    /// Half of the page is written.
    HalfWritten {
        slot: u32,
        version: u64,
    },
    /// The slot's space can be given back.
    Hole {
        slot: u32,
    },
    Done,
}

struct World {
    cache: Owned,
    file: HashMap<(u32, u32), [u64; 2]>,
    /// The last-written LSN cache, also what the page server has: newest version of each block.
    last_written: HashMap<Block, u64>,
    /// Newest version whose writer is through.
    settled: HashMap<Block, u64>,
    locks: HashMap<Block, usize>,
    clock: u64,
}

impl World {
    fn last_written(&self, at: Block) -> u64 {
        self.last_written.get(&at).copied().unwrap_or(0)
    }

    fn tick(&mut self, at: Block) -> u64 {
        self.clock += 1;
        self.last_written.insert(at, self.clock);
        self.clock
    }

    fn lock(&mut self, at: Block, actor: usize) -> bool {
        *self.locks.entry(at).or_insert(actor) == actor
    }

    fn unlock(&mut self, at: Block, actor: usize) {
        if self.locks.get(&at) == Some(&actor) {
            self.locks.remove(&at);
        }
    }

    fn settle(&mut self, at: Block, version: u64) {
        let settled = self.settled.entry(at).or_default();
        *settled = (*settled).max(version);
    }

    fn half(&self, slot: u32, at: Block, half: usize) -> u64 {
        // Whatever was never written or was given back reads as zeros.
        self.file.get(&(slot, at.block)).map_or(0, |halves| halves[half])
    }

    /// One step; `None` when the actor cannot go on now.
    fn step(&mut self, actor: usize, job: Job, step: Step) -> Option<Step> {
        match job {
            Job::Read { at, locked } => self.read(actor, at, locked, step),
            Job::Write { at, works } => self.write(actor, at, works, step),
            Job::Fill { at, locked, works } => self.fill(actor, at, locked, works, step),
            Job::Grow { at } => {
                // A fork grows when no buffer of the block is left; those without a lock may be anywhere.
                if self.locks.contains_key(&at) {
                    return None;
                }
                let version = self.tick(at);
                self.cache.exclusive().invalidate(&key(at.chunk), BlockSet::one(at.block));
                self.settle(at, version);
                Some(Step::Done)
            }
            Job::Resize { limit } => self.resize(limit, step),
            Job::TurnOff => {
                self.cache.exclusive().set_limit(0);
                self.cache.exclusive().invalidate_where(|_| true);
                Some(Step::Done)
            }
        }
    }

    fn read(&mut self, actor: usize, at: Block, locked: bool, step: Step) -> Option<Step> {
        match step {
            Step::Start => {
                let ready = !locked || self.lock(at, actor);
                let version = self.settled.get(&at).copied().unwrap_or(0);
                ready.then_some(Step::Ready { version })
            }
            Step::Ready { version: least } => {
                let wanted = BlockSet::one(at.block);
                match self.cache.shared().look(&key(at.chunk), wanted) {
                    Some(found) if !found.pending.is_empty() => {
                        assert!(self.cache.exclusive().wait_for(&key(at.chunk), wanted));
                        None
                    }
                    Some(found) if !found.available.is_empty() => {
                        let first = self.half(found.slot, at, 0);
                        let (slot, slot_version) = (found.slot, found.version);
                        Some(Step::HalfRead { least, slot, slot_version, first })
                    }
                    _ => {
                        self.unlock(at, actor);
                        Some(Step::Done)
                    }
                }
            }
            Step::HalfRead { least, slot, slot_version, first } => {
                let second = self.half(slot, at, 1);
                if !self.cache.slots[slot as usize].is_unchanged(slot_version) {
                    return Some(Step::Ready { version: least });
                }
                assert_eq!(first, second, "a torn page of {at:?} was read");
                assert!(first >= least, "{at:?}: read {first} after {least} was written");
                if locked {
                    assert_eq!(first, self.last_written(at), "{at:?} under its lock");
                }
                self.unlock(at, actor);
                Some(Step::Done)
            }
            _ => Some(Step::Done),
        }
    }

    fn write(&mut self, actor: usize, at: Block, works: bool, step: Step) -> Option<Step> {
        match step {
            Step::Start => {
                if !self.lock(at, actor) {
                    return None;
                }
                Some(Step::Ready { version: self.tick(at) })
            }
            Step::Ready { version } => {
                match self.cache.exclusive().begin_write(&key(at.chunk), at.block) {
                    Begin::Go { slot, .. } => Some(Step::Pending { slot, version }),
                    Begin::Wait => None,
                    Begin::Present => panic!("a writer was told that its page is there"),
                    Begin::NoRoom => {
                        self.settle(at, version);
                        self.unlock(at, actor);
                        Some(Step::Done)
                    }
                }
            }
            step => {
                let next = self.put(at, works, step);
                if next == Step::Done {
                    if let Step::HalfWritten { version, .. } = step {
                        self.settle(at, version);
                    }
                    self.unlock(at, actor);
                }
                Some(next)
            }
        }
    }

    fn fill(
        &mut self,
        actor: usize,
        at: Block,
        locked: bool,
        works: bool,
        step: Step,
    ) -> Option<Step> {
        match step {
            Step::Start => {
                let ready = !locked || self.lock(at, actor);
                ready.then_some(Step::Ready { version: self.last_written(at) })
            }
            Step::Ready { version } => {
                match self.cache.exclusive().begin_fill(&key(at.chunk), at.block) {
                    Begin::Go { slot, .. } => Some(Step::Pending { slot, version }),
                    Begin::Wait => panic!("a filler was told to wait"),
                    Begin::Present | Begin::NoRoom => {
                        self.unlock(at, actor);
                        Some(Step::Done)
                    }
                }
            }
            Step::Pending { version, .. } if self.last_written(at) > version => {
                let wake = self.cache.exclusive().finish(&key(at.chunk), at.block, false);
                let _ = wake;
                self.unlock(at, actor);
                Some(Step::Done)
            }
            step => {
                let next = self.put(at, works, step);
                if next == Step::Done {
                    self.unlock(at, actor);
                }
                Some(next)
            }
        }
    }

    /// Writes a page to the file, or a half only.
    fn put(&mut self, at: Block, works: bool, step: Step) -> Step {
        match step {
            Step::Pending { slot, version } => {
                self.file.entry((slot, at.block)).or_default()[0] = version;
                Step::HalfWritten { slot, version }
            }
            Step::HalfWritten { slot, version } => {
                if works {
                    self.file.entry((slot, at.block)).or_default()[1] = version;
                }
                let wake = self.cache.exclusive().finish(&key(at.chunk), at.block, works);
                let _ = wake;
                Step::Done
            }
            _ => Step::Done,
        }
    }

    fn resize(&mut self, limit: usize, step: Step) -> Option<Step> {
        match step {
            Step::Start => self.cache.exclusive().set_limit(limit),
            Step::Hole { slot } => {
                self.file.retain(|(at, _), _| *at != slot);
                self.cache.exclusive().end_shrink(slot);
            }
            _ => {}
        }
        match self.cache.exclusive().begin_shrink() {
            Shrink::Hole { slot } => Some(Step::Hole { slot }),
            // Not tried again: what is too much then is for the next change to give up.
            Shrink::Done | Shrink::Blocked => Some(Step::Done),
        }
    }
}

fn block() -> impl Strategy<Value = Block> {
    (0..CHUNKS, 0..BLOCKS).prop_map(|(chunk, block)| Block { chunk, block })
}

fn works() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.9)
}

fn job() -> impl Strategy<Value = Job> {
    prop_oneof![
        8 => (block(), any::<bool>()).prop_map(|(at, locked)| Job::Read { at, locked }),
        4 => (block(), works()).prop_map(|(at, works)| Job::Write { at, works }),
        6 => (block(), any::<bool>(), works())
            .prop_map(|(at, locked, works)| Job::Fill { at, locked, works }),
        2 => block().prop_map(|at| Job::Grow { at }),
        1 => (0..=CAPACITY).prop_map(|limit| Job::Resize { limit }),
        1 => Just(Job::TurnOff),
    ]
}

/// Runs the actors in the order given, then in turns until all are through.
fn run(scripts: &[Vec<Job>], order: &[usize]) {
    let mut world = World {
        cache: Owned::new(CAPACITY),
        file: HashMap::new(),
        last_written: HashMap::new(),
        settled: HashMap::new(),
        locks: HashMap::new(),
        clock: 0,
    };
    let mut states: Vec<(usize, Step)> = scripts.iter().map(|_| (0, Step::Start)).collect();
    // Holes are given back by one process only.
    let resizer = scripts.len();
    let mut resizing: Option<usize> = None;
    let turns = order.iter().copied().chain((0..scripts.len()).cycle().take(10_000));
    for actor in turns {
        let actor = actor % scripts.len().max(1);
        let Some((position, step)) = states.get(actor).copied() else { continue };
        let Some(job) = scripts[actor].get(position).copied() else { continue };
        if matches!(job, Job::Resize { .. }) {
            if resizing.unwrap_or(actor) != actor {
                continue;
            }
            resizing = Some(actor);
        }
        if let Some(next) = world.step(actor, job, step) {
            states[actor] =
                if next == Step::Done { (position + 1, Step::Start) } else { (position, next) };
            if next == Step::Done && matches!(job, Job::Resize { .. }) {
                resizing = None;
            }
        }
    }
    assert!(resizing.is_none_or(|actor| actor < resizer));
    for (script, (position, step)) in scripts.iter().zip(&states) {
        assert_eq!(*position, script.len(), "stuck at {step:?}");
    }
    for (key, chunk, _) in world.cache.shared().chunks() {
        assert!(chunk.pending().is_empty(), "{key:?} is pending and nobody writes it");
    }
    assert!(world.locks.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Nobody reads a page that is older than what was written before the read began, or torn, or another block's; with the
    /// I/O lock it is the newest. No block stays pending, nobody waits for ever.
    #[test]
    fn no_old_page_is_read_and_no_block_stays_pending(
        scripts in prop::collection::vec(prop::collection::vec(job(), 1..12), 2..6),
        order in prop::collection::vec(0usize..6, 0..300),
    ) {
        run(&scripts, &order);
    }
}
