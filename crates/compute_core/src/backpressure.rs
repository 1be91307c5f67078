//! How much a writer is held back while storage is behind (L027).
//!
//! A process that writes WAL while storage lags owes a pause for each byte: the *pace*, which doubles with each further
//! tenth of the way that the lag goes. So the lag settles where the writers together write what storage takes, whatever
//! their number, without anybody being stopped; who writes little pauses little.

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

/// Longest pause without a look at cancel requests.
pub const SLICE: Duration = Duration::from_millis(10);

/// Shortest pause: less is saved up, since a system call and a change of processes cost a tenth of it.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// Half of a limit is free.
const FREE_PARTS: u64 = 2;
/// Pause for a byte when a limit is reached: a mebibyte a second for each process.
const SECONDS_PER_BYTE_AT_LIMIT: f64 = 1.0 / (1024.0 * 1024.0);
/// Doublings of the pace between the free part and the limit: writers of a gigabyte a second are slowed down as smoothly as
/// a hundred of a mebibyte.
const DOUBLINGS: f64 = 10.0;
/// The pace grows no further from here on (as a multiple of the way from the free part to the limit): half an hour for a
/// kilobyte. Numbers stay finite.
const WAY_MAX: f64 = 3.0;
/// More than this is not owed. A process that could not pause for a while, or that took over what its parallel workers
/// wrote and paid for, does not pay for long.
const DEBT_BYTES_MAX: f64 = 1024.0 * 1024.0;

/// Seconds of pause for each byte of WAL.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Pace(f64);

impl Pace {
    /// Nobody is held back.
    pub const FREE: Pace = Pace(0.0);

    /// The pace at a local flush position.
    ///
    /// An unknown position disables its limit: right after a start nothing is known and nothing is behind yet.
    pub fn at(flushed: Lsn, feedback: &Feedback, limits: &Limits) -> Pace {
        [
            (feedback.last_received_lsn, limits.write),
            (feedback.disk_consistent_lsn, limits.flush),
            (feedback.remote_consistent_lsn, limits.apply),
        ]
        .into_iter()
        .map(|(position, limit)| Pace::of_one(flushed, position, limit))
        .fold(Pace::FREE, |a, b| if a < b { b } else { a })
    }

    fn of_one(flushed: Lsn, position: Lsn, limit: u64) -> Pace {
        if limit == 0 || !position.is_valid() {
            return Pace::FREE;
        }
        let free = limit / FREE_PARTS;
        let over = flushed.saturating_sub(position).saturating_sub(free);
        let way = (over as f64 / (limit - free) as f64).min(WAY_MAX);
        // 0 where the way begins, 1 at its end.
        let growth = (DOUBLINGS * way).exp2() - 1.0;
        Pace(SECONDS_PER_BYTE_AT_LIMIT * growth / (DOUBLINGS.exp2() - 1.0))
    }

    /// Whether nobody is held back.
    pub fn is_free(self) -> bool {
        self.0 <= 0.0
    }

    /// Seconds for a mebibyte, for people.
    pub fn seconds_per_mebibyte(self) -> f64 {
        self.0 * 1024.0 * 1024.0
    }
}

/// What one process has written and not paused for yet.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Debt {
    bytes: f64,
    /// The process' own count of bytes when it was looked at last.
    counted: u64,
}

impl Debt {
    /// Owes nothing.
    pub const fn none() -> Debt {
        Debt { bytes: 0.0, counted: 0 }
    }

    /// Takes the process' count of all WAL bytes that it ever wrote. What is written at a free pace is free.
    pub fn count(&mut self, written: u64, pace: Pace) {
        let new = written.saturating_sub(self.counted);
        self.counted = written;
        self.bytes =
            if pace.is_free() { 0.0 } else { (self.bytes + new as f64).min(DEBT_BYTES_MAX) };
    }

    /// The next pause, if there is enough to pay.
    pub fn pause(&self, pace: Pace) -> Option<Duration> {
        let owed = (self.bytes * pace.0).min(SLICE.as_secs_f64());
        (owed >= PAUSE_MIN.as_secs_f64()).then(|| Duration::from_secs_f64(owed))
    }

    /// A pause pays off at the pace of the moment: storage that catches up sets free who waits for it.
    pub fn paused(&mut self, time: Duration, pace: Pace) {
        let paid = if pace.is_free() { self.bytes } else { time.as_secs_f64() / pace.0 };
        self.bytes = (self.bytes - paid).max(0.0);
    }
}

#[cfg(test)]
mod tests;
