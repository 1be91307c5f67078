//! When to try again, when to speak up, when to give up.

use std::time::Duration;

/// First pauses between attempts to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// Longest pause between attempts to connect.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A pause is this part of the time that was waited before: whoever comes back is noticed soon, measured by how long it was
/// away.
const PART: u32 = 3;

/// Failures in a row of one operation: connections refused, lost, or closed for silence (L012, L015).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    failed: u32,
    paused: Duration,
}

/// What to do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFailure {
    /// Wait this long, then connect again.
    RetryAfter(Duration),
    /// Enough: the process must end.
    GiveUp,
}

impl Attempts {
    /// Counts a failure. Pauses grow by a third of what they come to, from 1 ms to 1 s.
    pub fn failure(&mut self, max_attempts: u32) -> AfterFailure {
        self.failed = self.failed.saturating_add(1);
        if self.failed > max_attempts {
            return AfterFailure::GiveUp;
        }
        let pause = (self.paused / PART).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        self.paused = self.paused.saturating_add(pause);
        AfterFailure::RetryAfter(pause)
    }

    /// Failures since the last success.
    pub fn failed(&self) -> u32 {
        self.failed
    }

    /// An answer came.
    pub fn success(&mut self) {
        *self = Attempts::default();
    }
}

/// Watches the wait for one answer: a line in the log after each `log_every` (L013), the end of the connection
/// after `disconnect_after` (L011). Times are since the start of the wait.
#[derive(Clone, Copy, Debug)]
pub struct Stall {
    log_every: Duration,
    disconnect_after: Duration,
    next_log: Duration,
}

/// What a wait has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet; look again after this long at the latest.
    WaitFor(Duration),
    /// Write to the log, then look again.
    Log,
    /// Drop the connection and ask anew.
    Disconnect,
}

impl Stall {
    /// A wait that begins now.
    pub fn new(log_every: Duration, disconnect_after: Duration) -> Stall {
        Stall { log_every, disconnect_after, next_log: log_every }
    }

    /// Judges a wait that has lasted for `waited`.
    pub fn judge(&mut self, waited: Duration) -> Verdict {
        if waited >= self.disconnect_after {
            return Verdict::Disconnect;
        }
        if waited >= self.next_log {
            self.next_log = waited.saturating_add(self.log_every);
            return Verdict::Log;
        }
        Verdict::WaitFor(self.next_log.min(self.disconnect_after).saturating_sub(waited))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pauses_grow_and_end() {
        let mut attempts = Attempts::default();
        let mut total = Duration::ZERO;
        for _ in 0..60 {
            match attempts.failure(60) {
                AfterFailure::RetryAfter(pause) => total += pause,
                AfterFailure::GiveUp => panic!("too early"),
            }
        }
        assert_eq!(attempts.failure(60), AfterFailure::GiveUp);
        assert_eq!(attempts.failed(), 61);
        assert!((Duration::from_secs(30)..Duration::from_secs(60)).contains(&total), "{total:?}");
        attempts.success();
        assert_eq!(attempts.failure(60), AfterFailure::RetryAfter(FIRST_PAUSE));
        assert_eq!(Attempts::default().failure(0), AfterFailure::GiveUp);
    }

    #[test]
    fn the_default_limits_log_eleven_times_before_the_end() {
        let mut stall = Stall::new(Duration::from_secs(10), Duration::from_secs(120));
        let mut now = Duration::ZERO;
        let mut lines = 0;
        loop {
            match stall.judge(now) {
                Verdict::WaitFor(time) => now += time,
                Verdict::Log => lines += 1,
                Verdict::Disconnect => break,
            }
        }
        assert_eq!((now, lines), (Duration::from_secs(120), 11));
    }

    proptest! {
        /// Who comes back is asked before its absence has become half as long again.
        #[test]
        fn an_outage_is_noticed_soon_after_its_end(away_ms in 10u64..10_000) {
            let away = Duration::from_millis(away_ms);
            let (mut attempts, mut now) = (Attempts::default(), Duration::ZERO);
            while now < away {
                match attempts.failure(60) {
                    AfterFailure::RetryAfter(pause) => now += pause,
                    AfterFailure::GiveUp => prop_assert!(false, "gave up after {now:?}"),
                }
            }
            prop_assert!(now <= away + away / 2, "asked after {now:?}");
        }

        #[test]
        fn a_wait_always_ends(log in 1u64..1000, disconnect in 1u64..1000, step in 1u64..50) {
            let mut stall = Stall::new(Duration::from_millis(log), Duration::from_millis(disconnect));
            let mut now = Duration::ZERO;
            loop {
                match stall.judge(now) {
                    Verdict::WaitFor(time) => {
                        prop_assert!(time > Duration::ZERO);
                        prop_assert!(now + time <= Duration::from_millis(disconnect));
                        now += Duration::from_millis(step);
                    }
                    Verdict::Log => prop_assert!(now >= Duration::from_millis(log)),
                    Verdict::Disconnect => break,
                }
            }
            prop_assert!(now >= Duration::from_millis(disconnect));
        }
    }
}
