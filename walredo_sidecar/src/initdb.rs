//! Making the dummy cluster.

use std::io;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use pg_launch::{PgInstall, SystemUser};
use tracing::info;

/// initdb takes about a second; on a machine this much slower something else is wrong.
const DEADLINE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(5);

/// Runs `initdb -D DIR -N` (L081). An error carries all that initdb printed (L082).
pub(crate) fn run_initdb(
    install: &PgInstall,
    dir: &Path,
    user: Option<&SystemUser>,
) -> io::Result<()> {
    info!("running initdb in {}", dir.display());
    // Files instead of pipes: a child that prints more than a pipe holds must not block.
    let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut command = install.command("initdb", user);
    command.arg("-D").arg(dir).arg("-N").stdin(Stdio::null());
    command.stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let mut child = command.spawn().map_err(|error| {
        io::Error::new(error.kind(), format!("failed to execute initdb: {error}"))
    })?;
    let status = wait(&mut child)?;
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "initdb failed\nstdout:\n{}\nstderr:\n{}",
        contents(stdout)?,
        contents(stderr)?
    )))
}

fn wait(child: &mut Child) -> io::Result<std::process::ExitStatus> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, "initdb timed out"));
        }
        std::thread::sleep(POLL);
    }
}

fn contents(mut file: std::fs::File) -> io::Result<String> {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake_install(initdb: Option<&str>) -> (tempfile::TempDir, PgInstall) {
        let root = tempfile::tempdir().unwrap();
        let bin = root.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        let script = |name: &str, text: &str| {
            test_programs::write_program(&bin.join(name), text).unwrap();
        };
        script("postgres", "exit 1");
        if let Some(text) = initdb {
            script("initdb", text);
        }
        let install = PgInstall::new(root.path()).unwrap();
        (root, install)
    }

    #[test]
    fn arguments_and_environment() {
        let (root, install) = fake_install(Some("echo \"$@\"\n/usr/bin/env\nexit 3\n"));
        let error = run_initdb(&install, Path::new("/data/dir"), None).unwrap_err().to_string();
        assert!(error.contains("-D /data/dir -N\n"), "{error}");
        let lib = root.path().join("lib");
        assert!(error.contains(&format!("\nLD_LIBRARY_PATH={}\n", lib.display())), "{error}");
        assert!(error.contains(&format!("\nDYLD_LIBRARY_PATH={}\n", lib.display())), "{error}");
        assert!(!error.contains("HOME="), "{error}");
    }

    #[test]
    fn failure_tells_what_was_printed() {
        let (_root, install) = fake_install(Some("echo out\necho why >&2\nexit 1\n"));
        let error = run_initdb(&install, Path::new("/d"), None).unwrap_err().to_string();
        assert_eq!(error, "initdb failed\nstdout:\nout\n\nstderr:\nwhy\n");
    }

    #[test]
    fn a_missing_program_is_an_execution_failure() {
        let (_root, install) = fake_install(None);
        let error = run_initdb(&install, Path::new("/d"), None).unwrap_err().to_string();
        assert!(error.starts_with("failed to execute initdb: "), "{error}");
    }
}
