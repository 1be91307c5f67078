//! Which fault comes next: a function of the seed and of what there is to strike.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

/// Commits between two faults. Few of them and the second meets processes that are still busy with the first; many, and
/// there are new segments and layers.
const COMMITS_BETWEEN: Range<u64> = 20..800;

/// A process that can be struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    /// The page server.
    PageServer,
    /// A safekeeper; which one is in [`Fault::safekeeper`].
    Safekeeper,
    /// The process that carries WAL to the safekeepers.
    Walproposer,
    /// PostgreSQL itself.
    Postgres,
    /// The compute's supervisor.
    Compute,
}

/// How safekeepers are out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outage {
    /// `kill -9`.
    Killed,
    /// SIGSTOP.
    Stopped,
    /// Their packets disappear.
    Cut,
}

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `kill -9`, and started again.
    Kill(Victim),
    /// SIGSTOP for a while.
    Stop(Victim),
    /// Packets from and to it disappear for a while.
    Cut(Victim),
    /// All safekeepers of several at once.
    All(Outage),
    /// The safekeeper that was out comes back, and another one is out from now on.
    Out(Outage),
}

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub kind: Kind,
    /// Which safekeeper, where it is one.
    pub safekeeper: u16,
    /// How long, where it is for a while.
    pub lasts: Duration,
    /// Commits that must be acknowledged before it, so that it meets a working system.
    pub after_commits: u64,
}

/// What there is to strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct World {
    /// Safekeepers, numbered from 1. Of several, one is always out.
    pub safekeepers: u16,
    /// Whether the network can be cut.
    pub cuts: bool,
}

/// An endless sequence of faults. Each kind comes once before any comes again, in an order of its own each time, so that
/// a short run meets most of them too.
#[derive(Debug)]
pub struct Schedule {
    random: StdRng,
    world: World,
    deck: Vec<Kind>,
}

impl World {
    fn kinds(self) -> Vec<Kind> {
        use Victim::{Compute, PageServer, Postgres, Safekeeper, Walproposer};
        let mut kinds: Vec<Kind> =
            [PageServer, Safekeeper, Walproposer, Postgres, Compute].map(Kind::Kill).to_vec();
        kinds.extend([PageServer, Safekeeper, Walproposer].map(Kind::Stop));
        if self.safekeepers > 1 {
            kinds.extend([Outage::Killed, Outage::Stopped].map(Kind::All));
            kinds.extend([Outage::Killed, Outage::Stopped].map(Kind::Out));
        }
        if self.cuts {
            kinds.extend([PageServer, Safekeeper].map(Kind::Cut));
            if self.safekeepers > 1 {
                kinds.extend([Kind::All(Outage::Cut), Kind::Out(Outage::Cut)]);
            }
        }
        kinds
    }
}

impl Schedule {
    /// The sequence that belongs to a seed.
    pub fn new(seed: u64, world: World) -> Schedule {
        Schedule { random: StdRng::seed_from_u64(seed), world, deck: Vec::new() }
    }

    /// What is out from the beginning, for several safekeepers.
    pub fn first_outage(&mut self) -> Option<Fault> {
        (self.world.safekeepers > 1).then(|| {
            let choices = if self.world.cuts { 3 } else { 2 };
            let how = [Outage::Killed, Outage::Stopped, Outage::Cut];
            let outage = how[self.random.random_range(0..choices)];
            self.fault(Kind::Out(outage))
        })
    }

    fn fault(&mut self, kind: Kind) -> Fault {
        let longest_ms = match kind {
            // Longer than what a retransmission or a pause in a schedule covers.
            Kind::Cut(_) | Kind::All(Outage::Cut) => 6000,
            _ => 3000,
        };
        Fault {
            kind,
            safekeeper: self.random.random_range(1..=self.world.safekeepers),
            lasts: Duration::from_millis(self.random.random_range(200..longest_ms)),
            after_commits: self.random.random_range(COMMITS_BETWEEN),
        }
    }
}

impl Iterator for Schedule {
    type Item = Fault;

    fn next(&mut self) -> Option<Fault> {
        if self.deck.is_empty() {
            self.deck = self.world.kinds();
            self.deck.shuffle(&mut self.random);
        }
        let kind = self.deck.pop()?;
        Some(self.fault(kind))
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Victim::PageServer => "page server",
            Victim::Safekeeper => "safekeeper",
            Victim::Walproposer => "walproposer",
            Victim::Postgres => "PostgreSQL",
            Victim::Compute => "compute",
        })
    }
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outage::Killed => "killed",
            Outage::Stopped => "stopped",
            Outage::Cut => "cut off",
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Kill(victim) => write!(f, "{victim} killed"),
            Kind::Stop(victim) => write!(f, "{victim} stopped for a while"),
            Kind::Cut(victim) => write!(f, "{victim} cut off for a while"),
            Kind::All(outage) => write!(f, "all safekeepers {outage}"),
            Kind::Out(outage) => write!(f, "another safekeeper out: {outage}"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, seconds) = (self.safekeeper, self.lasts.as_secs_f64());
        match self.kind {
            Kind::Kill(Victim::Safekeeper) => write!(f, "safekeeper {id} killed"),
            Kind::Kill(victim) => write!(f, "{victim} killed"),
            Kind::Stop(Victim::Safekeeper) => {
                write!(f, "safekeeper {id} stopped for {seconds:.1} s")
            }
            Kind::Stop(victim) => write!(f, "{victim} stopped for {seconds:.1} s"),
            Kind::Cut(Victim::Safekeeper) => {
                write!(f, "safekeeper {id} cut off for {seconds:.1} s")
            }
            Kind::Cut(victim) => write!(f, "{victim} cut off for {seconds:.1} s"),
            Kind::All(Outage::Killed) => f.write_str("all safekeepers killed"),
            Kind::All(outage) => write!(f, "all safekeepers {outage} for {seconds:.1} s"),
            Kind::Out(outage) => write!(f, "safekeeper {id} out from now on: {outage}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const FULL: World = World { safekeepers: 3, cuts: true };

    fn take(seed: u64, world: World, count: usize) -> Vec<Fault> {
        Schedule::new(seed, world).take(count).collect()
    }

    #[test]
    fn a_seed_is_a_sequence() {
        assert_eq!(take(7, FULL, 100), take(7, FULL, 100));
        assert_ne!(take(7, FULL, 100), take(8, FULL, 100));
        let (mut one, mut two) = (Schedule::new(7, FULL), Schedule::new(7, FULL));
        assert_eq!(one.first_outage(), two.first_outage());
    }

    #[test]
    fn every_kind_comes_before_one_comes_again() {
        for world in [FULL, World { safekeepers: 1, cuts: true }] {
            let all: BTreeSet<Kind> = world.kinds().into_iter().collect();
            let faults = take(3, world, 3 * all.len());
            for round in faults.chunks(all.len()) {
                let kinds: BTreeSet<Kind> = round.iter().map(|fault| fault.kind).collect();
                assert_eq!(kinds, all);
            }
            let struck: BTreeSet<u16> = faults.iter().map(|fault| fault.safekeeper).collect();
            assert_eq!(struck, (1..=world.safekeepers).collect());
        }
    }

    #[test]
    fn only_what_is_there_is_struck() {
        let without_cuts = World { safekeepers: 3, cuts: false };
        let is_cut = |fault: &Fault| {
            matches!(fault.kind, Kind::Cut(_) | Kind::All(Outage::Cut) | Kind::Out(Outage::Cut))
        };
        assert!(!take(1, without_cuts, 100).iter().any(is_cut));
        for seed in 0..20 {
            let first = Schedule::new(seed, without_cuts).first_outage().unwrap();
            assert!(!is_cut(&first));
        }
        let alone = World { safekeepers: 1, cuts: true };
        assert_eq!(Schedule::new(1, alone).first_outage(), None);
        let of_several = |fault: &Fault| matches!(fault.kind, Kind::All(_) | Kind::Out(_));
        assert!(!take(1, alone, 100).iter().any(of_several));
        assert_eq!(alone.kinds().len(), 10, "what a run of ten faults is made for");
    }
}
