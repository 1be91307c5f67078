//! An estimate of how many different pages were used lately: HyperLogLog, with a window of time that is chosen when it is
//! asked for.
//!
//! A page's hash gives a register and a rank, which is the higher the rarer. Instead of the highest rank that was seen,
//! a register keeps for each rank when it was seen last. The highest rank within a window is then what a register of
//! its own for that window would have. (P. Flajolet et al., 2007; the time stamps are Y. Chabchoub's and G. Hébrail's
//! idea of 2010, in its simplest form.)

use std::sync::atomic::{AtomicU32, Ordering};

/// Registers; the estimate's standard error is 1.04 by the root of it, 3 percent.
const REGISTERS: usize = 1024;
const REGISTER_BITS: u32 = REGISTERS.ilog2();
/// Ranks that are told apart: enough for billions of pages.
const RANKS: usize = 24;
/// Words that an estimate needs.
pub const WORDS: usize = REGISTERS * RANKS;

/// An estimate in shared memory: for each register and rank the second in which it was seen last, 0 for never. Needs no
/// lock: a lost update changes an estimate by a second.
#[derive(Clone, Copy)]
pub struct WorkingSet<'a> {
    words: &'a [AtomicU32],
}

impl<'a> WorkingSet<'a> {
    /// A view of [`WORDS`] words, zeros at first.
    pub fn new(words: &'a [AtomicU32]) -> Self {
        WorkingSet { words }
    }

    /// A page with this (well-mixed) hash was used in second `now`, which is above 0.
    pub fn used(&self, hash: u64, now: u32) {
        let register = usize::try_from(hash >> (u64::BITS - REGISTER_BITS)).unwrap_or(0);
        let rank = (hash << REGISTER_BITS).leading_zeros() as usize;
        let word = self.words.get(register * RANKS + rank.min(RANKS - 1));
        if let Some(word) = word
            && word.load(Ordering::Relaxed) != now
        {
            word.store(now, Ordering::Relaxed);
        }
    }

    /// About how many different pages were used in second `since` and later.
    pub fn estimate(&self, since: u32) -> u64 {
        let since = since.max(1);
        let mut sum = 0.0;
        let mut empty = 0u32;
        for register in self.words.chunks(RANKS) {
            let seen = |word: &AtomicU32| word.load(Ordering::Relaxed) >= since;
            match register.iter().rposition(seen).and_then(|rank| i32::try_from(rank).ok()) {
                Some(rank) => sum += 2f64.powi(-rank - 1),
                None => {
                    empty += 1;
                    sum += 1.0;
                }
            }
        }
        // 2^10 is exact.
        let registers = f64::from(1u32 << REGISTER_BITS);
        let raw = 0.7213 / (1.0 + 1.079 / registers) * registers * registers / sum;
        let estimate = if raw <= 2.5 * registers && empty > 0 {
            registers * (registers / f64::from(empty)).ln()
        } else {
            raw
        };
        rounded(estimate)
    }

    /// Forgets everything.
    pub fn reset(&self) {
        for word in self.words {
            word.store(0, Ordering::Relaxed);
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate is never negative, and far below 2^64: ranks end at 24"
)]
fn rounded(estimate: f64) -> u64 {
    estimate.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixed_map::mix;
    use proptest::prelude::*;

    fn words() -> Vec<AtomicU32> {
        (0..WORDS).map(|_| AtomicU32::new(0)).collect()
    }

    fn close(estimate: u64, truth: u32) -> bool {
        // Four standard errors, and a few for small numbers.
        estimate.abs_diff(truth.into()) <= u64::from(truth) * 13 / 100 + 3
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

        #[test]
        fn counts_different_pages(seed in any::<u32>(), pages in 0u32..200_000, repeats in 1u32..3) {
            let words = words();
            let set = WorkingSet::new(&words);
            for _ in 0..repeats {
                for page in 0..pages {
                    set.used(mix(&[seed, page]), 7);
                }
            }
            let estimate = set.estimate(0);
            prop_assert!(close(estimate, pages), "{estimate} for {pages}");
            prop_assert_eq!(set.estimate(8), 0);
            set.reset();
            prop_assert_eq!(set.estimate(0), 0);
        }

        #[test]
        fn a_window_counts_what_was_used_in_it(seed in any::<u32>(), old in 0u32..50_000, new in 0u32..50_000) {
            let words = words();
            let set = WorkingSet::new(&words);
            for page in 0..old {
                set.used(mix(&[seed, page]), 100);
            }
            for page in 0..new {
                set.used(mix(&[seed, old + page]), 200);
            }
            prop_assert!(close(set.estimate(101), new));
            prop_assert!(close(set.estimate(100), old + new));
        }
    }
}
