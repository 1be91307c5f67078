//! The walproposer as a child process: what its exit codes say.

use std::process::ExitStatus;

/// How a walproposer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalproposerExit {
    /// Its PostgreSQL ended the stream, or it was told to stop.
    Stopped,
    /// Another compute was elected.
    Fenced,
    /// The safekeepers' WAL does not continue what this compute started from.
    Diverged,
    /// Anything else: a crash, an error that may go away.
    Failed,
}

impl WalproposerExit {
    /// Exit code of the process.
    pub fn code(self) -> u8 {
        match self {
            WalproposerExit::Stopped => 0,
            WalproposerExit::Failed => 1,
            WalproposerExit::Fenced => 10,
            WalproposerExit::Diverged => 11,
        }
    }

    /// What the exit of a child says.
    pub fn from_status(status: ExitStatus) -> WalproposerExit {
        let all = [WalproposerExit::Stopped, WalproposerExit::Fenced, WalproposerExit::Diverged];
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        all.into_iter().find(|exit| Some(exit.code()) == code).unwrap_or(WalproposerExit::Failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn codes_round_trip_and_a_signal_is_a_failure() {
        for exit in [WalproposerExit::Stopped, WalproposerExit::Fenced, WalproposerExit::Diverged] {
            let status = ExitStatus::from_raw(i32::from(exit.code()) << 8);
            assert_eq!(WalproposerExit::from_status(status), exit);
        }
        assert_eq!(WalproposerExit::from_status(ExitStatus::from_raw(9)), WalproposerExit::Failed);
        let other = ExitStatus::from_raw(101 << 8);
        assert_eq!(WalproposerExit::from_status(other), WalproposerExit::Failed);
    }
}
