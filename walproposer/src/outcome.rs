//! How a walproposer ends.

use std::io;
use std::path::PathBuf;

use pg_types::{Lsn, Term};
use wal_consensus::proposer::LostReason;

use crate::config::ConfigError;
use crate::term_file::TermFileError;

/// How [`run`](crate::run()) ends when nothing is wrong with this process itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The compute has shut down in good order, and a quorum has all its WAL.
    ComputeStopped {
        /// End of its WAL.
        commit_lsn: Lsn,
    },
    /// This process was told to end.
    Cancelled,
    /// Another compute has taken over from this one: it must be killed, none of its commits will ever be acknowledged
    /// again.
    Fenced {
        /// The term of the other one.
        by_term: Term,
    },
    /// The log has WAL that this compute did not know from the beginning: it must be killed and made anew.
    Diverged {
        /// What was found.
        reason: LostReason,
    },
}

/// Why a walproposer cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WalproposerError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The file with the terms.
    #[error(transparent)]
    TermFile(#[from] TermFileError),
    /// The feedback file.
    #[error("{path}: {source}")]
    Feedback {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// Something that another campaign will not change.
    #[error("{0}")]
    Consensus(LostReason),
    /// Told to end before there was a result.
    #[error("cancelled")]
    Cancelled,
}

/// What to do after a lost campaign or reign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Campaign again, above this term.
    Retry(Term),
    End(Outcome),
    Fail(LostReason),
}

/// Judges the loss of a proposer in a process that has, or has not, reigned before.
///
/// A higher term alone says only that somebody campaigns. It may be a successor; it may as well be the walproposer of a
/// compute that is long out of date and about to find that out. The next campaign tells them apart: only a successor has
/// left its mark at the end of the log.
pub(crate) fn judge(reason: LostReason, has_reigned: bool) -> Verdict {
    match reason {
        LostReason::HigherTerm { term, .. } | LostReason::VotesTaken { term } => {
            Verdict::Retry(term)
        }
        LostReason::ConfChanged { .. } => Verdict::Retry(Term(0)),
        LostReason::ForeignWal { log_term, .. } if has_reigned => {
            Verdict::End(Outcome::Fenced { by_term: log_term })
        }
        LostReason::ForeignWal { .. } => Verdict::End(Outcome::Diverged { reason }),
        LostReason::EmptyTimeline | LostReason::DonorHistory(_) | LostReason::TermsExhausted(_) => {
            Verdict::Fail(reason)
        }
    }
}

#[cfg(test)]
mod tests {
    use wal_consensus::proposer::SkId;

    use super::*;

    #[test]
    fn a_campaigner_is_outvoted_a_successor_obeyed() {
        let higher = LostReason::HigherTerm { sk: SkId(0), term: Term(9), own_term: Term(3) };
        assert_eq!(judge(higher.clone(), false), Verdict::Retry(Term(9)));
        assert_eq!(judge(higher, true), Verdict::Retry(Term(9)));
        let foreign =
            LostReason::ForeignWal { log_end_lsn: Lsn(2), log_term: Term(1), start_lsn: Lsn(1) };
        let fenced = Verdict::End(Outcome::Fenced { by_term: Term(1) });
        assert_eq!(judge(foreign.clone(), true), fenced);
        assert!(matches!(judge(foreign, false), Verdict::End(Outcome::Diverged { .. })));
        assert!(matches!(judge(LostReason::EmptyTimeline, false), Verdict::Fail(_)));
    }
}
