//! Which positions go into a request of a primary.

use pg_types::{Lsn, xlog};

/// The two positions of a request, and what must be done before it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLsns {
    /// Always [`Lsn::MAX`] on a primary: "the newest version". An exact position could fall behind the page
    /// server's garbage collection horizon while the request is under way.
    pub request_lsn: Lsn,
    /// The page did not change after this position.
    pub not_modified_since: Lsn,
}

/// Positions for a read of something last written at `last_written` or before (facts of L020, L021).
pub fn for_primary(last_written: Lsn) -> RequestLsns {
    RequestLsns { request_lsn: Lsn::MAX, not_modified_since: wait_position(last_written) }
}

/// The position to wait for when everything up to `lsn` is wanted: `GetXLogInsertRecPtr` returns positions just
/// behind a WAL page header, where no record ends, so a wait for one would last until the next record.
pub fn wait_position(lsn: Lsn) -> Lsn {
    xlog::before_page_header(lsn)
}

/// Whether local WAL must be flushed up to `since` before a request that carries it: only flushed WAL travels to
/// the page server, which would otherwise wait for something that nobody sends.
pub fn must_flush(since: Lsn, flushed: Lsn) -> bool {
    since > flushed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn steps_back_over_a_page_header() {
        assert_eq!(for_primary(Lsn(0x200_0028)).not_modified_since, Lsn(0x200_0000));
        assert_eq!(for_primary(Lsn(0x200_2018)).not_modified_since, Lsn(0x200_2000));
        assert_eq!(for_primary(Lsn(0x200_2020)).not_modified_since, Lsn(0x200_2020));
        assert_eq!(for_primary(Lsn(0x200_2020)).request_lsn, Lsn::MAX);
    }

    proptest! {
        /// Stepping back must not cross the end of a record: nothing ends inside a page header.
        #[test]
        fn never_skips_a_record_end(lsn in 0u64..1 << 48) {
            let since = for_primary(Lsn(lsn)).not_modified_since;
            prop_assert!(since <= Lsn(lsn));
            prop_assert!(since == Lsn(lsn) || xlog::normalize(since) == Lsn(lsn));
        }
    }
}
