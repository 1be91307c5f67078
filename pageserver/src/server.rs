//! The process: listeners, runtimes, background work, and how all of it ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use auth_token::{KeyError, Verifier};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::page_service::PageService;
use crate::tenants::{TenantError, Tenants};
use crate::{background, http};

/// How long connections and background work get to end.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Why a page server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A port cannot be used.
    #[error("could not listen on {address} ({key})")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The setting that names it.
        key: &'static str,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The runtime of the page service cannot be made.
    #[error("could not start the threads of the page service")]
    Runtime(#[source] std::io::Error),
    /// The keys of tokens cannot be used.
    #[error("auth_validation_public_key_path: {0}")]
    Keys(KeyError),
    /// The data directory cannot be used.
    #[error("could not load the data directory")]
    Load(#[source] TenantError),
}

/// Runs a page server until `shutdown` is cancelled, then flushes what is in memory.
///
/// # Errors
/// When it cannot start. A running server ends in good order only.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let server = Server::start(config).await?;
    shutdown.cancelled().await;
    server.stop().await;
    Ok(())
}

/// A running page server.
pub struct Server {
    tenants: Arc<Tenants>,
    pg_addr: SocketAddr,
    http_addr: SocketAddr,
    /// Ends the listeners and background work.
    shutdown: CancellationToken,
    tasks: TaskTracker,
    /// Threads of the page service; they block in reads and redo, which others must not suffer from.
    page_runtime: Option<Runtime>,
}

impl Server {
    /// Binds the ports, loads the data directory and starts serving.
    pub async fn start(config: Config) -> Result<Server, ServerError> {
        // First the ports: of two servers started by accident the second must not touch the data.
        let pg_listener = bind(config.listen_pg_addr, "listen_pg_addr").await?;
        let http_listener = bind(config.listen_http_addr, "listen_http_addr").await?;
        let keys = config.auth_validation_public_key_path.as_deref();
        let verifier =
            keys.map(Verifier::open).transpose().map_err(ServerError::Keys)?.map(Arc::new);
        let config = Arc::new(config);
        let shutdown = CancellationToken::new();
        let tenants = load(&config, &shutdown).await?;
        let (pg_addr, http_addr) = (local(&pg_listener), local(&http_listener));
        tracing::info!(%pg_addr, %http_addr, "page server is ready");

        let page_runtime = page_runtime(&config).map_err(ServerError::Runtime)?;
        let tasks = TaskTracker::new();
        let service =
            PageService::new(Arc::clone(&tenants), config.max_batch_size, verifier.clone());
        // A listener belongs to the runtime that it is made in.
        let pg_listener = rehome(pg_listener, &page_runtime).map_err(ServerError::Runtime)?;
        tasks.spawn_on(service.serve(pg_listener, shutdown.clone()), page_runtime.handle());
        let router = http::router(Arc::clone(&tenants), verifier);
        tasks.spawn(serve_http(http_listener, router, shutdown.clone()));
        tasks.spawn(background::tick(
            Arc::clone(&tenants),
            config.checkpoint_timeout,
            shutdown.clone(),
        ));
        let (flushing, until) = (Arc::clone(&tenants), shutdown.clone());
        tasks.spawn_blocking(move || background::flush_by_memory(&flushing, &until));
        tasks.close();
        let page_runtime = Some(page_runtime);
        Ok(Server { tenants, pg_addr, http_addr, shutdown, tasks, page_runtime })
    }

    /// Where the page service listens.
    pub fn pg_addr(&self) -> SocketAddr {
        self.pg_addr
    }

    /// Where the HTTP API listens.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// What it serves.
    pub fn tenants(&self) -> &Arc<Tenants> {
        &self.tenants
    }

    /// Stops listening, lets connections say good-bye, stops receiving WAL, flushes memory to disk.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        // A client that neither ends its request nor its connection does not keep memory from being flushed.
        if tokio::time::timeout(STOP_PATIENCE, self.tasks.wait()).await.is_err() {
            tracing::warn!("connections did not end within {STOP_PATIENCE:?}");
        }
        self.tenants.stop().await;
        self.end_runtime();
        tracing::info!("page server has stopped");
    }

    fn end_runtime(&mut self) {
        if let Some(runtime) = self.page_runtime.take() {
            // Waiting for it here would block a thread of another runtime, which panics.
            runtime.shutdown_background();
        }
    }
}

impl Drop for Server {
    /// As after a crash: nothing is flushed.
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.tenants.active_timelines().iter().for_each(|timeline| timeline.stop());
        self.end_runtime();
    }
}

async fn bind(address: SocketAddr, key: &'static str) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, key, source })
}

fn local(listener: &TcpListener) -> SocketAddr {
    // Of a bound socket this does not fail.
    listener.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)))
}

async fn load(
    config: &Arc<Config>,
    shutdown: &CancellationToken,
) -> Result<Arc<Tenants>, ServerError> {
    let (config, shutdown) = (Arc::clone(config), shutdown.clone());
    tokio::task::spawn_blocking(move || Tenants::load(config, shutdown))
        .await
        .unwrap_or_else(|error| Err(TenantError::Internal(error.to_string())))
        .map_err(ServerError::Load)
}

fn page_runtime(config: &Config) -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.page_service_threads)
        .thread_name("page-service")
        .enable_all()
        .build()
}

fn rehome(listener: TcpListener, runtime: &Runtime) -> std::io::Result<TcpListener> {
    let listener = listener.into_std()?;
    let _guard = runtime.enter();
    TcpListener::from_std(listener)
}

async fn serve_http(listener: TcpListener, router: axum::Router, shutdown: CancellationToken) {
    if let Err(error) = http::serve(listener, router, shutdown).await {
        tracing::error!("HTTP service ended: {error}");
    }
}
