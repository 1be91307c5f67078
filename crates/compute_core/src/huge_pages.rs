//! Which parts of shared memory become huge pages.
//!
//! Shared memory in pages of 4 KiB costs each process a fault for each page that it meets, and the processor a walk through
//! its page tables for most reads of a buffer; on a virtual machine both are dear. Linux turns pages that are in use into huge
//! ones on demand (`MADV_COLLAPSE`), without any that were reserved at boot. What is in use is what has been touched: a part of
//! which less than half has stays as it is, so that a compute with little to do does not take all its buffers from the machine.

use std::ops::Range;
use std::time::Duration;

/// Bytes of a huge page, for pages of 4 KiB.
pub const HUGE_PAGE: usize = 2 * 1024 * 1024;
/// Bytes of a page.
const PAGE: usize = 4096;
/// Pages in a huge page.
pub const PAGES: usize = HUGE_PAGE / PAGE;
/// A part of which so many pages have been touched becomes a huge page.
const TOUCHED_MIN: usize = PAGES / 2;

/// So many in one pass, which takes the kernel a tenth of a second: whoever makes it has to look up now and then.
const PASS_MAX: usize = 256;

const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_mins(1);

/// The mapping that an address belongs to, from the text of `/proc/self/maps` (proc_pid_maps(5)): addresses in hexadecimal
/// digits, `BEGIN-END …` in each line.
pub fn mapping_of(address: usize, maps: &str) -> Option<Range<usize>> {
    maps.lines().find_map(|line| {
        let (begin, end) = line.split(' ').next()?.split_once('-')?;
        let range = usize::from_str_radix(begin, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        range.contains(&address).then_some(range)
    })
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// A huge page now.
    Done,
    /// Not now: no memory in one piece, or somebody holds one of the pages.
    Later,
}

/// The parts of one mapping that can become huge pages, and have not.
#[derive(Debug)]
pub struct Parts {
    begins: Vec<usize>,
    pause: Duration,
}

impl Parts {
    /// All whole huge pages of a mapping that begins with the first byte of its file; none where it does not begin with a huge
    /// page: the kernel wants those of the file to be those of the address space as well.
    pub fn of(mapping: &Range<usize>) -> Parts {
        let whole =
            if mapping.start.is_multiple_of(HUGE_PAGE) { mapping.len() / HUGE_PAGE } else { 0 };
        let begins = (0..whole).map(|n| mapping.start + n * HUGE_PAGE).collect();
        Parts { begins, pause: PAUSE_MIN }
    }

    /// Whether there is nothing left.
    pub fn is_empty(&self) -> bool {
        self.begins.is_empty()
    }

    /// Tries each part of which enough is in use; how many became huge pages. `touched` counts the pages of a part that have been
    /// touched.
    pub fn pass<E>(
        &mut self,
        mut touched: impl FnMut(usize) -> Result<usize, E>,
        mut collapse: impl FnMut(usize) -> Result<Attempt, E>,
    ) -> Result<usize, E> {
        let mut left = Vec::with_capacity(self.begins.len());
        let mut done = 0;
        for begin in &self.begins {
            let may = done < PASS_MAX && TOUCHED_MIN <= touched(*begin)?;
            if may && collapse(*begin)? == Attempt::Done {
                done += 1;
            } else {
                left.push(*begin);
            }
        }
        self.begins = left;
        self.pause = if done > 0 { PAUSE_MIN } else { (self.pause * 2).min(PAUSE_MAX) };
        Ok(done)
    }

    /// How long to wait before the next [`Self::pass`].
    pub fn pause(&self) -> Duration {
        self.pause
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    const MAPS: &str = "\
55d0c0000000-55d0c0800000 r-xp 00000000 fe:00 12 /usr/bin/postgres
7fa03e800000-7fa082b4a000 rw-s 00000000 00:01 1075                       /dev/zero (deleted)
7fa082b4a000-7fa082b4b000 rw-p 00000000 00:00 0 
";

    #[test]
    fn the_mapping_of_an_address_is_found() {
        let mapping = mapping_of(0x7fa0_4000_0000, MAPS);
        assert_eq!(mapping, Some(0x7fa0_3e80_0000..0x7fa0_82b4_a000));
        assert_eq!(mapping_of(0x7fa0_82b4_b000, MAPS), None);
        assert_eq!(mapping_of(1, "no maps\n-\nx-y z\n\n"), None);
    }

    #[test]
    fn whole_huge_pages_of_an_aligned_mapping_count() {
        let at = 64 * HUGE_PAGE;
        assert_eq!(Parts::of(&(at..at + 2 * HUGE_PAGE + 5)).begins, [at, at + HUGE_PAGE]);
        assert!(Parts::of(&(at..at + HUGE_PAGE - 1)).is_empty());
        assert!(Parts::of(&(at + PAGE..at + 9 * HUGE_PAGE)).is_empty());
        assert!(Parts::of(&(usize::MAX - 5..usize::MAX)).is_empty());
    }

    #[test]
    fn what_is_little_used_or_held_is_tried_again() {
        let at = 8 * HUGE_PAGE;
        let mut parts = Parts::of(&(at..at + 3 * HUGE_PAGE));
        let touched =
            |begin| Ok::<_, Infallible>(if begin == at { TOUCHED_MIN - 1 } else { PAGES });
        let busy = at + HUGE_PAGE;
        let held = |begin| Ok(if begin == busy { Attempt::Later } else { Attempt::Done });
        assert_eq!(parts.pass(touched, held), Ok(1));
        assert_eq!((parts.pause(), &parts.begins[..]), (PAUSE_MIN, &[at, busy][..]));
        for _ in 0..9 {
            assert_eq!(parts.pass(touched, held), Ok(0));
        }
        assert_eq!(parts.pause(), PAUSE_MAX);
        assert_eq!(parts.pass(|_| Ok::<_, Infallible>(PAGES), |_| Ok(Attempt::Done)), Ok(2));
        assert!(parts.is_empty());
        assert_eq!(parts.pause(), PAUSE_MIN);
    }

    #[test]
    fn a_pass_has_an_end() {
        let mut parts = Parts::of(&(0..(PASS_MAX + 1) * HUGE_PAGE));
        let mut pass = || parts.pass(|_| Ok::<_, Infallible>(PAGES), |_| Ok(Attempt::Done));
        assert_eq!((pass(), pass(), pass()), (Ok(PASS_MAX), Ok(1), Ok(0)));
    }

    #[test]
    fn an_error_ends_a_pass() {
        let mut parts = Parts::of(&(HUGE_PAGE..3 * HUGE_PAGE));
        assert_eq!(parts.pass(|_| Ok(PAGES), |_| Err("no")), Err("no"));
    }

    proptest! {
        #[test]
        fn any_text_is_read(address in any::<usize>(), maps in prop_oneof!["[0-9a-f\\- \n]{0,60}", "(?s).{0,60}"]) {
            if let Some(range) = mapping_of(address, &maps) {
                prop_assert!(range.contains(&address));
                Parts::of(&range);
            }
        }
    }
}
