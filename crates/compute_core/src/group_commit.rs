//! Whether a commit waits a moment, so that others go to the safekeepers with it.
//!
//! The way to the safekeepers and back costs processor time for each trip, whatever the number of commits on it: a few busy
//! clients on a small machine, each of whose commits makes a trip of its own, spend a sixth of it so. `commit_delay` of
//! PostgreSQL strikes the same bargain for its own fsync (`XLogFlush`). Here a commit waits only while many others are about to
//! commit as well, as with `commit_siblings`; it goes with the first that comes; and where nobody came, the next ones do not wait.

use std::time::{Duration, Instant};

use pg_types::Lsn;

/// A commit waits as long as there are more than so many other transactions for each that waits.
const OTHERS_PER_COMMIT: u32 = 4;
/// So long at most, about two trips; an event loop whose timers count milliseconds makes it up to two.
const HOLD_MAX: Duration = Duration::from_millis(1);
/// More WAL than this goes at once: it is worth a trip.
const LITTLE_BYTES: u64 = 32 * 1024;
/// After a commit that nobody joined, the next ones do not wait for so long.
const REST_MIN: Duration = Duration::from_millis(2);
/// Twice as long after each further one, up to this: where others have transactions open that they do not end, a commit in
/// hundreds waits in vain.
const REST_MAX: Duration = Duration::from_millis(256);

/// The server's transactions at this moment. A guess will do.
pub trait Transactions {
    /// How many wait for their commit to be durable.
    fn committing(&self) -> u32;
    /// Whether there are more than `count` that have changed something and do not wait for a lock; those that are committing are
    /// among them.
    fn are_more_than(&self, count: u32) -> bool;
}

/// WAL that could be sent.
#[derive(Clone, Copy, Debug)]
pub struct Unsent {
    /// Its length; may be zero.
    pub bytes: u64,
    /// Its end: what the server has flushed.
    pub flush_lsn: Lsn,
}

/// What to do with WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send what there is.
    Send(Waited),
    /// Not before this, unless there is more.
    Hold(Instant),
}

/// What WAL that is to be sent has waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// It has not waited.
    Not,
    /// Another commit came.
    Joined,
    /// Nobody came.
    InVain,
}

/// See the module's description. One for each stream of WAL.
#[derive(Debug, Default)]
pub struct GroupCommit {
    held: Option<Held>,
    /// How long the next rest is.
    rest: Duration,
    resting_until: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    until: Instant,
    flush_lsn: Lsn,
    /// Flushes that were seen; each is a commit, or more of them.
    flushes: u32,
}

impl GroupCommit {
    /// Whether this WAL waits. To be asked again when the server has flushed more, and when the time that it says has come.
    pub fn decide(
        &mut self,
        now: Instant,
        unsent: Unsent,
        transactions: &impl Transactions,
    ) -> Verdict {
        if unsent.bytes == 0 {
            self.held = None;
            return Verdict::Send(Waited::Not);
        }
        let before = self.held.take();
        if before.is_none() && self.resting_until.is_some_and(|until| now < until) {
            return Verdict::Send(Waited::Not);
        }
        let flush_lsn = unsent.flush_lsn;
        let mut held = before.unwrap_or(Held { until: now + HOLD_MAX, flush_lsn, flushes: 1 });
        if held.flush_lsn < flush_lsn {
            held = Held { flush_lsn, flushes: held.flushes.saturating_add(1), ..held };
        }
        if unsent.bytes < LITTLE_BYTES
            && now < held.until
            && others_are_many(held.flushes, transactions)
        {
            self.held = Some(held);
            return Verdict::Hold(held.until);
        }
        let waited = match (before, held.flushes) {
            (None, _) => Waited::Not,
            (Some(_), 1) => Waited::InVain,
            (Some(_), _) => Waited::Joined,
        };
        self.learn(now, waited);
        Verdict::Send(waited)
    }

    fn learn(&mut self, now: Instant, waited: Waited) {
        match waited {
            Waited::Not => {}
            Waited::Joined => {
                self.rest = REST_MIN;
                self.resting_until = None;
            }
            Waited::InVain => {
                self.rest = self.rest.max(REST_MIN);
                self.resting_until = Some(now + self.rest);
                self.rest = (self.rest * 2).min(REST_MAX);
            }
        }
    }
}

/// A commit that was flushed a moment ago may not be counted as waiting yet: there is one for each flush.
fn others_are_many(flushes: u32, transactions: &impl Transactions) -> bool {
    let committing = transactions.committing().max(flushes);
    transactions.are_more_than(committing.saturating_mul(1 + OTHERS_PER_COMMIT))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// How many there are, and how many of them are committing.
    struct Server {
        all: u32,
        committing: u32,
    }

    impl Transactions for Server {
        fn committing(&self) -> u32 {
            self.committing
        }

        fn are_more_than(&self, count: u32) -> bool {
            count < self.all
        }
    }

    fn server(all: u32, committing: u32) -> Server {
        Server { all, committing }
    }

    fn commits(bytes: u64, flush_lsn: u64) -> Unsent {
        Unsent { bytes, flush_lsn: Lsn(flush_lsn) }
    }

    const MS: Duration = Duration::from_millis(1);
    const NOW: Verdict = Verdict::Send(Waited::Not);

    #[test]
    fn who_is_alone_does_not_wait() {
        let (mut group, now) = (GroupCommit::default(), Instant::now());
        assert_eq!(group.decide(now, commits(400, 1000), &server(1, 1)), NOW);
        // Nor who has little company.
        assert_eq!(group.decide(now, commits(400, 1400), &server(5, 1)), NOW);
        assert_eq!(group.decide(now, commits(400, 1400), &server(10, 2)), NOW);
    }

    #[test]
    fn a_commit_waits_for_the_next_one_when_many_are_busy() {
        let (mut group, now) = (GroupCommit::default(), Instant::now());
        // Flushed, and not in the queue yet.
        assert_eq!(group.decide(now, commits(400, 1000), &server(8, 0)), Verdict::Hold(now + MS));
        assert_eq!(group.decide(now, commits(400, 1000), &server(8, 1)), Verdict::Hold(now + MS));
        let joined = group.decide(now, commits(800, 1400), &server(8, 1));
        assert_eq!(joined, Verdict::Send(Waited::Joined));
        // The next one waits again.
        assert_eq!(group.decide(now, commits(400, 1800), &server(8, 1)), Verdict::Hold(now + MS));
    }

    #[test]
    fn the_more_are_busy_the_more_go_together() {
        let (mut group, now) = (GroupCommit::default(), Instant::now());
        for committing in 1..6 {
            let unsent = commits(400, 1000 + u64::from(committing));
            assert_eq!(group.decide(now, unsent, &server(32, committing)), Verdict::Hold(now + MS));
        }
        let joined = group.decide(now, commits(400, 2000), &server(32, 7));
        assert_eq!(joined, Verdict::Send(Waited::Joined));
    }

    #[test]
    fn much_wal_and_no_wal_do_not_wait() {
        let (mut group, now) = (GroupCommit::default(), Instant::now());
        assert_eq!(group.decide(now, commits(LITTLE_BYTES, 1 << 20), &server(100, 1)), NOW);
        assert_eq!(group.decide(now, commits(0, 1 << 20), &server(100, 0)), NOW);
        assert_eq!(group.resting_until, None);
    }

    #[test]
    fn who_waited_in_vain_does_not_wait_again_soon() {
        let (mut group, mut now) = (GroupCommit::default(), Instant::now());
        let idle = server(20, 1);
        let mut held = 0;
        let mut lsn = 1000;
        let start = now;
        while now < start + 10_000 * MS {
            lsn += 400;
            let unsent = commits(400, lsn);
            if let Verdict::Hold(until) = group.decide(now, unsent, &idle) {
                held += 1;
                let waited = group.decide(until, unsent, &idle);
                assert_eq!(waited, Verdict::Send(Waited::InVain));
                now = until;
            }
            now += MS / 2;
        }
        assert!((30..60).contains(&held), "{held} commits of about 20,000 were held");
        // As soon as one is joined, all is forgotten.
        now += REST_MAX;
        let holds = |verdict| matches!(verdict, Verdict::Hold(_));
        assert!(holds(group.decide(now, commits(400, lsn), &idle)));
        assert!(!holds(group.decide(now, commits(800, lsn + 400), &server(8, 2))));
        assert!(holds(group.decide(now, commits(400, lsn + 800), &idle)));
    }

    proptest! {
        #[test]
        fn nothing_is_held_longer_than_the_limit(
            looks in prop::collection::vec((0_u64..700, 0_u64..40_000, 0_u32..64, 0_u32..64), 1..200),
        ) {
            let mut group = GroupCommit::default();
            let mut now = Instant::now();
            let mut held_since: Option<Instant> = None;
            let mut lsn = 0;
            for (micros, bytes, all, committing) in looks {
                now += Duration::from_micros(micros);
                lsn += bytes;
                match group.decide(now, commits(bytes, lsn), &server(all, committing)) {
                    Verdict::Hold(until) => {
                        let since = *held_since.get_or_insert(now);
                        prop_assert!(now < until && until <= since + HOLD_MAX);
                        prop_assert!(committing.saturating_mul(1 + OTHERS_PER_COMMIT) < all);
                    }
                    Verdict::Send(_) => held_since = None,
                }
            }
        }
    }
}
