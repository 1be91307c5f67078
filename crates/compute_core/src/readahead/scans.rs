//! How far to look ahead in an index scan, whose heap blocks come in any order but are known from the index page on.

use std::ops::Range;

use pg_types::BlockNumber;

/// Scans that are watched at a time.
const SCANS: usize = 16;
/// Rows without a read from afar after which the distance is halved.
const PATIENCE: u32 = 64;

#[derive(Clone, Copy, Debug)]
struct Scan {
    /// Whatever tells scans apart; a number that comes again for another scan does no harm.
    id: usize,
    /// Index page that the scan is on.
    page: BlockNumber,
    /// Rows on that page, in scan order, that were asked for already.
    asked: u32,
    /// Rows to be ahead of the scan.
    distance: u32,
    /// Rows since the last read from afar.
    quiet: u32,
    last_use: u64,
}

/// Where a scan is on its index page. Rows are counted in scan order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The index page.
    pub page: BlockNumber,
    /// The row that was returned last.
    pub row: u32,
    /// Matching rows on the page.
    pub rows: u32,
}

/// The index scans of one process.
#[derive(Debug, Default)]
pub struct Scans {
    scans: Vec<Scan>,
    clock: u64,
}

impl Scans {
    /// Whether [`Scans::step`] needs to be called for a row that was read without the page server.
    pub fn is_idle(&self) -> bool {
        self.scans.is_empty()
    }

    /// A scan has returned a row; `far` says that reading it needed a page of the page server, in time or not. Returns
    /// the rows of the page whose blocks to ask for.
    ///
    /// A scan that stops after its first row (LIMIT 1) asks for one page in vain at most; a scan that goes on is soon
    /// `max_distance` rows ahead; one whose pages are near stops asking.
    pub fn step(&mut self, id: usize, at: Position, far: bool, max_distance: u32) -> Range<u32> {
        self.clock += 1;
        let clock = self.clock;
        let Some(scan) = self.find(id, at.page, far) else { return 0..0 };
        scan.last_use = clock;
        if scan.page != at.page {
            scan.page = at.page;
            scan.asked = 0;
        }
        if far {
            scan.quiet = 0;
            scan.distance = scan.distance.saturating_mul(2).max(1).min(max_distance);
        } else {
            scan.quiet += 1;
            if scan.quiet >= PATIENCE {
                scan.quiet = 0;
                scan.distance /= 2;
            }
        }
        if scan.distance == 0 {
            self.scans.retain(|scan| scan.id != id);
            return 0..0;
        }
        let next = at.row.saturating_add(1);
        let from = scan.asked.max(next);
        let to = next.saturating_add(scan.distance).min(at.rows);
        if from >= to {
            return 0..0;
        }
        scan.asked = to;
        from..to
    }

    fn find(&mut self, id: usize, page: BlockNumber, far: bool) -> Option<&mut Scan> {
        let at = match self.scans.iter().position(|scan| scan.id == id) {
            Some(at) => at,
            None if !far => return None,
            None => {
                let new = Scan { id, page, asked: 0, distance: 0, quiet: 0, last_use: 0 };
                if self.scans.len() < SCANS {
                    self.scans.push(new);
                    self.scans.len() - 1
                } else {
                    let oldest = self.scans.iter().enumerate().min_by_key(|(_, s)| s.last_use);
                    let at = oldest.map(|(at, _)| at)?;
                    *self.scans.get_mut(at)? = new;
                    at
                }
            }
        };
        self.scans.get_mut(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(page: BlockNumber, row: u32) -> Position {
        Position { page, row, rows: 100 }
    }

    #[test]
    fn the_distance_grows_while_pages_are_far_and_ends_when_they_are_near() {
        let mut scans = Scans::default();
        assert_eq!(scans.step(1, at(5, 0), false, 32), 0..0);
        assert!(scans.is_idle());
        assert_eq!(scans.step(1, at(5, 0), true, 32), 1..2);
        assert_eq!(scans.step(1, at(5, 1), true, 32), 2..4);
        assert_eq!(scans.step(1, at(5, 2), true, 32), 4..7);
        assert_eq!(scans.step(1, at(5, 98), true, 32), 99..100);
        assert_eq!(scans.step(1, at(6, 0), true, 32), 1..17);
        for row in 0..PATIENCE * 6 {
            scans.step(1, at(7 + row / 50, row % 50), false, 32);
        }
        assert!(scans.is_idle());
    }

    proptest! {
        /// In a scan from row to row nothing is asked for twice, behind the scan, or beyond the page.
        #[test]
        fn nothing_is_asked_for_twice(
            steps in prop::collection::vec((any::<bool>(), any::<bool>()), 1..300),
            max_distance in 1u32..64,
        ) {
            let mut scans = Scans::default();
            let (mut page, mut row, mut asked) = (0, 0, 0);
            for (next_page, far) in steps {
                if next_page || row + 1 == 100 {
                    (page, row, asked) = (page + 1, 0, 0);
                } else {
                    row += 1;
                }
                let ahead = scans.step(7, at(page, row), far, max_distance);
                if !ahead.is_empty() {
                    prop_assert!(ahead.start >= asked && ahead.start > row && ahead.end <= 100);
                    prop_assert!(ahead.end <= row + 1 + max_distance);
                    asked = ahead.end;
                }
            }
        }

        #[test]
        fn any_steps_are_survived(
            steps in prop::collection::vec((0usize..40, any::<(u32, u32, u32, bool, u32)>()), 0..200),
        ) {
            let mut scans = Scans::default();
            for (id, (page, row, rows, far, distance)) in steps {
                scans.step(id, Position { page, row, rows }, far, distance);
                prop_assert!(scans.scans.len() <= SCANS);
            }
        }
    }
}
