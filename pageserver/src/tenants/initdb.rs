//! Making the initial cluster of a root timeline.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pg_launch::{LaunchError, PgInstall, SystemUser};

/// What `initdb` is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitdbOptions {
    /// Superuser.
    pub superuser: String,
    /// Locale of the cluster.
    pub locale: String,
}

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub enum InitdbError {
    /// No installation for that version.
    #[error("no PostgreSQL installation is configured for version {version} (pg_install_dirs)")]
    NoInstall {
        /// Major version.
        version: u32,
    },
    /// The program cannot be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The program cannot be started, or not waited for.
    #[error("could not run initdb")]
    Run(#[source] io::Error),
    /// The program failed.
    #[error("initdb failed with {status}: {output}")]
    Failed {
        /// Exit status.
        status: String,
        /// End of what it printed.
        output: String,
    },
    /// The directory cannot be prepared.
    #[error("could not prepare {path} for initdb")]
    Prepare {
        /// The directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// Bytes of output that an error message quotes.
const QUOTED_OUTPUT: usize = 2000;

/// Runs `initdb` into `pgdata`, which must not exist. Blocks for a second or more.
///
/// No checksums: pages are checked by the storage below, and a compute's local disk is not the truth. No sync:
/// the directory is read once and thrown away.
pub fn run(install: &PgInstall, pgdata: &Path, options: &InitdbOptions) -> Result<(), InitdbError> {
    let user = pg_launch::unprivileged_user()?;
    prepare(pgdata, user.as_ref())?;
    let mut command = install.command("initdb", user.as_ref());
    command
        .arg("--pgdata")
        .arg(pgdata)
        .args(["--username", &options.superuser])
        .args(["--auth", "trust", "--encoding", "UTF8", "--no-sync", "--no-instructions"])
        .args(locale_arguments(&options.locale))
        .stdin(Stdio::null());
    if let Some(parent) = pgdata.parent() {
        command.current_dir(parent);
    }
    execute(command)
}

fn execute(mut command: Command) -> Result<(), InitdbError> {
    let output = command.output().map_err(InitdbError::Run)?;
    if output.status.success() {
        return Ok(());
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    let start = text.ceil_char_boundary(text.len().saturating_sub(QUOTED_OUTPUT));
    Err(InitdbError::Failed {
        status: output.status.to_string(),
        output: text.split_off(start).trim().to_owned(),
    })
}

/// `C` and `C.UTF-8` come from Postgres itself, whose ordering does not change with the system's library.
fn locale_arguments(locale: &str) -> Vec<String> {
    let mut arguments = vec![format!("--locale={locale}")];
    if matches!(locale, "C" | "C.UTF-8") {
        arguments.push("--locale-provider=builtin".to_owned());
        arguments.push(format!("--builtin-locale={locale}"));
    }
    arguments
}

/// Makes the directory and gives it to the user that `initdb` runs as.
fn prepare(pgdata: &Path, user: Option<&SystemUser>) -> Result<(), InitdbError> {
    let failed = |source| InitdbError::Prepare { path: pgdata.to_owned(), source };
    std::fs::create_dir(pgdata).map_err(failed)?;
    if let Some(user) = user {
        user.give(pgdata)?;
        user.check_searchable(pgdata)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builtin_provider_is_used_where_it_can() {
        assert_eq!(
            locale_arguments("C.UTF-8"),
            ["--locale=C.UTF-8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        );
        assert_eq!(locale_arguments("de_DE.UTF-8"), ["--locale=de_DE.UTF-8"]);
    }

    #[test]
    fn a_failure_quotes_the_end_of_the_output() {
        let mut command = Command::new("sh");
        command.args(["-c", "for i in 1 2 3; do printf '%01000d' 0; done; echo cause >&2; exit 7"]);
        let error = execute(command).unwrap_err();
        let InitdbError::Failed { status, output } = error else { panic!("{error}") };
        assert!(status.contains('7') && output.ends_with("cause"), "{status} {output}");
        assert!(output.len() <= QUOTED_OUTPUT);
    }
}
