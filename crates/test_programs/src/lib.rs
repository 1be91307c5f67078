//! Shell scripts that stand in for PostgreSQL's programs in tests.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// Writes an executable shell script.
///
/// The file is written by a process of its own. Were it opened for writing here, a child that another thread
/// starts at that moment would inherit the descriptor until its own exec, and running the script would fail
/// with "Text file busy" (`ETXTBSY`, execve(2)).
///
/// # Errors
/// The shell cannot be started, or the file cannot be written.
pub fn write_program(path: &Path, script: &str) -> io::Result<()> {
    let mut shell = Command::new("/bin/sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()?;
    // Dropped at the end of the statement: the script is complete when the pipe ends.
    let written = match shell.stdin.take() {
        Some(mut pipe) => write!(pipe, "#!/bin/sh\n{script}\n"),
        None => Ok(()),
    };
    let status = shell.wait()?;
    written?;
    if !status.success() {
        return Err(io::Error::other(format!("could not write {}: {status}", path.display())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_runs_while_others_start_processes() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let path = dir.path().join(thread.to_string());
                scope.spawn(move || {
                    for round in 0..20 {
                        write_program(&path, &format!("exit {round}")).unwrap();
                        let status = Command::new(&path).status().unwrap();
                        assert_eq!(status.code(), Some(round));
                    }
                });
            }
        });
    }

    #[test]
    fn a_place_that_does_not_exist_is_an_error() {
        assert!(write_program(Path::new("/nowhere/program"), "exit 0").is_err());
    }
}
