//! A PostgreSQL whose supervisor was killed.
//!
//! The kernel sends it SIGQUIT at that moment, but until it has ended it holds its port and writes to its data
//! directory. Nothing may be started in its place before that.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Time between two looks.
const POLL: Duration = Duration::from_millis(5);
/// How long an immediate shutdown may take before the postmaster is killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until no PostgreSQL runs on the data directory; kills one that does not end.
pub fn end_orphan(pgdata: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while let Some(postmaster) = running_postmaster(pgdata) {
        let signal = if Instant::now() < deadline { Signal::SIGQUIT } else { Signal::SIGKILL };
        // An error means that it ended in between.
        let _ = kill(postmaster, signal);
        std::thread::sleep(POLL);
    }
}

/// The process of `postmaster.pid`, if it lives and runs on this directory: after a reboot its number can be
/// anybody's.
fn running_postmaster(pgdata: &Path) -> Option<Pid> {
    let text = fs::read_to_string(pgdata.join("postmaster.pid")).ok()?;
    let pid: i32 = text.lines().next()?.trim().parse().ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let directory = pgdata.as_os_str().as_encoded_bytes();
    let is_ours = command.split(|byte| *byte == 0).any(|argument| argument == directory);
    is_ours.then(|| Pid::from_raw(pid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::{Command, Stdio};

    #[test]
    fn a_stranger_with_the_number_is_left_alone_and_an_orphan_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("postmaster.pid");
        end_orphan(dir.path());
        fs::write(&pid_file, format!("{}\n", std::process::id())).unwrap();
        end_orphan(dir.path());

        // A shell with the directory as an argument stands for the postmaster. It says when it runs: until its memory
        // is set up, a new program has no command line to be recognised by.
        let mut child = Command::new("sh")
            .args(["-c", "echo; read line"])
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        fs::write(&pid_file, format!("{}\n", child.id())).unwrap();
        let reaper = std::thread::spawn({
            let input = child.stdin.take();
            move || {
                let status = child.wait().unwrap();
                drop(input);
                status
            }
        });
        end_orphan(dir.path());
        assert!(!reaper.join().unwrap().success());
    }
}
