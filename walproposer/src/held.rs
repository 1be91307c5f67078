//! Appends that wait, each run of them as one: for a safekeeper that may ([`crate::leisure`]), or for the answer to the one before.

use std::collections::BTreeMap;

use pg_types::Lsn;
use wal_consensus::limits::APPEND_BYTES_MAX;
use wal_consensus::message::AppendHeader;
use wal_consensus::proposer::SkId;

/// For each safekeeper the append that waits; its WAL is not here.
#[derive(Debug, Default)]
pub(crate) struct HeldAppends {
    appends: BTreeMap<SkId, AppendHeader>,
    /// What is committed once everything is that was held first.
    first_end_lsn: Lsn,
}

impl HeldAppends {
    /// Joins `header` to what waits for `sk`. `false` when nothing waits, or when both together are no append.
    pub(crate) fn extend(&mut self, sk: SkId, header: &AppendHeader) -> bool {
        let Some(held) = self.appends.get_mut(&sk) else { return false };
        let bytes = header.end_lsn.saturating_sub(held.begin_lsn);
        let fits = held.end_lsn == header.begin_lsn && bytes <= APPEND_BYTES_MAX as u64;
        if fits {
            *held = AppendHeader { begin_lsn: held.begin_lsn, ..*header };
        }
        fits
    }

    /// Lets `header` wait; nothing waited for `sk` before.
    pub(crate) fn hold(&mut self, sk: SkId, header: &AppendHeader) {
        if self.appends.is_empty() {
            self.first_end_lsn = header.end_lsn;
        }
        self.appends.insert(sk, *header);
    }

    pub(crate) fn take(&mut self, sk: SkId) -> Option<AppendHeader> {
        self.appends.remove(&sk)
    }

    pub(crate) fn take_next(&mut self) -> Option<(SkId, AppendHeader)> {
        self.appends.pop_first()
    }

    /// Position that the others should have committed meanwhile.
    pub(crate) fn first_end_lsn(&self) -> Lsn {
        self.first_end_lsn
    }
}

#[cfg(test)]
mod tests {
    use pg_types::{Generation, Term};

    use super::*;

    fn append(begin_lsn: u64, end_lsn: u64, commit_lsn: u64) -> AppendHeader {
        AppendHeader {
            generation: Generation(1),
            term: Term(1),
            begin_lsn: Lsn(begin_lsn),
            end_lsn: Lsn(end_lsn),
            commit_lsn: Lsn(commit_lsn),
            truncate_lsn: Lsn(0),
        }
    }

    #[test]
    fn runs_become_one_append_with_the_newest_positions() {
        let (mut held, sk) = (HeldAppends::default(), SkId(2));
        assert!(!held.extend(sk, &append(10, 20, 5)));
        held.hold(sk, &append(10, 20, 5));
        assert!(held.extend(sk, &append(20, 30, 10)));
        assert!(held.extend(sk, &append(30, 30, 20)), "a commit position alone");
        assert_eq!(held.first_end_lsn(), Lsn(20));
        assert_eq!(held.take(sk), Some(append(10, 30, 20)));
        assert_eq!(held.take_next(), None);
    }

    #[test]
    fn gaps_and_too_much_are_not_joined() {
        let (mut held, sk) = (HeldAppends::default(), SkId(0));
        held.hold(sk, &append(10, 20, 5));
        assert!(!held.extend(sk, &append(21, 30, 5)));
        assert!(!held.extend(sk, &append(20, 11 + APPEND_BYTES_MAX as u64, 5)));
        assert!(held.extend(sk, &append(20, 10 + APPEND_BYTES_MAX as u64, 5)));
        assert_eq!(held.take_next(), Some((sk, append(10, 10 + APPEND_BYTES_MAX as u64, 5))));
    }
}
