//! The walproposer in a walsender of the compute: WAL is taken from WAL buffers, and commits are released, without
//! another process in between. The loop, the connections and all decisions are those of the crate `walproposer`.

mod local_wal;
mod server_log;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use compute_core::group_commit::{GroupCommit, Unsent, Verdict, Waited};
use pg_types::Lsn;
use pg_wire::replication::StandbyStatusUpdate;
use tokio::sync::Notify;
use tokio::time::timeout_at;
use walproposer::{Compute, Config, HostedEnd, Outcome, ServerIdentity, StreamEvent};

use crate::counters::{self, Counter};
use crate::ffi::commits::ServerTransactions;
use crate::ffi::wake::{self, Wake, Woken};
use crate::ffi::xlog;
use crate::ffi::xlog_sender::{self, Positions, State};
use local_wal::LocalWal;

/// The slot keeps WAL by the segment: it need not know of each commit.
const SLOT_STEP_BYTES: u64 = 1024 * 1024;

/// Why a hosted walproposer does not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file with the configuration.
    #[error("could not read \"{path}\": {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// Its content.
    #[error("\"{path}\": {source}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: toml::de::Error,
    },
    /// No event loop, or no descriptors for it.
    #[error("no event loop: {0}")]
    EventLoop(#[from] io::Error),
    /// The walproposer.
    #[error(transparent)]
    Walproposer(#[from] walproposer::WalproposerError),
}

/// Runs the walproposer that the file `path` configures until it ends. A walproposer whose client goes away, or that is told
/// to terminate while the server does not stop, ends with its process.
pub fn run(path: &Path) -> Result<(HostedEnd, String), Error> {
    server_log::install();
    xlog_sender::forget_statement();
    if let Err(error) = pg_launch::ffi::take_turns() {
        tracing::warn!(%error, "this process interrupts others");
    }
    let config = read_configuration(path)?;
    xlog_sender::acquire_slot(walproposer::SLOT_NAME);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let wake = Wake::new()?;
        let woken = Rc::new(Notify::new());
        let (system_id, version_num) = xlog_sender::server_identity();
        let compute = HostingCompute::new(Rc::clone(&woken));
        let identity = ServerIdentity { system_id, version_num };
        tokio::select! {
            outcome = walproposer::run_with(&config, identity, compute) => Ok(outcome?),
            error = attend(&wake, &woken) => Err(Error::EventLoop(error)),
        }
    })?;
    let end = match &outcome {
        Outcome::ComputeStopped { .. } | Outcome::Cancelled => HostedEnd::Stopped,
        Outcome::Fenced { .. } => HostedEnd::Fenced,
        Outcome::Diverged { .. } => HostedEnd::Diverged,
    };
    Ok((end, format!("{outcome:?}")))
}

fn read_configuration(path: &Path) -> Result<Config, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let text = fs::read_to_string(path).map_err(failed)?;
    let config: Config =
        toml::from_str(&text).map_err(|source| Error::Parse { path: path.to_owned(), source })?;
    // The token that this server shows to the page server is good for the safekeepers.
    let auth_token = config.auth_token.clone().or_else(|| std::env::var("NEON_AUTH_TOKEN").ok());
    Ok(Config { auth_token, ..config })
}

/// Whether the postmaster is shutting down: the last line of its lock file says so (`miscadmin.h`, `PM_STATUS_STOPPING`).
/// Where it cannot be read, staying is the smaller mistake: WAL of the shutdown would reach no quorum.
fn server_is_stopping() -> bool {
    let Ok(lock_file) = fs::read_to_string("postmaster.pid") else { return true };
    lock_file.lines().nth(7).is_some_and(|status| status.trim() == "stopping")
}

/// Does for Postgres what its processes do whenever their latch is set, and passes the word on.
async fn attend(wake: &Wake, woken: &Notify) -> io::Error {
    let mut is_stopping = false;
    loop {
        wake.reset();
        if wake::told_to_terminate() && !is_stopping {
            if !server_is_stopping() {
                wake::die();
            }
            is_stopping = true;
            xlog_sender::set_state(State::Stopping);
        }
        xlog_sender::reload_configuration_if_told();
        xlog_sender::check_for_interrupts();
        woken.notify_one();
        match wake.wait().await {
            Ok(Woken::Latch) => {}
            Ok(Woken::Client | Woken::Postmaster) => wake::die(),
            Err(error) => return error,
        }
    }
}

/// The server that this process belongs to.
struct HostingCompute {
    wal: LocalWal,
    woken: Rc<Notify>,
    stream: Stream,
    /// End of what was handed out.
    next_lsn: Lsn,
    reported: Positions,
    slot_lsn: Lsn,
    group_commit: GroupCommit,
}

/// What a look for WAL has found.
enum Found {
    Wal(StreamEvent),
    /// WAL that waits for more until then.
    Held(Instant),
    Nothing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stream {
    Closed,
    Opening,
    Open,
}

impl HostingCompute {
    fn new(woken: Rc<Notify>) -> HostingCompute {
        xlog_sender::take_priority();
        HostingCompute {
            wal: LocalWal::new(xlog_sender::timeline()),
            woken,
            stream: Stream::Closed,
            next_lsn: Lsn::INVALID,
            reported: Positions::default(),
            slot_lsn: Lsn::INVALID,
            group_commit: GroupCommit::default(),
        }
    }

    fn look(&mut self) -> Found {
        let flush_lsn = xlog::flush_position();
        let unsent = Unsent { bytes: flush_lsn.saturating_sub(self.next_lsn), flush_lsn };
        match self.group_commit.decide(Instant::now(), unsent, &ServerTransactions) {
            Verdict::Hold(until) => return Found::Held(until),
            Verdict::Send(Waited::Not) => {}
            Verdict::Send(Waited::Joined) => counters::add(Counter::CommitsJoined, 1),
            Verdict::Send(Waited::InVain) => counters::add(Counter::CommitsHeldInVain, 1),
        }
        self.read(flush_lsn)
    }

    fn read(&mut self, end_lsn: Lsn) -> Found {
        let begin_lsn = self.next_lsn;
        let wal = match self.wal.read(begin_lsn, end_lsn) {
            Ok(wal) => wal,
            // Nothing that another try would mend: the walproposer that is started next begins with an election.
            Err(error) => crate::ffi::report::wal_unreadable(&error),
        };
        self.next_lsn = begin_lsn + wal.len() as u64;
        if wal.is_empty() {
            Found::Nothing
        } else {
            Found::Wal(StreamEvent::Wal { begin_lsn, wal })
        }
    }

    /// Whether the server has written its last WAL and a quorum has it.
    fn is_complete(&self) -> bool {
        wake::is_last_cycle() && self.next_lsn <= self.reported.committed_lsn
    }
}

impl Compute for HostingCompute {
    fn open_at(&mut self, lsn: Lsn) {
        self.next_lsn = lsn;
        self.stream = Stream::Opening;
        self.group_commit = GroupCommit::default();
        if !wake::told_to_terminate() {
            xlog_sender::set_state(State::Streaming);
        }
    }

    fn close(&mut self) {
        self.stream = Stream::Closed;
        if !wake::told_to_terminate() {
            xlog_sender::set_state(State::Startup);
        }
    }

    async fn next(&mut self) -> StreamEvent {
        loop {
            let mut held_until = None;
            match self.stream {
                Stream::Closed => {}
                Stream::Opening => {
                    self.stream = Stream::Open;
                    return StreamEvent::Opened;
                }
                Stream::Open => {
                    match self.look() {
                        Found::Wal(event) => return event,
                        Found::Nothing if self.is_complete() => return StreamEvent::Ended,
                        Found::Nothing | Found::Held(_) => {}
                    }
                    // Only who waits for WAL is woken by it. What was flushed before this was said is seen by another look.
                    xlog_sender::watch_flushes();
                    match self.look() {
                        Found::Wal(event) => return event,
                        Found::Held(until) => held_until = Some(until),
                        Found::Nothing => {}
                    }
                }
            }
            match held_until {
                None => self.woken.notified().await,
                // Either way there is another look.
                Some(until) => drop(timeout_at(until.into(), self.woken.notified()).await),
            }
        }
    }

    async fn report(&mut self, status: StandbyStatusUpdate) {
        if self.stream == Stream::Closed {
            return;
        }
        let positions = Positions {
            sent_lsn: self.next_lsn,
            committed_lsn: status.flush_lsn,
            applied_lsn: status.apply_lsn,
        };
        if positions == self.reported {
            return;
        }
        self.reported = positions;
        xlog_sender::report(positions);
        if self.slot_lsn + SLOT_STEP_BYTES <= positions.committed_lsn || self.is_complete() {
            self.slot_lsn = positions.committed_lsn;
            // This may wake others, and so take this process off the list of those who wait for flushes: WAL is looked for again.
            xlog_sender::advance_slot(self.slot_lsn);
            self.woken.notify_one();
        }
    }
}
