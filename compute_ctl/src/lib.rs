#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod basebackup;
mod carried;
mod catalog;
pub mod config;
mod orphan;
mod pgdata;
mod postgresql_conf;
mod status;
mod supervise;
mod walproposer;

use std::path::Path;

use pg_launch::{PgInstall, SystemUser};
use pg_types::Lsn;
use tokio_util::sync::CancellationToken;

pub use crate::config::{Config, ConfigError, SUPERUSER, SafekeeperAddress};
pub use crate::orphan::end_orphan;
pub use crate::status::{ComputeState, ComputeStatus, Timing};
pub use crate::supervise::SuperviseError;
pub use crate::walproposer::{WalproposerExit, run_walproposer, update_safekeepers};

use crate::status::Stopwatch;
use crate::supervise::WalproposerCommand;

/// Why a compute could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// There is no PostgreSQL, or nobody to run it as.
    #[error(transparent)]
    Launch(#[from] pg_launch::LaunchError),
    /// The data directory could not be made.
    #[error(transparent)]
    Pgdata(#[from] pgdata::PgdataError),
    /// The safekeepers did not say where WAL ends.
    #[error("the safekeepers did not agree on where to start")]
    Sync(#[source] ::walproposer::WalproposerError),
    /// The page server gave no basebackup.
    #[error(transparent)]
    Basebackup(#[from] basebackup::BasebackupError),
    /// A child failed.
    #[error(transparent)]
    Supervise(#[from] SuperviseError),
    /// The catalogs could not be prepared.
    #[error("could not prepare the database")]
    Catalog(#[source] tokio_postgres::Error),
    /// A file beside the data directory could not be written.
    #[error("could not write the status or the walproposer's configuration")]
    Status(#[source] std::io::Error),
}

/// Runs a compute until its PostgreSQL ends: by `shutdown` (then with a clean stop whose last record is on the
/// safekeepers), by itself, or because another compute was elected.
///
/// `program` is this binary, which is a walproposer as well: `PROGRAM walproposer -c FILE`.
///
/// Call it on the thread that lives as long as the process: the children are told when that thread ends.
pub async fn run(
    config: Config,
    program: &Path,
    shutdown: CancellationToken,
) -> Result<(), ComputeError> {
    let install = PgInstall::new(&config.pg_install)?;
    let user = pg_launch::unprivileged_user()?;
    let result = start_and_watch(&config, &install, user.as_ref(), program, shutdown).await;
    let last = ComputeStatus {
        state: ComputeState::Stopped,
        start_lsn: Lsn::INVALID,
        timings_ms: Vec::new(),
    };
    // Whoever watches sees the process end as well; the result is what counts.
    if let Err(error) = last.write(&config.status_file) {
        tracing::warn!(%error, "could not write the status file");
    }
    result
}

async fn start_and_watch(
    config: &Config,
    install: &PgInstall,
    user: Option<&SystemUser>,
    program: &Path,
    shutdown: CancellationToken,
) -> Result<(), ComputeError> {
    let mut stopwatch = Stopwatch::start();
    end_orphan(&config.pgdata);
    carried::take_out(&config.pgdata);
    pgdata::wipe(&config.pgdata)?;
    stopwatch.lap("wipe");
    let start_lsn =
        walproposer::sync(config, shutdown.clone()).await.map_err(ComputeError::Sync)?;
    stopwatch.lap("safekeeper sync");
    basebackup::fetch(config, start_lsn, &config.pgdata).await?;
    stopwatch.lap("basebackup");
    carried::put_in(&config.pgdata);
    pgdata::configure(config, user)?;
    let command = WalproposerCommand {
        program: program.to_owned(),
        config_file: walproposer::write_configuration(config, start_lsn)
            .map_err(ComputeError::Status)?,
    };
    stopwatch.lap("configure");
    let mut postgres = supervise::start_postgres(config, install, user)?;
    supervise::wait_ready(&mut postgres, config).await?;
    stopwatch.lap("postgres");
    let walproposer = supervise::start_walproposer(&command)?;
    let watch = supervise::watch(config, postgres, walproposer, &command, shutdown.clone());
    let announce = async {
        catalog::prepare(config).await.map_err(ComputeError::Catalog)?;
        stopwatch.lap("catalog");
        let status = ComputeStatus {
            state: ComputeState::Running,
            start_lsn,
            timings_ms: stopwatch.into_timings(),
        };
        status.write(&config.status_file).map_err(ComputeError::Status)
    };
    let (watched, announced) = tokio::join!(watch, async {
        let result = announce.await;
        if result.is_err() {
            shutdown.cancel();
        }
        result
    });
    // A compute that went down explains better why the catalogs could not be prepared than the lost connection.
    watched?;
    announced
}
