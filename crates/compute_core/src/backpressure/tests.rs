use proptest::prelude::*;

use super::*;

const MIB: u64 = 1024 * 1024;
const LIMITS: Limits = Limits { write: 1000, flush: 10_000, apply: 0 };

fn feedback(received: u64, durable: u64) -> Feedback {
    Feedback {
        last_received_lsn: Lsn(received),
        disk_consistent_lsn: Lsn(durable),
        ..Feedback::default()
    }
}

fn pace_at(lag: u64, limit: u64) -> Pace {
    let limits = Limits { write: limit, ..Limits::default() };
    Pace::at(Lsn(1 << 50), &feedback((1 << 50) - lag, 0), &limits)
}

#[test]
fn free_up_to_half_and_a_mebibyte_a_second_at_the_limit() {
    assert_eq!(Pace::at(Lsn(2000), &feedback(1500, 1), &LIMITS), Pace::FREE);
    let at_limit = Pace::at(Lsn(2000), &feedback(1000, 1), &LIMITS);
    assert!((at_limit.seconds_per_mebibyte() - 1.0).abs() < 1e-9);
    assert_eq!(Pace::at(Lsn(20_000), &feedback(20_000, 10_000), &LIMITS), at_limit);
    assert_eq!(Pace::at(Lsn(20_000), &feedback(0, 0), &LIMITS), Pace::FREE, "nothing is known");
    assert_eq!(Pace::at(Lsn(20_000), &feedback(1, 1), &Limits::default()), Pace::FREE);
}

#[test]
fn a_debt_is_paid_in_slices_and_forgiven_when_storage_has_caught_up() {
    let pace = pace_at(MIB, MIB);
    let mut debt = Debt::none();
    debt.count(100, pace);
    assert_eq!(debt.pause(pace), None, "too little for a pause of its own");
    debt.count(100 + MIB / 8, pace);
    let mut slices = 0;
    while let Some(pause) = debt.pause(pace) {
        assert!(pause <= SLICE);
        debt.paused(pause, pace);
        slices += 1;
    }
    assert!((12..=14).contains(&slices), "{slices} slices of 10 ms for an eighth of a second");
    debt.count(MIB, pace);
    debt.count(MIB, Pace::FREE);
    assert_eq!(debt.pause(pace), None);
}

/// Writers and a storage that takes `drain` bytes a second, in steps of a millisecond; storage is heard of every 20 ms.
struct World {
    written: u64,
    drained: f64,
    heard: u64,
    limit: u64,
    drain: f64,
}

/// A process that writes `chunk` bytes whenever it is not pausing, at most `rate` bytes a second.
#[derive(Clone)]
struct Writer {
    chunk: u64,
    written: u64,
    next_ms: f64,
    rate: f64,
    debt: Debt,
    last_wrote_ms: f64,
    longest_gap_ms: f64,
}

impl Writer {
    fn new(chunk: u64, rate: f64) -> Writer {
        let (written, next_ms, last_wrote_ms, longest_gap_ms) = (0, 0.0, 0.0, 0.0);
        let debt = Debt::none();
        Writer { chunk, written, next_ms, rate, debt, last_wrote_ms, longest_gap_ms }
    }

    fn run_until(&mut self, now_ms: f64, world: &mut World) {
        while self.next_ms <= now_ms {
            let pace = pace_at(world.written - world.heard, world.limit);
            if let Some(pause) = self.debt.pause(pace) {
                self.debt.paused(pause, pace);
                self.next_ms += pause.as_secs_f64() * 1e3;
                continue;
            }
            self.written += self.chunk;
            world.written += self.chunk;
            self.debt.count(self.written, pace);
            self.longest_gap_ms = self.longest_gap_ms.max(self.next_ms - self.last_wrote_ms);
            self.last_wrote_ms = self.next_ms;
            self.next_ms += self.chunk as f64 / self.rate * 1e3;
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes of a short run")]
fn whole(bytes: f64) -> u64 {
    bytes as u64
}

impl World {
    fn step(&mut self, ms: u32, writers: &mut [Writer]) {
        for writer in writers {
            writer.run_until(f64::from(ms), self);
        }
        self.drained = (self.drained + self.drain / 1e3).min(self.written as f64);
        if ms.is_multiple_of(20) {
            self.heard = whole(self.drained);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn more_lag_is_never_less_pressure(a in 0u64..1 << 40, b in 0u64..1 << 40, limit in 1u64..1 << 32) {
        let (less, more) = (a.min(b), a.max(b));
        prop_assert!(pace_at(less, limit) <= pace_at(more, limit));
        prop_assert!(pace_at(more, limit).seconds_per_mebibyte().is_finite());
    }

    /// Bulk loads at full speed beside a light writer (a kilobyte every ten milliseconds): the lag settles around the limit
    /// while storage is kept busy, the light writer is never without a commit for a fifth of a second, and the bulk loads
    /// are never stopped for a second.
    #[test]
    fn the_lag_settles_and_nobody_is_stopped(
        bulk_writers in 1usize..12,
        drain_mib in 5.0f64..200.0,
        limit_mib in 8u64..600,
        chunk in 10_000u64..150_000,
    ) {
        let drain = drain_mib * MIB as f64;
        let limit = limit_mib * MIB;
        let mut world = World { written: 0, drained: 0.0, heard: 0, limit, drain };
        let mut writers = vec![Writer::new(chunk, 150.0 * MIB as f64); bulk_writers];
        writers.push(Writer::new(1000, 100_000.0));
        // What 20 ms without news can add to the lag that is seen.
        let unseen = drain / 50.0;
        let settled_ms = 20_000;
        for ms in 0..settled_ms {
            world.step(ms, &mut writers);
        }
        let (drained_before, mut lag_max) = (world.drained, 0.0f64);
        for ms in settled_ms..settled_ms + 5000 {
            world.step(ms, &mut writers);
            lag_max = lag_max.max(world.written as f64 - world.drained);
        }
        let offered = bulk_writers as f64 * 150.0 * MIB as f64;
        let taken = (world.drained - drained_before) / 5.0;
        prop_assert!(taken > 0.9 * offered.min(drain), "storage idles: {taken} of {drain} bytes/s");
        prop_assert!(lag_max < 1.3 * limit as f64 + 2.0 * unseen, "lag {lag_max}, limit {limit}");
        for writer in &writers {
            let most = if writer.chunk == 1000 { 200.0 } else { 1000.0 };
            prop_assert!(writer.longest_gap_ms < most, "{} ms without a write", writer.longest_gap_ms);
        }
    }

    /// Storage that is gone: what is written beyond the limit stays little.
    #[test]
    fn without_storage_the_lag_stays_near_the_limit(writers in 1usize..20, limit_mib in 4u64..100) {
        let limit = limit_mib * MIB;
        let mut world = World { written: 1, drained: 1.0, heard: 1, limit, drain: 0.0 };
        let mut all = vec![Writer::new(50_000, 100.0 * MIB as f64); writers];
        for ms in 0..120_000 {
            world.step(ms, &mut all);
        }
        prop_assert!(world.written < 2 * limit + MIB * writers as u64, "{} bytes", world.written);
    }
}
