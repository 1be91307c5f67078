//! Showing long steps: a moving line on a terminal, a line now and then elsewhere.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// How much of a failed step's output goes into the error.
const SHOWN_LINES: usize = 20;
/// Without a terminal, a sign of life this often.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

/// A step that is shown while it runs.
pub struct Step {
    what: String,
    start: Instant,
    last_sign: Instant,
    bar: Option<ProgressBar>,
}

impl Step {
    /// Begins a step.
    pub fn begin(what: impl Into<String>) -> Step {
        let what = what.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) =
                ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg:.dim}")
            {
                bar.set_style(style);
            }
            bar.set_prefix(what.clone());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        if bar.is_none() {
            eprintln!("==> {what}");
        }
        Step { what, start: Instant::now(), last_sign: Instant::now(), bar }
    }

    /// Shows that the step goes on; `lines` lines of output so far, the last being `line`.
    fn goes_on(&mut self, lines: usize, line: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(line.chars().take(200).collect::<String>()),
            None if self.last_sign.elapsed() > SIGN_OF_LIFE => {
                self.last_sign = Instant::now();
                eprintln!("    {} s, {lines} lines of output", self.start.elapsed().as_secs());
            }
            None => {}
        }
    }

    /// Ends a step that succeeded.
    pub fn done(self) {
        let seconds = self.start.elapsed().as_secs_f64();
        match self.bar {
            Some(bar) => {
                bar.finish_and_clear();
                eprintln!("==> {} ({seconds:.1} s)", self.what);
            }
            None => eprintln!("    done in {seconds:.1} s"),
        }
    }
}

/// Runs a command as a step. Its output goes to the file `log`; when it fails, the end of it is in the error.
pub fn run(what: impl Into<String>, mut command: Command, log: &Path) -> Result<()> {
    let mut step = Step::begin(what);
    let program = command.get_program().to_string_lossy().into_owned();
    let (reader, writer) = std::io::pipe()?;
    let mut file =
        File::create(log).with_context(|| format!("could not create {}", log.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("could not run `{program}`"))?;
    // The command holds our copies of the pipe's end: without this the output would never end.
    drop(command);

    let mut tail: VecDeque<String> = VecDeque::new();
    let mut lines = 0;
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        writeln!(file, "{line}")?;
        lines += 1;
        step.goes_on(lines, &line);
        tail.push_back(line);
        if tail.len() > SHOWN_LINES {
            tail.pop_front();
        }
    }
    let status = child.wait()?;
    if !status.success() {
        let tail: Vec<_> = tail.into();
        let what = step.what.clone();
        bail!(
            "{what} failed: `{program}` ended with {status}\n{}\n(all of it: {})",
            tail.join("\n"),
            log.display()
        );
    }
    step.done();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_goes_to_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        run("say", shell("echo out; echo err >&2"), &log).unwrap();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "out\nerr\n");
    }

    #[test]
    fn a_failure_shows_the_end_of_the_output() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let error = run("count", shell("seq 100; exit 3"), &log).unwrap_err().to_string();
        assert!(error.starts_with("count failed: `sh` ended with exit status: 3\n81\n"), "{error}");
        assert!(error.contains(&log.display().to_string()), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let command = Command::new("no-such-program");
        let error = run("try", command, &dir.path().join("log")).unwrap_err().to_string();
        assert!(error.contains("no-such-program"), "{error}");
    }
}
