//! Term histories and the point where two of them part (invariants C4, C5 of the README).

use std::fmt;

use pg_types::{Lsn, Term};
use serde::{Deserialize, Serialize};

/// "From `lsn` on, WAL was written by the proposer of `term`."
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TermLsn {
    /// The term.
    pub term: Term,
    /// Where its WAL begins.
    pub lsn: Lsn,
}

impl From<(u64, u64)> for TermLsn {
    fn from((term, lsn): (u64, u64)) -> TermLsn {
        TermLsn { term: Term(term), lsn: Lsn(lsn) }
    }
}

/// All term switches of a log, oldest first: terms strictly rise, positions never go back. Two equal positions mean
/// that the earlier of both terms wrote nothing.
///
/// A safekeeper adopts the whole history of an elected proposer at once, before the WAL it speaks of has arrived: cut
/// it with [`TermHistory::up_to`] before drawing conclusions about what a log holds.
#[derive(Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<TermLsn>", into = "Vec<TermLsn>")]
pub struct TermHistory(Vec<TermLsn>);

/// Why a list is not a term history, or why two histories cannot be of one log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum TermHistoryError {
    /// Terms must strictly rise.
    #[error("term history entry {index}: term {term} follows term {previous}")]
    TermNotRising {
        /// Place of the offending entry.
        index: usize,
        /// Its term.
        term: Term,
        /// The term before it.
        previous: Term,
    },
    /// Positions must not go back.
    #[error("term history entry {index}: position {lsn} of term {term} is before {previous}")]
    LsnGoesBack {
        /// Place of the offending entry.
        index: usize,
        /// Its term.
        term: Term,
        /// Its position.
        lsn: Lsn,
        /// The position before it.
        previous: Lsn,
    },
    /// One term has two beginnings: two proposers believed to own it.
    #[error(
        "term {term} begins at {proposer_lsn} for the proposer and at {acceptor_lsn} for the safekeeper"
    )]
    SameTermDifferentStart {
        /// The term in question.
        term: Term,
        /// Its beginning in the proposer's history.
        proposer_lsn: Lsn,
        /// Its beginning in the safekeeper's history.
        acceptor_lsn: Lsn,
    },
    /// The proposer's history has no entry at all.
    #[error("the proposer's term history is empty")]
    Empty,
}

impl TermHistory {
    /// Checks the rules of the type's description.
    ///
    /// # Errors
    /// The first entry that breaks one.
    pub fn new(entries: Vec<TermLsn>) -> Result<TermHistory, TermHistoryError> {
        for (index, pair) in entries.windows(2).enumerate() {
            let [previous, next] = pair else { continue };
            let index = index + 1;
            if next.term <= previous.term {
                let (term, previous) = (next.term, previous.term);
                return Err(TermHistoryError::TermNotRising { index, term, previous });
            }
            if next.lsn < previous.lsn {
                let (term, lsn, previous) = (next.term, next.lsn, previous.lsn);
                return Err(TermHistoryError::LsnGoesBack { index, term, lsn, previous });
            }
        }
        Ok(TermHistory(entries))
    }

    /// The entries, oldest first.
    pub fn entries(&self) -> &[TermLsn] {
        &self.0
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where the log begins, if known: the first entry's position.
    pub fn start_lsn(&self) -> Option<Lsn> {
        self.0.first().map(|entry| entry.lsn)
    }

    /// The newest entry.
    pub fn last(&self) -> Option<TermLsn> {
        self.0.last().copied()
    }

    /// The part that a log ending at `end_lsn` really holds: entries that begin at or before it. An entry that begins
    /// exactly there stays, so that a term that wrote nothing yet already beats an older, longer log.
    #[must_use]
    pub fn up_to(&self, end_lsn: Lsn) -> TermHistory {
        TermHistory(self.0.iter().copied().take_while(|entry| entry.lsn <= end_lsn).collect())
    }

    /// Term of the last WAL in a log that ends at `end_lsn`; 0 when the history is empty.
    pub fn last_log_term(&self, end_lsn: Lsn) -> Term {
        self.up_to(end_lsn).last().map_or(Term(0), |entry| entry.term)
    }

    /// This history with one more entry.
    ///
    /// # Errors
    /// When the entry breaks the order.
    pub fn with(&self, entry: TermLsn) -> Result<TermHistory, TermHistoryError> {
        let mut entries = self.0.clone();
        entries.push(entry);
        TermHistory::new(entries)
    }
}

impl TryFrom<Vec<TermLsn>> for TermHistory {
    type Error = TermHistoryError;
    fn try_from(entries: Vec<TermLsn>) -> Result<TermHistory, TermHistoryError> {
        TermHistory::new(entries)
    }
}

impl From<TermHistory> for Vec<TermLsn> {
    fn from(history: TermHistory) -> Vec<TermLsn> {
        history.0
    }
}

impl fmt::Display for TermHistory {
    /// `[1@0/64 3@0/1F4]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (index, entry) in self.0.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(f, "{space}{}@{}", entry.term, entry.lsn)?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for TermHistory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Up to where the log of a safekeeper, which ends at `acceptor_flush_lsn`, is the log of the proposer. Everything
/// after it on the safekeeper is to be cut, and the proposer streams from there.
///
/// Both sides compute it, so it must be a function of these three values alone. Without a common term the answer is
/// the beginning of the proposer's log.
///
/// # Errors
/// When the histories contradict each other or the proposer's is empty.
pub fn common_point(
    proposer: &TermHistory,
    acceptor: &TermHistory,
    acceptor_flush_lsn: Lsn,
) -> Result<Lsn, TermHistoryError> {
    let start_lsn = proposer.start_lsn().ok_or(TermHistoryError::Empty)?;
    let held = acceptor.up_to(acceptor_flush_lsn);
    let mut common_terms = 0;
    for (ours, theirs) in proposer.entries().iter().zip(held.entries()) {
        if ours.term != theirs.term {
            break;
        }
        if ours.lsn != theirs.lsn {
            return Err(TermHistoryError::SameTermDifferentStart {
                term: ours.term,
                proposer_lsn: ours.lsn,
                acceptor_lsn: theirs.lsn,
            });
        }
        common_terms += 1;
    }
    if common_terms == 0 {
        return Ok(start_lsn);
    }
    let end_of = |history: &TermHistory, otherwise: Lsn| {
        history.entries().get(common_terms).map_or(otherwise, |next| next.lsn)
    };
    Ok(end_of(proposer, Lsn::MAX).min(end_of(&held, acceptor_flush_lsn)))
}

#[cfg(test)]
mod tests;
