//! What a campaign was, and what it found.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::Result;

use super::schedule::Kind;

/// A campaign that has ended.
#[derive(Debug)]
pub struct Report {
    /// Seed of its schedule.
    pub seed: u64,
    /// Safekeepers of its system.
    pub safekeepers: u16,
    /// How long it ran.
    pub took: Duration,
    /// Faults of each kind.
    pub faults: BTreeMap<Kind, u64>,
    /// Acknowledged commits, of all clients.
    pub commits: u64,
    /// The longest time without one.
    pub longest_stall: Duration,
    /// Errors that clients got from the server, by SQLSTATE.
    pub errors: BTreeMap<String, u64>,
    /// Packets that disappeared; `None` when nothing could be cut off.
    pub packets: Option<u64>,
    /// What was checked, and what was wrong.
    pub checks: Vec<(&'static str, Result<String, String>)>,
}

impl Report {
    pub(super) fn new(seed: u64, safekeepers: u16) -> Report {
        Report {
            seed,
            safekeepers,
            took: Duration::ZERO,
            faults: BTreeMap::new(),
            commits: 0,
            longest_stall: Duration::ZERO,
            errors: BTreeMap::new(),
            packets: None,
            checks: Vec::new(),
        }
    }

    /// Notes a check; says whether it passed.
    pub(super) fn check(&mut self, name: &'static str, result: Result<String>) -> bool {
        let passed = result.is_ok();
        self.checks.push((name, result.map_err(|error| format!("{error:#}"))));
        passed
    }

    /// Names of the checks that failed.
    pub fn failed(&self) -> Vec<&'static str> {
        self.checks.iter().filter(|(_, result)| result.is_err()).map(|(name, _)| *name).collect()
    }

    /// Number of checks that passed.
    pub fn passed(&self) -> usize {
        self.checks.len() - self.failed().len()
    }

    /// Number of faults.
    pub fn faults_total(&self) -> u64 {
        self.faults.values().sum()
    }
}

/// Figures, then a line for each check; `N passed, N failed` is the caller's.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seed, safekeepers, took) = (self.seed, self.safekeepers, self.took.as_secs_f64());
        writeln!(f, "seed {seed}, {safekeepers} safekeepers, {took:.0} s")?;
        writeln!(f, "{} faults:", self.faults_total())?;
        for (kind, count) in &self.faults {
            writeln!(f, "  {count:5}  {kind}")?;
        }
        let stall = self.longest_stall.as_secs_f64();
        writeln!(f, "{} acknowledged commits, longest stall {stall:.1} s", self.commits)?;
        if let Some(packets) = self.packets {
            writeln!(f, "{packets} packets disappeared")?;
        }
        if !self.errors.is_empty() {
            let list: Vec<String> =
                self.errors.iter().map(|(code, count)| format!("{code} {count} times")).collect();
            writeln!(f, "errors that clients were sent: {}", list.join(", "))?;
        }
        for (name, result) in &self.checks {
            match result {
                Ok(note) if note.is_empty() => writeln!(f, "ok      {name}")?,
                Ok(note) => writeln!(f, "ok      {name}: {note}")?,
                Err(reason) => writeln!(f, "FAILED  {name}: {reason}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::schedule::{Outage, Victim};
    use super::*;

    #[test]
    fn says_what_happened_and_what_was_wrong() {
        let mut report = Report::new(7, 3);
        *report.faults.entry(Kind::Kill(Victim::PageServer)).or_default() += 2;
        *report.faults.entry(Kind::All(Outage::Cut)).or_default() += 1;
        assert!(report.check("sums are right", Ok("9 transfers".to_owned())));
        assert!(!report.check("one history", Err(anyhow::anyhow!("they part"))));
        assert_eq!((report.passed(), report.failed()), (1, vec!["one history"]));
        let text = report.to_string();
        for part in [
            "3 faults",
            "2  page server killed",
            "ok      sums are right: 9 transfers",
            "FAILED  one history: they part",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
