#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod backup;
pub mod command;
pub mod config;
pub mod control_file;
pub mod copy;
pub mod digest;
pub mod durable;
pub mod feedback;
pub mod http;
pub mod metrics;
pub mod peers;
pub mod pg_service;
pub mod receive_wal;
pub mod send_wal;
pub mod threads;
pub mod timeline;
pub mod timelines;
pub mod wal_storage;

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use auth_token::{KeyError, Verifier};
use tokio::net::TcpListener;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use backup::{StoreError, Uploads, WalStore};
pub use config::Config;
use durable::{Context, FileError};
use http::Api;
use metrics::Metrics;
use pg_service::PgService;
use timelines::{Timelines, TimelinesError};

/// Why a safekeeper cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Metrics cannot be registered.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The data directory cannot be used.
    #[error(transparent)]
    Timelines(#[from] TimelinesError),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The object store for WAL cannot be used.
    #[error("remote_storage: {0}")]
    Store(#[from] StoreError),
    /// The keys of tokens cannot be used.
    #[error("auth_validation_public_key_path: {0}")]
    Keys(#[from] KeyError),
    /// Another process works on the data directory.
    #[error("{} is in use by another safekeeper process", .0.display())]
    Locked(PathBuf),
    /// A port cannot be opened.
    #[error("could not listen on {address} ({key}): {source}")]
    Listen {
        /// Which setting names it.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
    /// The HTTP server failed.
    #[error("HTTP server: {0}")]
    Http(std::io::Error),
    /// A task panicked.
    #[error("a service ended unexpectedly: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// A safekeeper whose ports are open and whose timelines are loaded.
#[derive(Debug)]
pub struct Safekeeper {
    config: Arc<Config>,
    timelines: Arc<Timelines>,
    metrics: Metrics,
    /// Where WAL is backed up.
    store: Option<WalStore>,
    /// Who is let in; `None`: anybody.
    verifier: Option<Arc<Verifier>>,
    pg_listener: TcpListener,
    http_listener: TcpListener,
    /// Ends work on timelines, after the connections have ended.
    stop_timelines: CancellationToken,
    /// Held, so that no second process works on the same files.
    _lock: File,
}

/// Runs a safekeeper until `shutdown` is cancelled.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), RunError> {
    Safekeeper::start(config).await?.run(shutdown).await
}

impl Safekeeper {
    /// Locks the data directory, loads the timelines and opens the ports.
    pub async fn start(config: Config) -> Result<Safekeeper, RunError> {
        let metrics = Metrics::new()?;
        let stop_timelines = CancellationToken::new();
        durable::create_dir_all(&config.data_dir)?;
        let lock = lock_data_dir(&config.data_dir)?;
        let keys = config.auth_validation_public_key_path.as_deref();
        let verifier = keys.map(Verifier::open).transpose()?.map(Arc::new);
        let runtime = tokio::runtime::Handle::current();
        let store = config.remote_storage.as_ref();
        let store = store.map(|settings| WalStore::open(settings, runtime)).transpose()?;
        let pg_listener = listen("listen_pg_addr", config.listen_pg_addr).await?;
        let http_listener = listen("listen_http_addr", config.listen_http_addr).await?;
        let (data_dir, id) = (config.data_dir.clone(), config.id);
        let (loading_metrics, loading_stop) = (metrics.clone(), stop_timelines.clone());
        let timelines = tokio::task::spawn_blocking(move || {
            Timelines::load(&data_dir, id, loading_metrics, loading_stop)
        })
        .await??;
        Ok(Safekeeper {
            config: Arc::new(config),
            timelines: Arc::new(timelines),
            metrics,
            store,
            verifier,
            pg_listener,
            http_listener,
            stop_timelines,
            _lock: lock,
        })
    }

    /// Addresses of the Postgres-protocol port and of HTTP, for who asked for port 0.
    pub fn addresses(&self) -> std::io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.pg_listener.local_addr()?, self.http_listener.local_addr()?))
    }

    /// Serves until `shutdown` is cancelled; then ends the connections, saves what is saved late, and returns.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RunError> {
        // A service that ends early takes the others with it.
        let stop = shutdown.child_token();
        let service = PgService {
            config: Arc::clone(&self.config),
            timelines: Arc::clone(&self.timelines),
            metrics: self.metrics.clone(),
            store: self.store.clone(),
            verifier: self.verifier.clone(),
        };
        let uploads = self.store.clone().map(|store| {
            let timeout = self.config.partial_backup_timeout;
            let uploads = Uploads::new(store, self.config.id, timeout, self.metrics.clone());
            tokio::spawn(uploads.run(Arc::clone(&self.timelines), stop.clone()))
        });
        let has_store = self.store.is_some();
        let api = Api {
            id: self.config.id,
            timelines: Arc::clone(&self.timelines),
            metrics: self.metrics,
            store: self.store,
            verifier: self.verifier,
            own_token: self.config.own_token(),
        };
        let pg = tokio::spawn(service.serve(self.pg_listener, stop.clone()));
        let http = axum::serve(self.http_listener, http::router(api))
            .with_graceful_shutdown(stop.clone().cancelled_owned());
        let http = tokio::spawn(http.into_future());
        let maintenance = tokio::spawn(maintain(
            Arc::clone(&self.timelines),
            Arc::clone(&self.config),
            stop.clone(),
        ));
        let peers = tokio::spawn(peers::run(
            Arc::clone(&self.timelines),
            Arc::clone(&self.config),
            stop.clone(),
        ));
        tracing::info!(id = %self.config.id, "safekeeper is ready");
        stop.cancelled().await;
        pg.await?;
        maintenance.await?;
        peers.await?;
        if let Some(uploads) = uploads {
            uploads.await?;
        }
        save_all(&self.timelines, has_store).await;
        self.stop_timelines.cancel();
        // Open keep-alive connections would hold it up for ever; nothing is lost by cutting them.
        http.abort();
        match http.await {
            Ok(result) => result.map_err(RunError::Http),
            Err(error) if error.is_cancelled() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

async fn maintain(timelines: Arc<Timelines>, config: Arc<Config>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(config.maintenance_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => save_all(&timelines, config.remote_storage.is_some()).await,
        }
    }
}

/// Failures are logged where they happen and quarantine their timeline.
async fn save_all(timelines: &Timelines, has_store: bool) {
    for (_, timeline) in timelines.list() {
        if let Ok(timeline) = timeline {
            drop(timeline.maintain(has_store).await);
        }
    }
}

async fn listen(key: &'static str, address: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(address).await.map_err(|source| RunError::Listen { key, address, source })
}

fn lock_data_dir(data_dir: &Path) -> Result<File, RunError> {
    let path = data_dir.join("safekeeper.lock");
    let file = File::create(&path).context("create", &path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(RunError::Locked(data_dir.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => {
            Err(FileError { action: "lock", path, source }.into())
        }
    }
}
