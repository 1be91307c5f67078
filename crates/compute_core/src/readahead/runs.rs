//! Recognising that a process reads a fork from block to block, and how far to read ahead of it.
//!
//! PostgreSQL 17 leaves read-ahead of sequential scans to the kernel, and VACUUM, index scans of a correlated column,
//! scans of whole indexes and long TOAST values give no advice at all. Here all of them look the same: reads of a
//! fork whose block numbers go up. That needs no patch, and unlike the look-ahead of PostgreSQL's read streams it is
//! not cut by a small `shared_buffers` or by the ring of a bulk read.

use std::ops::Range;

use pg_types::{BlockNumber, RelTag};

/// Runs that are watched at a time: a join of several tables, with an index and its table each.
const RUNS: usize = 8;
/// Blocks that may be left out without ending a run: they were in shared buffers.
const MAX_GAP: BlockNumber = 8;
/// Blocks in a row after which a run is taken for one.
const MIN_RUN: BlockNumber = 2;
/// First distance, in blocks.
const FIRST_WINDOW: BlockNumber = 8;

#[derive(Clone, Copy, Debug)]
struct Run {
    rel: RelTag,
    /// The block that would go on with the run.
    next: BlockNumber,
    /// Blocks read so far.
    length: BlockNumber,
    /// Everything below was asked for already.
    asked: BlockNumber,
    /// How far ahead of the reader to be.
    window: BlockNumber,
    last_use: u64,
}

impl Run {
    /// The reader is at `end` now and came from `first`; what to ask for.
    fn advance(
        &mut self,
        first: BlockNumber,
        end: BlockNumber,
        far: bool,
        max_window: BlockNumber,
    ) -> Range<BlockNumber> {
        self.next = end;
        if !far {
            // What is near needs no help; where the cache ends, the window grows anew.
            self.window = 0;
            self.asked = end;
            return end..end;
        }
        // The first read of a run that is long in itself is one already.
        if self.length < MIN_RUN {
            return end..end;
        }
        let grown = self.window.saturating_mul(2).max(FIRST_WINDOW).max(end - first);
        self.window = grown.min(max_window);
        let from = self.asked.max(end);
        let to = end.saturating_add(self.window);
        // Ask for a good part of the window at a time: each question costs a system call.
        if to <= from || (to - from < self.window / 4 && from > end) {
            return from..from;
        }
        self.asked = to;
        from..to
    }
}

/// The runs of one process.
#[derive(Debug, Default)]
pub struct Runs {
    runs: Vec<Run>,
    clock: u64,
}

impl Runs {
    /// The process reads `count` blocks from `first` on; `far` says that at least one of them had to come from the
    /// page server, or came from there ahead of need. Returns the blocks to ask for now: none while the process does
    /// not go from block to block, or while all that it reads is near. `max_window` bounds the distance.
    pub fn read(
        &mut self,
        rel: RelTag,
        first: BlockNumber,
        count: BlockNumber,
        far: bool,
        max_window: BlockNumber,
    ) -> Range<BlockNumber> {
        self.clock += 1;
        let end = first.saturating_add(count);
        let goes_on =
            |run: &Run| run.rel == rel && first >= run.next && first - run.next <= MAX_GAP;
        let at = self.runs.iter().position(goes_on).unwrap_or_else(|| self.start(rel, end));
        let clock = self.clock;
        let Some(run) = self.runs.get_mut(at) else { return end..end };
        run.last_use = clock;
        run.length = run.length.saturating_add(count);
        run.advance(first, end, far, max_window)
    }

    /// Begins to watch a run; returns its place.
    fn start(&mut self, rel: RelTag, next: BlockNumber) -> usize {
        let new = Run { rel, next, length: 0, asked: next, window: 0, last_use: self.clock };
        if self.runs.len() < RUNS {
            self.runs.push(new);
            return self.runs.len() - 1;
        }
        // A block read at random must not end a run: the shortest run that was not used for longest goes.
        let runs = self.runs.iter_mut().enumerate();
        let victim = runs.min_by_key(|(_, run)| (run.length >= MIN_RUN, run.last_use));
        victim.map_or(0, |(at, run)| {
            *run = new;
            at
        })
    }

    /// What was asked for from `block` on was not sent after all.
    pub fn not_asked(&mut self, rel: RelTag, block: BlockNumber) {
        for run in self.runs.iter_mut().filter(|run| run.rel == rel && run.asked > block) {
            if run.next <= block {
                run.asked = block;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg_types::{ForkNumber, RelFileLocator};
    use proptest::prelude::*;

    fn rel(number: u32) -> RelTag {
        RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: number }.fork(ForkNumber::Main)
    }

    #[test]
    fn single_blocks_in_a_row_are_a_run() {
        let mut runs = Runs::default();
        assert!(runs.read(rel(1), 10, 1, true, 64).is_empty());
        assert_eq!(runs.read(rel(1), 11, 1, true, 64), 12..20);
        assert_eq!(runs.read(rel(1), 12, 1, true, 64), 20..29);
        // 13 was in shared buffers.
        assert_eq!(runs.read(rel(1), 14, 1, true, 64), 29..47);
        assert!(runs.read(rel(1), 40, 1, true, 64).is_empty(), "too far for the same run");
    }

    #[test]
    fn a_read_of_several_blocks_is_a_run() {
        let mut runs = Runs::default();
        assert_eq!(runs.read(rel(1), 0, 16, true, 64), 16..32);
        assert_eq!(runs.read(rel(1), 16, 16, true, 64), 32..64);
        assert_eq!(runs.read(rel(1), 32, 16, true, 64), 64..112);
        assert_eq!(runs.read(rel(1), 48, 16, true, 64), 112..128);
    }

    #[test]
    fn random_reads_ask_for_nothing_and_do_not_end_a_run() {
        let mut runs = Runs::default();
        runs.read(rel(1), 0, 1, true, 64);
        runs.read(rel(1), 1, 1, true, 64);
        for block in 0..100 {
            assert!(runs.read(rel(2), block * 37 % 1009, 1, true, 64).is_empty());
        }
        assert!(!runs.read(rel(1), 2, 8, true, 64).is_empty());
    }

    #[test]
    fn what_is_near_is_not_asked_for() {
        let mut runs = Runs::default();
        for block in 0..10 {
            assert!(runs.read(rel(1), block * 16, 16, false, 64).is_empty());
        }
        assert_eq!(runs.read(rel(1), 160, 16, true, 64), 176..192);
    }

    #[test]
    fn what_was_not_sent_is_asked_for_again() {
        let mut runs = Runs::default();
        assert_eq!(runs.read(rel(1), 0, 16, true, 64), 16..32);
        runs.not_asked(rel(1), 20);
        assert_eq!(runs.read(rel(1), 16, 4, true, 64), 20..52);
    }

    proptest! {
        /// A reader from block to block: nothing is asked for twice, nothing behind the reader, nothing too far.
        #[test]
        fn nothing_is_asked_for_twice(
            steps in prop::collection::vec((0u32..3, 1u32..17), 2..60),
            max_window in 8u32..128,
        ) {
            let mut runs = Runs::default();
            let (mut at, mut asked) = (0u32, 0u32);
            for (gap, count) in steps {
                let first = at + gap;
                at = first + count;
                let ahead = runs.read(rel(1), first, count, true, max_window);
                if !ahead.is_empty() {
                    prop_assert!(ahead.start >= asked && ahead.start >= at);
                    prop_assert!(ahead.end <= at + max_window.max(16));
                    asked = ahead.end;
                }
            }
            prop_assert!(asked > at.saturating_sub(17));
        }

        #[test]
        fn any_reads_are_survived(
            reads in prop::collection::vec((0u32..4, any::<u32>(), 0u32..64, any::<bool>(), any::<u32>()), 0..100),
        ) {
            let mut runs = Runs::default();
            for (number, first, count, far, window) in reads {
                let ahead = runs.read(rel(number), first, count, far, window);
                runs.not_asked(rel(number), ahead.start);
                prop_assert!(runs.runs.len() <= RUNS);
            }
        }
    }
}
