//! PostgreSQL and its walproposer as children of this process.
//!
//! Both get a signal when this process dies, so a killed supervisor leaves nothing behind. A walproposer that
//! crashed is started again, since acknowledged commits are on the safekeepers; one that says it lost the
//! election takes the compute down with it, because another compute may write now.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pg_launch::{PgInstall, SystemUser};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::walproposer::WalproposerExit;

/// Time between two looks at `postmaster.pid`.
const READY_POLL: Duration = Duration::from_millis(5);
/// Longest time for PostgreSQL to say that it is ready.
const READY_PATIENCE: Duration = Duration::from_secs(60);
/// Lines at the end of PostgreSQL's log among which the reason of its end is looked for.
const LOG_LINES_MAX: usize = 50;
/// Pause before a crashed walproposer is started again.
const RESTART_PAUSE: Duration = Duration::from_millis(200);
/// How long a walproposer has for its last words after a stop in order.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(1);
/// How long a walproposer may take to end after its PostgreSQL did.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

/// Why a compute ended, other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// A program could not be started.
    #[error("could not start {program}")]
    Start {
        /// Which.
        program: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// PostgreSQL ended without being told to.
    #[error("PostgreSQL ended by itself ({status}); its log {log} says: {last_words}")]
    PostgresEnded {
        /// How.
        status: ExitStatus,
        /// Where to read why.
        log: PathBuf,
        /// The worst message near its end.
        last_words: String,
    },
    /// PostgreSQL did not become ready.
    #[error("PostgreSQL was not ready after {} s; its log is {log}", READY_PATIENCE.as_secs())]
    NotReady {
        /// Where to read why.
        log: PathBuf,
    },
    /// Another compute writes this timeline now.
    #[error("another compute was elected for this timeline: this one was stopped")]
    Fenced,
    /// The walproposer refuses to go on.
    #[error("the walproposer cannot go on: the safekeepers' WAL does not continue this compute's")]
    Diverged,
    /// A child could not be waited for.
    #[error("could not wait for a child process")]
    Wait(#[source] io::Error),
}

/// How to start a walproposer.
#[derive(Debug, Clone)]
pub struct WalproposerCommand {
    /// The program.
    pub program: PathBuf,
    /// Its configuration.
    pub config_file: PathBuf,
}

/// Starts PostgreSQL on its data directory.
pub fn start_postgres(
    config: &Config,
    install: &PgInstall,
    user: Option<&SystemUser>,
) -> Result<Child, SuperviseError> {
    let program = install.program("postgres");
    let failed = |source| SuperviseError::Start { program: program.clone(), source };
    let log =
        OpenOptions::new().create(true).append(true).open(&config.postgres_log).map_err(failed)?;
    let errors = log.try_clone().map_err(failed)?;
    let mut command = install.command("postgres", user);
    command.arg("-D").arg(&config.pgdata);
    command.stdin(Stdio::null()).stdout(log).stderr(errors);
    if let Some(token) = &config.auth_token {
        // The extension shows it to the page server. Of SQL's users only those see it who may read the server's files or
        // run programs, and they are what the token is for.
        command.env("NEON_AUTH_TOKEN", token);
    }
    // SIGQUIT is PostgreSQL's immediate shutdown: the local disk is not worth a checkpoint.
    pg_launch::ffi::die_with_parent(&mut command, Signal::SIGQUIT);
    Command::from(command).spawn().map_err(failed)
}

/// Waits until PostgreSQL takes connections: the eighth line of `postmaster.pid` says so (`PM_STATUS_READY` of
/// `utils/pidfile.h`).
pub async fn wait_ready(postgres: &mut Child, config: &Config) -> Result<(), SuperviseError> {
    let pid_file = config.pgdata.join("postmaster.pid");
    let ready = async {
        loop {
            if is_ready(&pid_file) {
                return Ok(());
            }
            if let Some(status) = postgres.try_wait().map_err(SuperviseError::Wait)? {
                return Err(ended(config, status));
            }
            sleep(READY_POLL).await;
        }
    };
    match timeout(READY_PATIENCE, ready).await {
        Ok(result) => result,
        Err(_) => Err(SuperviseError::NotReady { log: config.postgres_log.clone() }),
    }
}

/// PostgreSQL's end, with the last FATAL or PANIC message of its log.
fn ended(config: &Config, status: ExitStatus) -> SuperviseError {
    let log = config.postgres_log.clone();
    let text = std::fs::read(&log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let message = |line: &str| {
        let (_, message) = line.split_once("FATAL:").or_else(|| line.split_once("PANIC:"))?;
        Some(message.trim().to_owned())
    };
    let last_words = text.lines().rev().take(LOG_LINES_MAX).find_map(message);
    SuperviseError::PostgresEnded {
        status,
        log,
        last_words: last_words.unwrap_or_else(|| "no reason".to_owned()),
    }
}

fn is_ready(pid_file: &Path) -> bool {
    std::fs::read_to_string(pid_file)
        .is_ok_and(|text| text.lines().nth(7).is_some_and(|line| line.trim_end() == "ready"))
}

/// Starts a walproposer.
pub fn start_walproposer(command: &WalproposerCommand) -> Result<Child, SuperviseError> {
    let mut child = std::process::Command::new(&command.program);
    child.arg("walproposer").arg("-c").arg(&command.config_file).stdin(Stdio::null());
    pg_launch::ffi::die_with_parent(&mut child, Signal::SIGKILL);
    Command::from(child)
        .spawn()
        .map_err(|source| SuperviseError::Start { program: command.program.clone(), source })
}

/// Keeps both children until PostgreSQL ends, by itself or because `shutdown` asks for it.
pub async fn watch(
    config: &Config,
    mut postgres: Child,
    mut walproposer: Child,
    command: &WalproposerCommand,
    shutdown: CancellationToken,
) -> Result<(), SuperviseError> {
    let (mut told_to_stop, mut walproposer_done) = (false, false);
    let verdict = loop {
        tokio::select! {
            status = postgres.wait() => {
                let status = status.map_err(SuperviseError::Wait)?;
                break if told_to_stop { Ok(()) } else { Err(ended(config, status)) };
            }
            status = walproposer.wait(), if !walproposer_done => {
                match WalproposerExit::from_status(status.map_err(SuperviseError::Wait)?) {
                    WalproposerExit::Fenced => break Err(SuperviseError::Fenced),
                    WalproposerExit::Diverged => break Err(SuperviseError::Diverged),
                    // It has brought the last record of a stop to the safekeepers.
                    WalproposerExit::Stopped if told_to_stop => walproposer_done = true,
                    exit => {
                        tracing::warn!(?exit, "the walproposer ended: starting it again");
                        sleep(RESTART_PAUSE).await;
                        walproposer = start_walproposer(command)?;
                    }
                }
            }
            () = shutdown.cancelled(), if !told_to_stop => {
                told_to_stop = true;
                // SIGINT is PostgreSQL's fast shutdown; it ends after the walproposer acknowledged the
                // shutdown checkpoint.
                send(&postgres, Signal::SIGINT);
            }
        }
    };
    end(postgres, Signal::SIGQUIT).await;
    if verdict.is_ok() && !walproposer_done {
        // It tells the safekeepers that the last record is committed, and ends by itself.
        let _ = timeout(GOODBYE_PATIENCE, walproposer.wait()).await;
    }
    end(walproposer, Signal::SIGTERM).await;
    verdict
}

/// Ends a child that may have ended already; kills it when it takes too long.
async fn end(mut child: Child, signal: Signal) {
    if child.try_wait().is_ok_and(|status| status.is_some()) {
        return;
    }
    send(&child, signal);
    if timeout(DRAIN_PATIENCE, child.wait()).await.is_err() {
        // An error means that it ended in between.
        let _ = child.kill().await;
    }
}

fn send(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = pid
        && let Err(error) = kill(Pid::from_raw(pid), signal)
    {
        tracing::warn!(pid, %signal, %error, "could not signal a child");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_is_the_eighth_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("postmaster.pid");
        assert!(!is_ready(&path));
        std::fs::write(&path, "1\n/d\n2\n3\n/s\nl\n5\nstarting\n").unwrap();
        assert!(!is_ready(&path));
        std::fs::write(&path, "1\n/d\n2\n3\n/s\nl\n5\nready   \n").unwrap();
        assert!(is_ready(&path));
    }
}
