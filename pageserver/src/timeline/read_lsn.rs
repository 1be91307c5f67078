//! At which position a request is answered: a pure decision.

use pg_types::Lsn;

/// Why a request's positions make no sense, or cannot be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadLsn {
    /// Position 0 is no position.
    #[error("invalid LSN 0/0 in request")]
    Zero,
    /// The promise "not modified since" lies behind the position that is asked for.
    #[error(
        "invalid request: request LSN {request_lsn} is before not_modified_since {not_modified_since}"
    )]
    BeforeNotModifiedSince {
        /// Position asked for.
        request_lsn: Lsn,
        /// Promise of the client.
        not_modified_since: Lsn,
    },
    /// History before this position does not exist (any more) on this timeline.
    #[error("tried to read at LSN {request_lsn}, but the oldest readable position is {oldest}")]
    TooOld {
        /// Position asked for.
        request_lsn: Lsn,
        /// First position that can be read.
        oldest: Lsn,
    },
}

/// What to do before the read, and where to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadAt {
    /// At once, at this position.
    Now(Lsn),
    /// After ingest has reached this position, at it.
    After(Lsn),
}

/// The rules of a request with `request_lsn` and `not_modified_since` on a timeline that has ingested up to
/// `last_record_lsn` and can be read from `oldest` on.
///
/// A page that was last changed long ago never waits: only the promise is waited for, not the request position,
/// which is [`Lsn::MAX`] for a primary.
pub fn read_at(
    request_lsn: Lsn,
    not_modified_since: Lsn,
    last_record_lsn: Lsn,
    oldest: Lsn,
) -> Result<ReadAt, BadLsn> {
    if request_lsn == Lsn::INVALID {
        return Err(BadLsn::Zero);
    }
    if request_lsn < not_modified_since {
        return Err(BadLsn::BeforeNotModifiedSince { request_lsn, not_modified_since });
    }
    if request_lsn < oldest {
        return Err(BadLsn::TooOld { request_lsn, oldest });
    }
    if not_modified_since > last_record_lsn {
        return Ok(ReadAt::After(not_modified_since));
    }
    Ok(ReadAt::Now(request_lsn.min(last_record_lsn)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn table_of_rules() {
        let (last, oldest) = (Lsn(100), Lsn(40));
        let table = [
            // request, not modified since, expected
            (Lsn(0), Lsn(0), Err(BadLsn::Zero)),
            (
                Lsn(50),
                Lsn(51),
                Err(BadLsn::BeforeNotModifiedSince {
                    request_lsn: Lsn(50),
                    not_modified_since: Lsn(51),
                }),
            ),
            (Lsn(39), Lsn(1), Err(BadLsn::TooOld { request_lsn: Lsn(39), oldest })),
            (Lsn(40), Lsn(1), Ok(ReadAt::Now(Lsn(40)))),
            (Lsn(50), Lsn(50), Ok(ReadAt::Now(Lsn(50)))),
            (Lsn(100), Lsn(100), Ok(ReadAt::Now(Lsn(100)))),
            (Lsn(101), Lsn(99), Ok(ReadAt::Now(Lsn(100)))),
            (Lsn(101), Lsn(101), Ok(ReadAt::After(Lsn(101)))),
            (Lsn::MAX, Lsn(0), Ok(ReadAt::Now(Lsn(100)))),
            (Lsn::MAX, Lsn(100), Ok(ReadAt::Now(Lsn(100)))),
            (Lsn::MAX, Lsn(101), Ok(ReadAt::After(Lsn(101)))),
            (Lsn::MAX, Lsn::MAX, Ok(ReadAt::After(Lsn::MAX))),
        ];
        for (request_lsn, since, expected) in table {
            assert_eq!(
                read_at(request_lsn, since, last, oldest),
                expected,
                "{request_lsn} {since}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_read_is_within_what_the_client_knows(request: u64, since: u64, last: u64, oldest: u64) {
            if let Ok(decision) = read_at(Lsn(request), Lsn(since), Lsn(last), Lsn(oldest)) {
                let (ReadAt::Now(lsn) | ReadAt::After(lsn)) = decision;
                prop_assert!(lsn <= Lsn(request));
                prop_assert!(lsn >= Lsn(since));
                if matches!(decision, ReadAt::Now(_)) {
                    prop_assert!(lsn <= Lsn(last));
                } else {
                    prop_assert!(lsn > Lsn(last));
                }
            }
        }
    }
}
