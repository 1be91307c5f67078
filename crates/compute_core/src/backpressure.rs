//! How much a writer is held back while storage is behind (L027).

use std::time::Duration;

use pg_types::Lsn;

use crate::feedback::Feedback;

/// How far storage may be behind the local end of WAL, in bytes; 0 means any distance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// For WAL that the page server has received.
    pub write: u64,
    /// For WAL that is durable on its disk.
    pub flush: u64,
    /// For WAL that is durable in the object store.
    pub apply: u64,
}

/// What a writer has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// Go on.
    None,
    /// Pause once, then go on.
    Pause(Duration),
    /// Stop until storage has caught up; look again after [`SLICE`].
    Hold,
}

/// Longest pause without a look at cancel requests.
pub const SLICE: Duration = Duration::from_millis(10);

/// Share of a limit, in percent, below which nobody is held back.
const FREE_PERCENT: u64 = 50;

/// The pressure at a local flush position. Pauses grow from nothing at half of a limit to [`SLICE`] at the whole, so
/// that writers slow down to what storage takes instead of running into a wall.
///
/// An unknown position disables its limit: right after a start nothing is known and nothing is behind yet.
pub fn pressure(flushed: Lsn, feedback: &Feedback, limits: &Limits) -> Pressure {
    [
        (feedback.last_received_lsn, limits.write),
        (feedback.disk_consistent_lsn, limits.flush),
        (feedback.remote_consistent_lsn, limits.apply),
    ]
    .into_iter()
    .map(|(position, limit)| one(flushed, position, limit))
    .fold(Pressure::None, stronger)
}

fn one(flushed: Lsn, position: Lsn, limit: u64) -> Pressure {
    if limit == 0 || !position.is_valid() {
        return Pressure::None;
    }
    let lag = flushed.saturating_sub(position);
    let free = limit / 100 * FREE_PERCENT;
    if lag >= limit {
        Pressure::Hold
    } else if lag <= free {
        Pressure::None
    } else {
        let share = (lag - free) as f64 / (limit - free) as f64;
        Pressure::Pause(SLICE.mul_f64(share))
    }
}

fn stronger(a: Pressure, b: Pressure) -> Pressure {
    match (a, b) {
        (Pressure::Hold, _) | (_, Pressure::Hold) => Pressure::Hold,
        (Pressure::Pause(x), Pressure::Pause(y)) => Pressure::Pause(x.max(y)),
        (pause @ Pressure::Pause(_), _) | (_, pause @ Pressure::Pause(_)) => pause,
        _ => Pressure::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { write: 1000, flush: 10_000, apply: 0 };

    fn feedback(received: u64, durable: u64) -> Feedback {
        Feedback {
            last_received_lsn: Lsn(received),
            disk_consistent_lsn: Lsn(durable),
            ..Feedback::default()
        }
    }

    #[test]
    fn holds_at_the_limit_and_not_without_knowledge() {
        assert_eq!(pressure(Lsn(2000), &feedback(1600, 1), &LIMITS), Pressure::None);
        assert_eq!(pressure(Lsn(2000), &feedback(1000, 1), &LIMITS), Pressure::Hold);
        assert_eq!(pressure(Lsn(20_000), &feedback(20_000, 10_000), &LIMITS), Pressure::Hold);
        assert_eq!(pressure(Lsn(20_000), &feedback(0, 0), &LIMITS), Pressure::None);
        assert_eq!(pressure(Lsn(20_000), &feedback(1, 1), &Limits::default()), Pressure::None);
        assert_eq!(pressure(Lsn(2000), &feedback(1250, 2000), &LIMITS), Pressure::Pause(SLICE / 2));
    }

    proptest! {
        #[test]
        fn more_lag_is_never_less_pressure(a in 0u64..3000, b in 0u64..3000) {
            let rank = |lag: u64| match pressure(Lsn(10_000), &feedback(10_000 - lag, 0), &LIMITS) {
                Pressure::None => Duration::ZERO,
                Pressure::Pause(pause) => pause,
                Pressure::Hold => Duration::MAX,
            };
            let (less, more) = (a.min(b), a.max(b));
            prop_assert!(rank(less) <= rank(more));
        }
    }
}
