//! What is run: `NEON_SIM_SCHEDULES` says how many schedules (10,000 by default), `NEON_SIM_SEED` from which seed on. A
//! failure prints its seed, how to replay it, and the last `NEON_SIM_TRACE` lines (80) of what happened.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use super::schedule::{STUCK, Schedule};
use super::wal::START;
use crate::mutant::{self, Mutant};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

fn report(seed: u64, problem: &str) -> String {
    let mut schedule = Schedule::new(seed);
    let again = schedule.run().expect_err("a seed that fails fails again");
    assert_eq!(again, problem);
    let lines = schedule.cluster.trace.take();
    let mut report = format!("seed {seed}: {problem}\n");
    let shown = usize::try_from(number("NEON_SIM_TRACE", 80)).unwrap();
    for line in lines.iter().skip(lines.len().saturating_sub(shown)) {
        writeln!(report, "{line}").unwrap();
    }
    writeln!(
        report,
        "replay: NEON_SIM_SEED={seed} NEON_SIM_SCHEDULES=1 cargo test --release -p wal_consensus acknowledged -- --nocapture"
    )
    .unwrap();
    report
}

#[derive(Debug, Default)]
struct Totals {
    committed: AtomicU64,
    computes: AtomicU64,
    generations: AtomicU64,
}

#[test]
fn nothing_acknowledged_is_lost_and_no_history_forks() {
    let schedules = number("NEON_SIM_SCHEDULES", 10_000);
    let first = number("NEON_SIM_SEED", 1);
    let next = AtomicU64::new(first);
    let totals = Totals::default();
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if first + schedules <= seed {
                return;
            }
            let mut schedule = Schedule::silent(seed);
            if let Err(problem) = schedule.run() {
                next.store(first + schedules, Ordering::Relaxed);
                panic!("{}", report(seed, &problem));
            }
            let cluster = &schedule.cluster;
            let committed = cluster.checker.committed_lsn().0 - START.0;
            totals.committed.fetch_add(committed, Ordering::Relaxed);
            totals.computes.fetch_add(cluster.computes.len() as u64, Ordering::Relaxed);
            let generation = u64::from(cluster.store.mconf.generation.0);
            totals.generations.fetch_add(generation, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, Into::into) {
            scope.spawn(work);
        }
    });
    println!("{schedules} schedules from seed {first}: {totals:?}");
    assert!(totals.committed.into_inner() > schedules * 50, "hardly anything was committed");
    assert!(
        schedules < 100 || totals.generations.into_inner() > schedules,
        "members hardly changed"
    );
}

/// The same seed is the same schedule, event for event.
#[test]
fn seeds_replay() {
    let trace = |seed| {
        let mut schedule = Schedule::new(seed);
        schedule.run().unwrap();
        schedule.cluster.trace.take()
    };
    for seed in 7..27 {
        assert_eq!(trace(seed), trace(seed));
    }
    assert_ne!(trace(7), trace(8));
}

/// The first of `seeds` whose schedule does something wrong, and what.
fn first_wrong(seeds: u64, lying_disks: bool) -> Option<(u64, String)> {
    (1..=seeds).find_map(|seed| {
        let mut schedule = Schedule::silent(seed);
        schedule.lying_disks = lying_disks;
        let problem = schedule.run().err()?;
        (!problem.starts_with(STUCK)).then_some((seed, problem))
    })
}

/// The judge must be able to say no: with disks that lose synced bytes it does.
#[test]
fn lying_disks_are_found_out() {
    let (seed, problem) = first_wrong(100, true).expect("no schedule of 100 was found wrong");
    println!("seed {seed}: {problem}");
}

/// Each defect of the state machines is found by fewer schedules than CI runs.
#[test]
fn every_mutant_is_caught() {
    use Mutant::*;
    let mut escaped = Vec::new();
    for mutant in [
        AcknowledgesBeforeSync,
        VotesTwice,
        ForgetsPromise,
        DoesNotCut,
        BoastsOfHistory,
        IgnoresGeneration,
        MajorityOneShort,
        OnlyOldMembersCount,
        OnlyNewMembersCount,
        LongestLogWins,
        CountsSent,
        FinishesBeforeOldMembersKnow,
        FinishesBeforeNewMembersAreLevel,
        RaisesNoTerm,
    ] {
        match mutant::with(mutant, || first_wrong(10_000, false)) {
            Some((seed, problem)) => println!("{mutant:?}: seed {seed}: {problem}"),
            None => escaped.push(mutant),
        }
    }
    assert!(escaped.is_empty(), "not caught: {escaped:?}");
}
