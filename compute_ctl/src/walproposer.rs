//! The walproposer: its configuration for this compute, and what its exit codes say.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use pg_types::Lsn;
use tokio_util::sync::CancellationToken;
use walproposer::{ComputeConfig, HostedEnd, Outcome, WalproposerError};

use crate::config::{Config, SUPERUSER};

/// The walproposer's configuration; without a start position it can only [`sync`]. The token of a walproposer that the compute
/// hosts is in the compute's environment already, and in no file.
fn configuration(config: &Config, start_lsn: Option<Lsn>) -> walproposer::Config {
    walproposer::Config {
        tenant_id: config.tenant_id,
        timeline_id: config.timeline_id,
        safekeepers: config.safekeepers.iter().map(|node| node.address.clone()).collect(),
        mconf: Default::default(),
        auth_token: config.auth_token.clone().filter(|_| start_lsn.is_none()),
        protocol_version: config.protocol_with_safekeepers(),
        compute: start_lsn.map(|start_lsn| ComputeConfig {
            pgdata: config.pgdata.clone(),
            socket_dir: config.socket_dir(),
            port: config.port,
            user: SUPERUSER.to_owned(),
            start_lsn,
            hosts: true,
        }),
    }
}

/// Where WAL ends, as a quorum of the safekeepers has it (L300).
pub async fn sync(config: &Config, shutdown: CancellationToken) -> Result<Lsn, WalproposerError> {
    walproposer::sync(&configuration(config, None), shutdown).await
}

fn configuration_path(config: &Config) -> PathBuf {
    config.status_file.with_file_name("walproposer.toml")
}

/// Writes the configuration of this compute's walproposer beside the status file; its path.
pub fn write_configuration(config: &Config, start_lsn: Lsn) -> std::io::Result<PathBuf> {
    let path = configuration_path(config);
    replace_toml(&path, &configuration(config, Some(start_lsn)))?;
    Ok(path)
}

/// Gives a running compute's walproposer other safekeepers to begin with, should it have to start again. The one that runs
/// learns of them by itself.
///
/// # Errors
/// When the file cannot be written; one that is not there is not missed.
pub fn update_safekeepers(config: &Config) -> std::io::Result<()> {
    let path = configuration_path(config);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        result => result?,
    };
    let mut written: walproposer::Config = toml::from_str(&text).map_err(std::io::Error::other)?;
    written.safekeepers = configuration(config, None).safekeepers;
    replace_toml(&path, &written)
}

/// Whoever reads the file sees the old or the new one. It means nothing after a crash of the machine.
fn replace_toml(path: &Path, config: &walproposer::Config) -> std::io::Result<()> {
    let text = toml::to_string(config).map_err(std::io::Error::other)?;
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, text)?;
    std::fs::rename(&temporary, path)
}

/// Runs a walproposer on a file of [`write_configuration`]'s: has the compute run it, and stands for it as a process of its own;
/// or, for a compute that cannot, is it.
pub async fn run_walproposer(path: &Path, shutdown: CancellationToken) -> WalproposerExit {
    let read = || -> std::io::Result<walproposer::Config> {
        toml::from_str(&std::fs::read_to_string(path)?).map_err(std::io::Error::other)
    };
    let config = match read() {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "could not read the configuration");
            return WalproposerExit::Failed;
        }
    };
    if config.compute.as_ref().is_some_and(|compute| compute.hosts) {
        return match walproposer::run_hosted(path, &config, shutdown).await {
            Ok(end) => WalproposerExit::from(end),
            Err(error) => {
                tracing::error!("{error}");
                WalproposerExit::Failed
            }
        };
    }
    match walproposer::run(&config, shutdown).await {
        Ok(outcome) => WalproposerExit::from(outcome),
        Err(error) => {
            tracing::error!("the walproposer failed: {error:#}");
            WalproposerExit::Failed
        }
    }
}

/// How a walproposer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalproposerExit {
    /// Its PostgreSQL ended the stream, or it was told to stop.
    Stopped,
    /// Another compute was elected.
    Fenced,
    /// The safekeepers' WAL does not continue what this compute started from.
    Diverged,
    /// Anything else: a crash, an error that may go away.
    Failed,
}

impl From<Outcome> for WalproposerExit {
    fn from(outcome: Outcome) -> WalproposerExit {
        tracing::info!(?outcome, "the walproposer ends");
        match outcome {
            Outcome::ComputeStopped { .. } | Outcome::Cancelled => WalproposerExit::Stopped,
            Outcome::Fenced { .. } => WalproposerExit::Fenced,
            Outcome::Diverged { .. } => WalproposerExit::Diverged,
        }
    }
}

impl From<HostedEnd> for WalproposerExit {
    fn from(end: HostedEnd) -> WalproposerExit {
        match end {
            HostedEnd::Stopped => WalproposerExit::Stopped,
            HostedEnd::Fenced => WalproposerExit::Fenced,
            HostedEnd::Diverged => WalproposerExit::Diverged,
        }
    }
}

impl WalproposerExit {
    /// Exit code of the process.
    pub fn code(self) -> u8 {
        match self {
            WalproposerExit::Stopped => 0,
            WalproposerExit::Failed => 1,
            WalproposerExit::Fenced => 10,
            WalproposerExit::Diverged => 11,
        }
    }

    /// What the exit of a child says.
    pub fn from_status(status: ExitStatus) -> WalproposerExit {
        let all = [WalproposerExit::Stopped, WalproposerExit::Fenced, WalproposerExit::Diverged];
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        all.into_iter().find(|exit| Some(exit.code()) == code).unwrap_or(WalproposerExit::Failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::example;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn the_protocol_version_is_handed_on() {
        for version in [walproposer::ProtocolVersion::V2, walproposer::ProtocolVersion::V3] {
            let config = Config { safekeeper_protocol: version, ..example() };
            let text = toml::to_string(&configuration(&config, Some(Lsn(1)))).unwrap();
            assert!(text.contains(&format!("protocol_version = {version}\n")), "{text}");
        }
    }

    #[test]
    fn codes_round_trip_and_a_signal_is_a_failure() {
        for exit in [WalproposerExit::Stopped, WalproposerExit::Fenced, WalproposerExit::Diverged] {
            let status = ExitStatus::from_raw(i32::from(exit.code()) << 8);
            assert_eq!(WalproposerExit::from_status(status), exit);
        }
        assert_eq!(WalproposerExit::from_status(ExitStatus::from_raw(9)), WalproposerExit::Failed);
        let other = ExitStatus::from_raw(101 << 8);
        assert_eq!(WalproposerExit::from_status(other), WalproposerExit::Failed);
    }
}
