//! Whether all safekeepers have the same history.

use anyhow::{Context, Result, bail, ensure};
use pg_types::Lsn;
use pg_types::xlog::{segment_number, segment_start};

use crate::cluster::wait_until;
use crate::safekeeper_api::SafekeeperApi;

/// Comparisons that are tried anew because WAL was removed meanwhile.
const ATTEMPTS: usize = 10;

/// Where a safekeeper is.
#[derive(Debug, Clone, Copy)]
struct Positions {
    /// From here on its WAL is certainly on its disk.
    available_lsn: Lsn,
    commit_lsn: Lsn,
}

/// Compares safekeepers, piece by piece as WAL grows.
#[derive(Debug)]
pub struct Histories {
    safekeepers: Vec<SafekeeperApi>,
    timeline: String,
    compared_lsn: Lsn,
}

impl Positions {
    fn of(node: &SafekeeperApi, timeline: &str) -> Result<Positions> {
        let [commit_lsn, remote_consistent_lsn, peer_horizon_lsn, local_start_lsn] = node.lsns(
            timeline,
            ["commit_lsn", "remote_consistent_lsn", "peer_horizon_lsn", "local_start_lsn"],
        )?;
        // What it may remove, whole segments only, ends below these.
        let horizon = commit_lsn.min(remote_consistent_lsn).min(peer_horizon_lsn);
        let first_segment = segment_start(segment_number(horizon));
        Ok(Positions { available_lsn: local_start_lsn.max(first_segment), commit_lsn })
    }
}

/// `None` when WAL is gone by now.
fn digest(node: &SafekeeperApi, timeline: &str, from: Lsn, until: Lsn) -> Result<Option<String>> {
    match node.get(&format!("{timeline}/digest?from_lsn={from}&until_lsn={until}"))? {
        (200, value) => Ok(Some(value["sha256"].as_str().context("an empty digest")?.to_owned())),
        (410, _) => Ok(None),
        (status, value) => bail!("safekeeper {}: {status} {value}", node.id),
    }
}

impl Histories {
    /// Of the only timeline that these safekeepers have.
    pub fn new(safekeepers: Vec<SafekeeperApi>) -> Result<Histories> {
        let first = safekeepers.first().context("no safekeepers")?;
        let timeline = first.only_timeline()?;
        Ok(Histories { safekeepers, timeline, compared_lsn: Lsn(0) })
    }

    /// Compares what came since the last time, as far as all have it, and it is committed for all; all must be up.
    pub fn compare_new(&mut self) -> Result<()> {
        self.compared_lsn = self.compare_from(self.compared_lsn)?.1;
        Ok(())
    }

    /// Waits until all safekeepers have the same, and compares all that all have on disk.
    pub fn compare_all(&self) -> Result<(Lsn, Lsn)> {
        wait_until("all safekeepers have come as far as the first", || {
            let all = self.positions()?;
            Ok(all.windows(2).all(|pair| pair[0].commit_lsn == pair[1].commit_lsn))
        })?;
        self.compare_from(Lsn(0))
    }

    /// Where each safekeeper is, for those who want to know why nothing goes on.
    pub fn describe(&self) -> String {
        let names = ["commit_lsn", "flush_lsn", "peer_horizon_lsn", "remote_consistent_lsn"];
        let describe = |node: &SafekeeperApi| match node.lsns(&self.timeline, names) {
            Ok(lsns) => {
                let pairs = names.iter().zip(lsns).map(|(name, lsn)| format!(" {name} {lsn}"));
                format!("safekeeper {}:{}", node.id, pairs.collect::<String>())
            }
            Err(error) => format!("{error:#}"),
        };
        self.safekeepers.iter().map(describe).collect::<Vec<_>>().join("; ")
    }

    fn positions(&self) -> Result<Vec<Positions>> {
        self.safekeepers.iter().map(|node| Positions::of(node, &self.timeline)).collect()
    }

    /// The range that was compared; it begins at `from` or later, where the WAL that all have begins.
    fn compare_from(&self, from: Lsn) -> Result<(Lsn, Lsn)> {
        for _ in 0..ATTEMPTS {
            let all = self.positions()?;
            let begin = all.iter().map(|at| at.available_lsn).max().unwrap_or(from).max(from);
            let until = all.iter().map(|at| at.commit_lsn).min().unwrap_or(from);
            if until <= begin {
                return Ok((begin, begin));
            }
            if let Some(same) = self.same(begin, until)? {
                ensure!(same, "{}", self.describe_fork(begin, until)?);
                return Ok((begin, until));
            }
        }
        bail!("WAL was removed faster than it could be compared")
    }

    fn same(&self, from: Lsn, until: Lsn) -> Result<Option<bool>> {
        let mut digests = Vec::new();
        for node in &self.safekeepers {
            let Some(digest) = digest(node, &self.timeline, from, until)? else { return Ok(None) };
            digests.push(digest);
        }
        Ok(Some(digests.windows(2).all(|pair| pair[0] == pair[1])))
    }

    /// Where histories part, to the byte.
    fn describe_fork(&self, from: Lsn, until: Lsn) -> Result<String> {
        let (mut same, mut different) = (from, until);
        while different.0 - same.0 > 1 {
            let middle = Lsn(same.0 + (different.0 - same.0) / 2);
            match self.same(from, middle)? {
                Some(true) => same = middle,
                Some(false) => different = middle,
                None => break,
            }
        }
        Ok(format!("the safekeepers' histories part at {same}, below the commit position"))
    }
}
