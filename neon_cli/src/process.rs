//! Background processes: a pid file that is locked as long as its process lives.
//!
//! The process itself holds the lock, and the kernel takes it away with the process, so a stale file (after
//! kill -9 or a reboot, when another process may have the pid) is never mistaken for a running service.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{CliError, IoContext, Result};

/// Time between two looks at something that is waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Where a service keeps its pid and its log.
#[derive(Debug, Clone)]
pub struct Service {
    /// Name for messages, as in "page server".
    pub name: String,
    pub pid_file: PathBuf,
    pub log_file: PathBuf,
}

/// The lock of a running process; keep it until the process ends.
#[derive(Debug)]
pub struct PidLock(#[expect(dead_code, reason = "held for its lock")] File);

impl Service {
    /// A service whose files are `DIR/STEM.pid` and `DIR/STEM.log`.
    pub fn in_dir(name: impl Into<String>, dir: &Path, stem: &str) -> Service {
        Service {
            name: name.into(),
            pid_file: dir.join(format!("{stem}.pid")),
            log_file: dir.join(format!("{stem}.log")),
        }
    }

    /// Taken by the process itself at its start: refuses when another one runs.
    pub fn lock_pid_file(&self) -> Result<PidLock> {
        let path = &self.pid_file;
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(path)
            .doing("open", path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(self.already_running()),
            Err(TryLockError::Error(error)) => return Err(error).doing("lock", path),
        }
        file.set_len(0).doing("truncate", path)?;
        writeln!(file, "{}", std::process::id()).doing("write", path)?;
        Ok(PidLock(file))
    }

    /// The process id, if the service runs.
    pub fn running_pid(&self) -> Result<Option<u32>> {
        let path = &self.pid_file;
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).doing("open", path),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                file.read_to_string(&mut text).doing("read", path)?;
                Ok(text.trim().parse().ok())
            }
            Err(TryLockError::Error(error)) => Err(error).doing("inspect", path),
        }
    }

    /// The error for a second start.
    pub fn already_running(&self) -> CliError {
        let pid = fs::read_to_string(&self.pid_file).unwrap_or_default();
        CliError::conflict(format!("the {} is already running (pid {})", self.name, pid.trim()))
    }

    /// Starts `neon SUBCOMMAND -c CONFIG` in the background, with its output appended to the log.
    pub fn spawn(&self, subcommand: &str, config: &Path) -> Result<Starting<'_>> {
        let program = std::env::current_exe().doing("find", Path::new("this program"))?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log_file)
            .doing("open", &self.log_file)?;
        let log_start = log.metadata().doing("inspect", &self.log_file)?.len();
        let errors = log.try_clone().doing("open", &self.log_file)?;
        let mut command = Command::new(&program);
        command.arg(subcommand).arg("-c").arg(config);
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        pg_launch::ffi::detach(&mut command);
        pg_launch::ffi::close_inherited_descriptors(&mut command);
        let child = command.spawn().doing("start", &program)?;
        Ok(Starting { service: self, child, log_start })
    }

    /// Sends a signal and waits until the process is gone; kills it after `patience`.
    pub fn stop(&self, signal: Signal, patience: Duration) -> Result<bool> {
        let Some(pid) = self.running_pid()? else { return Ok(false) };
        self.send(pid, signal)?;
        let deadline = Instant::now() + patience;
        while self.running_pid()?.is_some() {
            if Instant::now() > deadline {
                self.send(pid, Signal::SIGKILL)?;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(true)
    }

    fn send(&self, pid: u32, signal: Signal) -> Result<()> {
        let raw = i32::try_from(pid).map_err(|_| CliError::failed("impossible process id"))?;
        match kill(Pid::from_raw(raw), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(error) => Err(CliError::failed(format!(
                "could not send {signal} to the {} (pid {pid}): {error}",
                self.name
            ))),
        }
    }
}

/// A process that was started and may not be ready yet.
pub struct Starting<'a> {
    service: &'a Service,
    child: Child,
    log_start: u64,
}

impl Starting<'_> {
    /// Waits until `ready` says so; an exit before that, or the end of `patience`, is an error that shows the
    /// last lines of the log.
    pub fn wait_ready<T>(
        mut self,
        patience: Duration,
        mut ready: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(value) = ready()? {
                return Ok(value);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(CliError::failed(format!(
                    "the {} stopped while starting ({status}): {}",
                    self.service.name,
                    self.log_tail()
                )));
            }
            if Instant::now() > deadline {
                return Err(CliError::not_ready(format!(
                    "the {} was not ready after {} s; see {}: {}",
                    self.service.name,
                    patience.as_secs(),
                    self.service.log_file.display(),
                    self.log_tail()
                )));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// The last line that the process wrote, or where its log is.
    fn log_tail(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&self.service.log_file)?;
            file.seek(SeekFrom::Start(self.log_start))?;
            let mut bytes = Vec::new();
            file.take(1 << 20).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = read().unwrap_or_default();
        match text.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => line.trim().trim_start_matches("neon: ").to_owned(),
            None => format!("see {}", self.service.log_file.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_counts_only_while_it_is_locked() {
        let dir = tempfile::tempdir().unwrap();
        let service = Service::in_dir("page server", dir.path(), "pageserver");
        assert_eq!(service.running_pid().unwrap(), None);
        let lock = service.lock_pid_file().unwrap();
        assert_eq!(service.running_pid().unwrap(), Some(std::process::id()));
        let error = service.lock_pid_file().unwrap_err();
        assert_eq!(error.kind, crate::error::Kind::Conflict);
        assert!(error.message.contains("page server is already running"), "{error}");
        drop(lock);
        assert_eq!(service.running_pid().unwrap(), None);
    }
}
