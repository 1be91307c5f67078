//! The acceptor of one timeline together with its disk: runs the commands of `wal_consensus` in their order. The
//! duties named D1..D8 are those of the acceptor's runtime in that crate's README.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use pg_types::{Lsn, Term};
use wal_consensus::acceptor::{Acceptor, AcceptorInput};
use wal_consensus::command::{AcceptorCommand, AcceptorIdentity, AcceptorState, ConnId};
use wal_consensus::ladder::{LadderError, LsnLadder};
use wal_consensus::membership::MembershipConf;
use wal_consensus::message::AcceptorMessage;
use wal_consensus::refusal::{Quarantine, Refusal};
use wal_consensus::version::ProtocolVersion;

use crate::control_file::{ControlFile, ControlFileError};
use crate::durable::FileError;
use crate::metrics::{Metrics, seconds};
use crate::threads::blocking;
use crate::wal_storage::{Flushed, Known, RecentWal, RecoveryError, WalStorage, find_end_of_wal};

/// Why a timeline is out of service. Nothing is known any more about what is on disk (D6).
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// A file operation on WAL failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The control file cannot be read or written.
    #[error(transparent)]
    ControlFile(#[from] ControlFileError),
    /// The log on disk contradicts the control file.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// Log and state contradict each other.
    #[error("positions contradict each other: {0}")]
    Ladder(#[from] LadderError),
    /// Consensus found something that cannot be.
    #[error(transparent)]
    Quarantine(#[from] Quarantine),
    /// Consensus and storage disagree about the end of the log.
    #[error("write at {begin_lsn}, but the log on disk ends at {write_lsn}")]
    WritePosition {
        /// Where consensus wants to write.
        begin_lsn: Lsn,
        /// End of the log.
        write_lsn: Lsn,
    },
}

/// Something for a proposer's connection.
#[derive(Debug)]
pub enum Outgoing {
    /// Send this.
    Reply {
        /// To whom.
        conn: ConnId,
        /// What.
        message: AcceptorMessage,
    },
    /// Say why, and close.
    Close {
        /// Whose connection.
        conn: ConnId,
        /// Why.
        reason: String,
    },
}

impl Outgoing {
    /// The connection it is for.
    pub fn conn(&self) -> ConnId {
        match self {
            Outgoing::Reply { conn, .. } | Outgoing::Close { conn, .. } => *conn,
        }
    }
}

/// Positions that readers and status answers need, without the lock of the core.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// All positions of consensus.
    pub ladder: LsnLadder,
    /// Highest term promised.
    pub term: Term,
    /// Term of the last WAL in the log.
    pub last_log_term: Term,
}

/// A timeline at one moment, without its WAL.
#[derive(Debug, Clone)]
pub struct CopyState {
    /// What would be saved now.
    pub control: ControlFile,
    /// End of the log.
    pub flush_lsn: Lsn,
    /// Term of the last WAL in the log.
    pub last_log_term: Term,
}

impl CopyState {
    /// Whether the log was not cut between this moment and a later one: the bytes of the one belong to the history of
    /// the other. The acceptor cuts the log only together with a new history.
    pub fn continues_in(&self, later: &CopyState) -> bool {
        let history = |state: &CopyState| state.control.acceptor_state.term_history.clone();
        history(self) == history(later) && self.flush_lsn <= later.flush_lsn
    }
}

/// One timeline: consensus, WAL and control file. Used by one task at a time.
#[derive(Debug)]
pub struct Core {
    dir: PathBuf,
    acceptor: Acceptor,
    wal: WalStorage,
    /// As it is on disk.
    control: ControlFile,
    metrics: Metrics,
    /// Written bytes wait for a flush.
    flush_wanted: bool,
    /// No segment below this number is there any more; 0 while nobody has looked.
    removed_below: u64,
    out: Vec<Outgoing>,
}

impl Core {
    /// Begins from what is on disk (D7).
    pub fn load(dir: &Path, identity: AcceptorIdentity, metrics: Metrics) -> Result<Core, Broken> {
        let control = ControlFile::load(dir, identity.tenant_id, identity.timeline_id)?;
        let state = &control.acceptor_state;
        let known = Known {
            local_start_lsn: state.local_start_lsn,
            removal_horizon: control.removal_horizon(),
            commit_lsn: state.commit_lsn,
        };
        let end = find_end_of_wal(dir, known)?;
        let acceptor = Acceptor::new(identity, state.clone(), end.flush_lsn)?;
        let wal = WalStorage::new(dir, end);
        let (dir, flush_wanted, out) = (dir.to_owned(), false, Vec::new());
        let removed_below = 0;
        Ok(Core { dir, acceptor, wal, control, metrics, flush_wanted, removed_below, out })
    }

    /// Takes messages that arrived over one connection, in their order, with at most one flush for all of them, and
    /// returns what is to be sent. Everything returned is true on disk (`[SK1]`, D5).
    pub fn receive(
        &mut self,
        conn: ConnId,
        version: ProtocolVersion,
        payloads: Vec<Bytes>,
    ) -> Result<Vec<Outgoing>, Broken> {
        let count = payloads.len();
        self.receive_all(conn, version, payloads)?;
        if self.flush_wanted {
            #[expect(
                clippy::cast_precision_loss,
                reason = "a count of messages is far below 2^52"
            )]
            self.metrics.flush_group_size.observe(count as f64);
            let flushed = self.flush()?;
            self.flushed(flushed)?;
        }
        self.refuse_invalid_wal(conn)?;
        Ok(std::mem::take(&mut self.out))
    }

    fn receive_all(
        &mut self,
        conn: ConnId,
        version: ProtocolVersion,
        payloads: Vec<Bytes>,
    ) -> Result<(), Broken> {
        for payload in payloads {
            match version.decode_proposer(payload) {
                Ok(message) => self.step(AcceptorInput::Message { conn, message })?,
                Err(error) => {
                    self.step(AcceptorInput::Disconnected { conn })?;
                    let reason = format!("malformed message: {error}");
                    self.out.push(Outgoing::Close { conn, reason });
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Bytes that are no WAL stay unacknowledged for ever: better said than waited for. The next election cuts them.
    fn refuse_invalid_wal(&mut self, conn: ConnId) -> Result<(), Broken> {
        if let Some(error) = self.wal.invalid_wal()
            && self.acceptor.streaming() == Some(conn)
        {
            self.step(AcceptorInput::Disconnected { conn })?;
            self.out.push(Outgoing::Close { conn, reason: error.to_string() });
        }
        Ok(())
    }

    /// A connection ended (D8).
    pub fn disconnected(&mut self, conn: ConnId) -> Result<Vec<Outgoing>, Broken> {
        self.step(AcceptorInput::Disconnected { conn })?;
        Ok(std::mem::take(&mut self.out))
    }

    /// Switches the membership configuration and closes who speaks for an older one; the inner error is a refusal.
    pub fn switch_membership(
        &mut self,
        mconf: &MembershipConf,
    ) -> Result<Result<Vec<Outgoing>, Refusal>, Broken> {
        match self.acceptor.switch_membership(mconf) {
            Ok(commands) => {
                self.execute(commands)?;
                Ok(Ok(std::mem::take(&mut self.out)))
            }
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// Promises a term ([`AcceptorInput::RaiseTerm`]).
    pub fn raise_term(&mut self, term: Term) -> Result<Vec<Outgoing>, Broken> {
        self.step(AcceptorInput::RaiseTerm { term })?;
        Ok(std::mem::take(&mut self.out))
    }

    /// The state that a copy of this timeline begins with, and the end of its log.
    pub fn copy_state(&self) -> CopyState {
        let ladder = self.acceptor.ladder();
        let acceptor_state = AcceptorState {
            // The state has the position that was saved last, which may be below what everybody has by now.
            commit_lsn: ladder.commit_lsn,
            truncate_lsn: ladder.truncate_lsn,
            ..self.acceptor.state().clone()
        };
        CopyState {
            control: ControlFile { acceptor_state, ..self.control.clone() },
            flush_lsn: ladder.flush_lsn,
            last_log_term: self.acceptor.last_log_term(),
        }
    }

    /// Saves what may be saved late, and removes WAL that nobody needs according to what is saved, unless it is being
    /// copied. `backup_lsn` tells what is in the object store; it counts where there is one.
    pub fn maintain(
        &mut self,
        remote_consistent_lsn: Lsn,
        backup_lsn: Lsn,
        has_store: bool,
        may_remove: bool,
    ) -> Result<(), Broken> {
        // Nobody can be consistent with WAL that is not committed.
        let remote = remote_consistent_lsn.min(self.acceptor.ladder().commit_lsn);
        let moved =
            self.control.remote_consistent_lsn < remote || self.control.backup_lsn < backup_lsn;
        self.control.remote_consistent_lsn = self.control.remote_consistent_lsn.max(remote);
        self.control.backup_lsn = self.control.backup_lsn.max(backup_lsn);
        let commit_before = self.control.acceptor_state.commit_lsn;
        self.step(AcceptorInput::SaveState)?;
        if moved && self.control.acceptor_state.commit_lsn == commit_before {
            self.save_control()?;
        }
        let horizon = self.control.removable_below(has_store);
        let first_needed = pg_types::xlog::segment_number(horizon);
        if may_remove && self.removed_below < first_needed {
            let removed = blocking(|| self.wal.remove_below(horizon))?;
            self.metrics.removed_segments.inc_by(removed);
            self.removed_below = first_needed;
        }
        Ok(())
    }

    /// Positions and terms as of now.
    pub fn progress(&self) -> Progress {
        Progress {
            ladder: self.acceptor.ladder(),
            term: self.acceptor.state().term,
            last_log_term: self.acceptor.last_log_term(),
        }
    }

    /// The end of the log in memory, for its readers.
    pub fn recent_wal(&self) -> Arc<RecentWal> {
        self.wal.recent()
    }

    /// State as it would be saved now.
    pub fn state(&self) -> &AcceptorState {
        self.acceptor.state()
    }

    /// State as it is on disk.
    pub fn control_file(&self) -> &ControlFile {
        &self.control
    }

    fn step(&mut self, input: AcceptorInput) -> Result<(), Broken> {
        let commands = self.acceptor.step(input);
        self.execute(commands)
    }

    /// `[SK2]` D1, D2: in order, each one finished before the next; a flush that may not wait is reported afterwards.
    fn execute(&mut self, commands: Vec<AcceptorCommand>) -> Result<(), Broken> {
        let mut flushed = None;
        for command in commands {
            match command {
                AcceptorCommand::SaveState(state) => {
                    self.control.acceptor_state = *state;
                    self.save_control()?;
                }
                AcceptorCommand::TruncateWal { end_lsn } => {
                    blocking(|| self.wal.truncate(end_lsn))?;
                    // D4: nothing is left of what waited for a flush.
                    self.flush_wanted = false;
                    flushed = None;
                }
                AcceptorCommand::WriteWal { begin_lsn, wal } => self.write(begin_lsn, wal)?,
                AcceptorCommand::FlushWal { may_wait: true } => self.flush_wanted = true,
                AcceptorCommand::FlushWal { may_wait: false } => flushed = Some(self.flush()?),
                // Readers learn it from `progress`, once this input is done with.
                AcceptorCommand::CommitAdvanced { .. } => {}
                AcceptorCommand::Reply { conn, message } => {
                    self.out.push(Outgoing::Reply { conn, message });
                }
                AcceptorCommand::Close { conn, refusal } => {
                    self.out.push(Outgoing::Close { conn, reason: refusal.to_string() });
                }
                AcceptorCommand::Quarantine { reason } => return Err(reason.into()),
            }
        }
        flushed.map_or(Ok(()), |flushed| self.flushed(flushed))
    }

    fn write(&mut self, begin_lsn: Lsn, wal: Bytes) -> Result<(), Broken> {
        let write_lsn = self.wal.write_lsn();
        if begin_lsn != write_lsn {
            return Err(Broken::WritePosition { begin_lsn, write_lsn });
        }
        self.metrics.written_bytes.inc_by(wal.len() as u64);
        Ok(self.wal.write(wal)?)
    }

    fn flush(&mut self) -> Result<Flushed, Broken> {
        self.flush_wanted = false;
        let started = Instant::now();
        let flushed = blocking(|| self.wal.flush())?;
        self.metrics.flush_seconds.observe(seconds(started.elapsed()));
        Ok(flushed)
    }

    fn flushed(&mut self, flushed: Flushed) -> Result<(), Broken> {
        let Flushed { flush_lsn, synced_lsn } = flushed;
        self.step(AcceptorInput::Flushed { flush_lsn, synced_lsn })
    }

    fn save_control(&mut self) -> Result<(), Broken> {
        let started = Instant::now();
        blocking(|| self.control.save(&self.dir))?;
        self.metrics.control_file_seconds.observe(seconds(started.elapsed()));
        Ok(())
    }
}
