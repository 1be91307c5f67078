//! Running other programs, and saying what runs.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Root of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// Prints a step and, when it is done, how long it took.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("==> {what}");
    let start = Instant::now();
    let result = work().with_context(|| format!("{what} failed"));
    if result.is_ok() {
        eprintln!("    done in {:.1} s", start.elapsed().as_secs_f64());
    }
    result
}

/// A cargo command in the root of the checkout.
pub fn cargo(args: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root()).args(args);
    command
}

/// Runs a command that must succeed; its output goes where ours goes.
pub fn check(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("could not run {command:?}"))?;
    if !status.success() {
        bail!("{} ended with {status}", describe(command));
    }
    Ok(())
}

/// Runs a command that must succeed; its standard output.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("could not run {command:?}"))?;
    if !output.status.success() {
        bail!("{} ended with {}", describe(command), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Silence after which a program under [`stream`] is taken to hang. A release build from nothing, the longest silent
/// part of a test run, takes a third of it.
const HANGS_AFTER: Duration = Duration::from_secs(15 * 60);

/// Runs a command, passes its standard output on line by line, and shows each line to `see`.
/// Says whether the command succeeded.
///
/// A test that hangs must not take the rest of the run with it: after a long silence the command's direct children
/// are killed, so that `cargo test` counts that program as failed and goes on with the next one. If that brings no
/// word either, the command is killed.
pub fn stream(command: &mut Command, see: impl FnMut(&str)) -> Result<bool> {
    stream_with_limit(command, HANGS_AFTER, see)
}

fn stream_with_limit(
    command: &mut Command,
    limit: Duration,
    mut see: impl FnMut(&str),
) -> Result<bool> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not run {command:?}"))?;
    let stdout = child.stdout.take().context("a child without standard output")?;
    let (sender, lines) = mpsc::channel();
    // Not joined: a grandchild that survives the command may hold the pipe open.
    std::thread::spawn(move || {
        BufReader::new(stdout).lines().try_for_each(|line| sender.send(line).map_err(drop))
    });
    let mut killed_children = false;
    let mut hung = false;
    loop {
        match lines.recv_timeout(limit) {
            Ok(line) => {
                let line = line?;
                println!("{line}");
                see(&line);
                killed_children = false;
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                hung = true;
                eprintln!("no output for {} s: ending what hangs", limit.as_secs());
                let children = children_of(child.id());
                if killed_children || children.is_empty() {
                    child.kill()?;
                    break;
                }
                killed_children = true;
                for pid in children {
                    // An error means that it ended in between.
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        }
    }
    Ok(child.wait()?.success() && !hung)
}

/// Processes whose parent is `parent`.
fn children_of(parent: u32) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            // The name before the state may hold anything, parentheses too.
            let ppid = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
            (ppid.parse() == Ok(parent)).then_some(pid)
        })
        .collect()
}

fn describe(command: &Command) -> String {
    let args: Vec<_> = command.get_args().take(6).map(|arg| arg.to_string_lossy()).collect();
    format!("`{} {}`", command.get_program().to_string_lossy(), args.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hanging_child_is_ended_and_the_rest_goes_on() {
        let mut seen = Vec::new();
        // The shell goes on when its child is killed, as cargo does.
        let mut command = Command::new("sh");
        command.args(["-c", "echo before; sleep 1000; echo after"]);
        let limit = Duration::from_millis(300);
        let ok = stream_with_limit(&mut command, limit, |line| seen.push(line.to_owned())).unwrap();
        assert!(!ok);
        assert_eq!(seen, ["before", "after"]);
    }

    #[test]
    fn a_command_that_hangs_itself_is_ended() {
        let mut command = Command::new("sh");
        command.args(["-c", "exec sleep 1000"]);
        assert!(!stream_with_limit(&mut command, Duration::from_millis(100), |_| {}).unwrap());
        let mut command = Command::new("true");
        assert!(stream_with_limit(&mut command, Duration::from_secs(60), |_| {}).unwrap());
    }
}
