//! The answer to `TIMELINE_STATUS`: one row, made and read here.

use std::collections::BTreeMap;

use pg_types::{Lsn, Term};
use wal_consensus::term_history::TermHistory;

use crate::timeline::core::CopyState;

/// How far a member of a timeline is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// End of its log.
    pub flush_lsn: Lsn,
    /// What it knows to be committed.
    pub commit_lsn: Lsn,
    /// What all members have, as it was told.
    pub truncate_lsn: Lsn,
    /// Its promise.
    pub term: Term,
    /// Term of the last WAL in its log.
    pub last_log_term: Term,
    /// Who wrote its log.
    pub term_history: TermHistory,
    /// How far page servers are, by shard, as they told it or others did.
    pub pageservers: BTreeMap<u32, Lsn>,
}

/// Why a row is no status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("TIMELINE_STATUS: column {column} is {value:?}")]
pub struct StatusError {
    column: &'static str,
    value: Option<String>,
}

impl PeerStatus {
    /// The columns, in their order.
    pub const COLUMNS: [&'static str; 7] = [
        "flush_lsn",
        "commit_lsn",
        "truncate_lsn",
        "term",
        "last_log_term",
        "term_history",
        "pageservers",
    ];

    /// Of this safekeeper.
    pub fn new(state: &CopyState, pageservers: BTreeMap<u32, Lsn>) -> PeerStatus {
        let acceptor = &state.control.acceptor_state;
        PeerStatus {
            flush_lsn: state.flush_lsn,
            commit_lsn: acceptor.commit_lsn,
            truncate_lsn: acceptor.truncate_lsn,
            term: acceptor.term,
            last_log_term: state.last_log_term,
            term_history: acceptor.term_history.clone(),
            pageservers,
        }
    }

    /// Values of the columns.
    ///
    /// # Errors
    /// Never in practice: JSON of numbers.
    pub fn row(&self) -> Result<[String; 7], serde_json::Error> {
        Ok([
            self.flush_lsn.to_string(),
            self.commit_lsn.to_string(),
            self.truncate_lsn.to_string(),
            self.term.to_string(),
            self.last_log_term.to_string(),
            serde_json::to_string(&self.term_history)?,
            serde_json::to_string(&self.pageservers)?,
        ])
    }

    /// Reads a row. Total: whatever a peer says is a status or an error.
    ///
    /// # Errors
    /// The first column that is missing or malformed.
    pub fn of_row<'a>(value: impl Fn(&str) -> Option<&'a str>) -> Result<PeerStatus, StatusError> {
        fn read<'a, T>(
            column: &'static str,
            value: &impl Fn(&str) -> Option<&'a str>,
            parse: impl FnOnce(&str) -> Option<T>,
        ) -> Result<T, StatusError> {
            let text = value(column);
            let wrong = || StatusError { column, value: text.map(str::to_owned) };
            text.and_then(parse).ok_or_else(wrong)
        }
        let lsn = |text: &str| text.parse().ok();
        let term = |text: &str| text.parse().ok().map(Term);
        Ok(PeerStatus {
            flush_lsn: read("flush_lsn", &value, lsn)?,
            commit_lsn: read("commit_lsn", &value, lsn)?,
            truncate_lsn: read("truncate_lsn", &value, lsn)?,
            term: read("term", &value, term)?,
            last_log_term: read("last_log_term", &value, term)?,
            term_history: read("term_history", &value, |text| serde_json::from_str(text).ok())?,
            pageservers: read("pageservers", &value, |text| serde_json::from_str(text).ok())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> PeerStatus {
        PeerStatus {
            flush_lsn: Lsn(0x2_0000_0010),
            commit_lsn: Lsn(7),
            truncate_lsn: Lsn(6),
            term: Term(9),
            last_log_term: Term(8),
            term_history: TermHistory::new(vec![(1, 5).into(), (8, 6).into()]).unwrap(),
            pageservers: [(0, Lsn(3)), (258, Lsn(4))].into(),
        }
    }

    fn value<'a>(row: &'a [String], name: &str) -> Option<&'a str> {
        let index = PeerStatus::COLUMNS.iter().position(|column| *column == name)?;
        row.get(index).map(String::as_str)
    }

    #[test]
    fn survives_a_round_trip_and_a_missing_column_is_named() {
        let row = sample().row().unwrap();
        assert_eq!(PeerStatus::of_row(|name| value(&row, name)), Ok(sample()));
        let error = PeerStatus::of_row(|name| value(&row[..6], name)).unwrap_err();
        assert_eq!(error.to_string(), "TIMELINE_STATUS: column pageservers is None");
    }

    proptest! {
        #[test]
        fn nothing_a_peer_says_panics(column in 0usize..7, text in ".{0,40}") {
            let mut row = sample().row().unwrap();
            row[column] = text;
            let _ = PeerStatus::of_row(|name| value(&row, name));
        }
    }
}
