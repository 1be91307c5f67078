//! A safekeeper alone, for tests and for whoever wants no more than that: `safekeeper CONFIG_FILE`.
//!
//! Prints `listening PG_ADDRESS HTTP_ADDRESS` once it serves, logs to standard error, ends at SIGTERM or SIGINT.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use safekeeper::{Config, Safekeeper};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

type AnyError = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("usage: safekeeper CONFIG_FILE");
        return ExitCode::from(2);
    };
    match run(Path::new(&path)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("safekeeper: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(path: &Path) -> Result<(), AnyError> {
    let config = Config::load(path)?;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let shutdown = CancellationToken::new();
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::spawn({
            let shutdown = shutdown.clone();
            async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                shutdown.cancel();
            }
        });
        let safekeeper = Safekeeper::start(config).await?;
        let (pg, http) = safekeeper.addresses()?;
        writeln!(std::io::stdout(), "listening {pg} {http}")?;
        Ok(safekeeper.run(shutdown).await?)
    })
}
