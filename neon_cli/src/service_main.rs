//! The processes that this binary also is: each runs one library until a signal stops it.

use std::future::Future;
use std::path::Path;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::error::{CliError, Result};
use crate::process::Service;

/// Runs a page server.
pub fn pageserver(config_path: &Path) -> Result<ExitCode> {
    let config = pageserver::config::Config::load(config_path).map_err(failed)?;
    let _lock = lock("page server", config_path, "pageserver")?;
    serve(|shutdown| pageserver::run(config, shutdown))
}

/// Runs a safekeeper.
pub fn safekeeper(config_path: &Path) -> Result<ExitCode> {
    let config = safekeeper::config::Config::load(config_path).map_err(failed)?;
    let _lock = lock(&format!("safekeeper {}", config.id), config_path, "safekeeper")?;
    serve(|shutdown| safekeeper::run(config, shutdown))
}

/// The lock of the process whose configuration file this is: its pid file stands beside it.
fn lock(name: &str, config_path: &Path, stem: &str) -> Result<crate::process::PidLock> {
    let dir = config_path.parent().unwrap_or(Path::new("."));
    Service::in_dir(name, dir, stem).lock_pid_file()
}

/// Starts logging and a runtime, runs `start`, and cancels it at the first SIGTERM or SIGINT.
fn serve<F, E>(start: impl FnOnce(CancellationToken) -> F) -> Result<ExitCode>
where
    F: Future<Output = std::result::Result<(), E>>,
    E: std::fmt::Display,
{
    init_logging();
    leave_the_processor_to_the_compute();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::failed(format!("could not start the runtime: {error}")))?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        cancel_on_signal(shutdown.clone())?;
        start(shutdown).await.map_err(|error| CliError::failed(format!("{error:#}")))?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Without this, on a machine whose processors are all busy, each commit's WAL interrupts whoever runs, at every station
/// of its way; with it, what has come together meanwhile goes on together.
fn leave_the_processor_to_the_compute() {
    if let Err(error) = pg_launch::ffi::take_turns() {
        tracing::warn!(%error, "could not choose the scheduling policy");
    }
}

/// Cancels `shutdown` at SIGTERM or SIGINT.
pub fn cancel_on_signal(shutdown: CancellationToken) -> Result<()> {
    let listen = |kind| {
        signal(kind).map_err(|error| CliError::failed(format!("could not handle signals: {error}")))
    };
    let (mut terminate, mut interrupt) =
        (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        shutdown.cancel();
    });
    Ok(())
}

/// Logs to standard error; `RUST_LOG` chooses what, `info` by default.
pub fn init_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// An error with its causes.
pub fn failed(error: impl std::error::Error) -> CliError {
    CliError::failed(crate::error::with_causes(&error))
}

/// Runs a walproposer; its exit code tells the compute's supervisor why it ended.
pub fn walproposer(config_path: &Path) -> Result<ExitCode> {
    init_logging();
    leave_the_processor_to_the_compute();
    let runtime = single_threaded()?;
    let config_path = config_path.to_owned();
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        cancel_on_signal(shutdown.clone())?;
        // A task: what `block_on` itself runs costs a look at all sockets each time it hands something to a task.
        let run = async move { compute_ctl::run_walproposer(&config_path, shutdown).await };
        let exit = tokio::spawn(run).await.map_err(failed)?;
        Ok(ExitCode::from(exit.code()))
    })
}

/// Runs a compute until its PostgreSQL ends or a signal stops it.
pub fn compute(config_path: &Path) -> Result<ExitCode> {
    init_logging();
    let config = compute_ctl::Config::load(config_path).map_err(failed)?;
    let name = format!("endpoint \"{}\"", config.endpoint_id);
    let _lock = lock(&name, config_path, "compute")?;
    let program = std::env::current_exe()
        .map_err(|error| CliError::failed(format!("could not find this program: {error}")))?;
    let runtime = single_threaded()?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        cancel_on_signal(shutdown.clone())?;
        compute_ctl::run(config, &program, shutdown).await.map_err(failed)?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Children get a signal when the thread that started them ends, so a compute's supervisor stays on the main
/// thread.
pub fn single_threaded() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::failed(format!("could not start the runtime: {error}")))
}
