//! Seeded schedules of a whole timeline with everything going wrong: connections that break with messages under way,
//! safekeepers that die with unsynced WAL or between two commands, walproposers killed, computes replaced while the old
//! ones live on. Each schedule ends with a calm in which the newest compute must get everything committed.
//!
//! `NEON_SIM_SCHEDULES` sets how many (2,000 by default), `NEON_SIM_SEED` the first seed. A failure prints its seed and
//! the end of its trace; `NEON_SIM_SCHEDULES=1 NEON_SIM_SEED=…` replays it.

use std::fmt::Write as _;

use crate::rng::Rng;
use crate::wal::START;
use crate::world::{Cluster, Outcome};
use wal_consensus::proposer::ProposerInput;

const STEPS: usize = 1_200;
const CALM_STEPS: usize = 4_000;
const COMPUTES_MAX: usize = 12;
const TRACE_LINES: usize = 60;

struct Schedule {
    rng: Rng,
    cluster: Cluster,
    faults: bool,
    /// For the test of the test: a crash may lose synced bytes too.
    lying_disks: bool,
}

impl Schedule {
    fn new(seed: u64, lying_disks: bool) -> Schedule {
        let mut rng = Rng::new(seed);
        let safekeepers = [1, 2, 3, 3, 3, 3, 4, 5][rng.below(8)];
        Schedule { rng, cluster: Cluster::new(safekeepers), faults: true, lying_disks }
    }

    fn run(&mut self) -> Outcome {
        for _ in 0..STEPS {
            self.act()?;
            self.cluster.checker.inspect(&self.cluster.safekeepers)?;
        }
        self.faults = false;
        for sk in 0..self.cluster.safekeepers.len() {
            if self.cluster.safekeepers[sk].acceptor.is_none() {
                self.cluster.restart_sk(sk)?;
            }
        }
        for _ in 0..CALM_STEPS {
            self.act()?;
            if self.is_done() {
                return self.cluster.checker.inspect(&self.cluster.safekeepers);
            }
        }
        Err("no progress: the newest compute's WAL is not committed".to_owned())
    }

    fn is_done(&self) -> bool {
        let newest = self.cluster.computes.last();
        newest.is_some_and(|compute| {
            compute.alive && !compute.wal.is_empty() && compute.acked_lsn == compute.end_lsn()
        })
    }

    fn act(&mut self) -> Outcome {
        match self.rng.below(100) {
            0..60 => self.deliver(),
            60..72 => self.write(),
            72..80 => self.flush(),
            80..87 => self.reconnect(),
            87..91 => self.heartbeat(),
            91..93 => self.evict(),
            93..97 => self.start_processes(),
            97..99 if self.faults => self.fault(),
            _ => self.deliver(),
        }
    }

    fn deliver(&mut self) -> Outcome {
        let ids: Vec<u64> = self.cluster.conns.keys().copied().collect();
        let Some(id) = ids.get(self.rng.below(ids.len())).copied() else { return Ok(()) };
        if self.rng.one_in(2) {
            // Now and then the process dies between two of the commands that the message leads to.
            let dies = self.faults && self.rng.one_in(60);
            let crash_after = dies.then(|| self.rng.below(4));
            let sk = self.cluster.conns[&id].sk;
            if self.cluster.deliver_to_sk(id, crash_after)? && dies {
                self.cluster.crash_sk(sk, &mut self.rng);
            }
        } else {
            self.cluster.deliver_to_proposer(id)?;
        }
        self.cluster.forget_dead_conns();
        Ok(())
    }

    fn write(&mut self) -> Outcome {
        let count = self.cluster.computes.len();
        if count == 0 {
            return Ok(());
        }
        let index = self.rng.below(count);
        let words = u8::try_from(2 + self.rng.below(12)).unwrap();
        let compute = &mut self.cluster.computes[index];
        let calm = !self.faults && !compute.wal.is_empty();
        if compute.alive && !calm {
            compute.write_record(words);
        }
        let ids: Vec<usize> = self.cluster.walproposers.keys().copied().collect();
        for id in ids {
            if let Some(input) = self.cluster.wal_held(id) {
                self.cluster.step_proposer(id, input)?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Outcome {
        let sk = self.rng.below(self.cluster.safekeepers.len());
        let node = &self.cluster.safekeepers[sk];
        if node.acceptor.is_some() && node.flush_wanted {
            self.cluster.flush(sk)?;
        }
        Ok(())
    }

    fn reconnect(&mut self) -> Outcome {
        let ids: Vec<usize> = self.cluster.walproposers.keys().copied().collect();
        let Some(id) = ids.get(self.rng.below(ids.len())).copied() else { return Ok(()) };
        let sk = self.rng.below(self.cluster.safekeepers.len());
        let up = self.cluster.safekeepers[sk].acceptor.is_some();
        if up && !self.cluster.is_connected(id, sk) {
            self.cluster.connect(id, sk)?;
        }
        Ok(())
    }

    fn heartbeat(&mut self) -> Outcome {
        let ids: Vec<usize> = self.cluster.walproposers.keys().copied().collect();
        let Some(id) = ids.get(self.rng.below(ids.len())).copied() else { return Ok(()) };
        self.cluster.step_proposer(id, ProposerInput::Heartbeat)
    }

    /// A walproposer forgets WAL that a quorum was sent.
    fn evict(&mut self) -> Outcome {
        let ids: Vec<usize> = self.cluster.walproposers.keys().copied().collect();
        let Some(id) = ids.get(self.rng.below(ids.len())).copied() else { return Ok(()) };
        let Some(walproposer) = self.cluster.walproposers.get_mut(&id) else { return Ok(()) };
        walproposer.held_from = walproposer.held_from.max(walproposer.proposer.evictable_lsn());
        match self.cluster.wal_held(id) {
            Some(input) => self.cluster.step_proposer(id, input),
            None => Ok(()),
        }
    }

    /// Starts what is missing: safekeepers, the newest compute's walproposer, a new compute.
    fn start_processes(&mut self) -> Outcome {
        for sk in 0..self.cluster.safekeepers.len() {
            if self.cluster.safekeepers[sk].acceptor.is_none() && self.rng.one_in(2) {
                self.cluster.restart_sk(sk)?;
            }
        }
        if let Some(lsn) = self.cluster.synced.take() {
            let compute = self.cluster.start_compute(lsn);
            self.cluster.start_walproposer(compute);
            return Ok(());
        }
        let served =
            |compute: usize| self.cluster.walproposers.values().any(|w| w.compute == Some(compute));
        let syncing = self.cluster.walproposers.values().any(|w| w.compute.is_none());
        let newest = self.cluster.computes.len().checked_sub(1);
        let lonely = (0..self.cluster.computes.len()).rfind(|index| {
            let wanted = self.faults || Some(*index) == newest;
            wanted && self.cluster.computes[*index].alive && !served(*index)
        });
        let replace = self.faults && self.rng.one_in(6);
        if let Some(compute) = lonely.filter(|_| !replace) {
            self.cluster.start_walproposer(compute);
        } else if !syncing
            && self.cluster.computes.len() < COMPUTES_MAX
            && (replace || newest.is_none_or(|index| !self.cluster.computes[index].alive))
        {
            self.cluster.start_sync();
        }
        Ok(())
    }

    fn fault(&mut self) -> Outcome {
        match self.rng.below(6) {
            0 => {
                let sk = self.rng.below(self.cluster.safekeepers.len());
                if self.cluster.safekeepers[sk].acceptor.is_some() {
                    self.cluster.crash_sk(sk, &mut self.rng);
                    if self.lying_disks {
                        let disk = &mut self.cluster.safekeepers[sk].disk;
                        disk.wal.truncate(disk.wal.len() / 2);
                        disk.synced = disk.wal.len();
                    }
                }
            }
            1 if self.rng.one_in(2) => {
                let ids: Vec<usize> = self.cluster.walproposers.keys().copied().collect();
                if let Some(id) = ids.get(self.rng.below(ids.len())).copied() {
                    self.cluster.trace.push(format!("p{id} is killed"));
                    self.cluster.kill(id);
                }
            }
            _ => {
                let ids: Vec<u64> = self.cluster.conns.keys().copied().collect();
                if let Some(id) = ids.get(self.rng.below(ids.len())).copied() {
                    let keep = self.rng.below(4);
                    self.cluster.break_conn(id, keep)?;
                }
            }
        }
        Ok(())
    }

    fn report(&self, seed: u64, problem: &str) -> String {
        let skip = self.cluster.trace.len().saturating_sub(TRACE_LINES);
        let mut report = format!("seed {seed}: {problem}\n");
        for line in self.cluster.trace.iter().skip(skip) {
            writeln!(report, "{line}").unwrap();
        }
        report
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

#[test]
fn nothing_acknowledged_is_lost_and_no_history_forks() {
    let schedules = number("NEON_SIM_SCHEDULES", 2_000);
    let first = number("NEON_SIM_SEED", 1);
    let (mut committed, mut computes, mut lines) = (0, 0, 0);
    for seed in first..first + schedules {
        let mut schedule = Schedule::new(seed, false);
        if let Err(problem) = schedule.run() {
            panic!("{}", schedule.report(seed, &problem));
        }
        committed += schedule.cluster.checker.committed_lsn().0 - START.0;
        computes += schedule.cluster.computes.len();
        lines += schedule.cluster.trace.len();
    }
    println!(
        "{schedules} schedules from seed {first}: {committed} bytes committed, {computes} computes, {lines} events"
    );
    assert!(committed > schedules * 50, "the schedules hardly ever commit anything");
}

/// The judge must be able to say no: with disks that lose synced bytes it does.
#[test]
fn lying_disks_are_found_out() {
    let caught = (1..=200).filter(|seed| Schedule::new(*seed, true).run().is_err()).count();
    assert!(caught > 60, "only {caught} of 200 schedules with lying disks were caught");
}

/// The same seed is the same schedule, event for event.
#[test]
fn seeds_replay() {
    let trace = |seed| {
        let mut schedule = Schedule::new(seed, false);
        schedule.run().unwrap();
        schedule.cluster.trace
    };
    assert_eq!(trace(7), trace(7));
    assert_ne!(trace(7), trace(8));
}
