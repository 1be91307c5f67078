//! The page service: Postgres' protocol on a port, one task for each connection.

mod backup;
mod command;
mod pagestream;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use auth_token::{Access, Login, Verifier};
use pg_types::TenantId;
use pg_wire::postgres_backend::Timeouts;
use pg_wire::pq_proto::SqlState;
use pg_wire::socket::SocketOptions;
use pg_wire::{AuthType, BeMessage, Handler, PostgresBackend, QueryError};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::metrics::GLOBAL;
use crate::tenants::Tenants;
use command::Command;

/// Connections at most; an idle one costs some 100 KiB. A compute has one for each of its backends.
const CONNECTIONS_MAX: usize = 10_000;
/// A client that takes no byte for so long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long to wait before accepting again after the system refused, say for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Everything that connections share.
pub struct PageService {
    tenants: Arc<Tenants>,
    max_batch_size: usize,
    /// Who is let in; `None`: anybody.
    verifier: Option<Arc<Verifier>>,
    connections: Arc<Semaphore>,
    next_connection_id: AtomicU64,
}

impl PageService {
    /// A service over the given tenants, answering up to `max_batch_size` requests with one flush; with a verifier for
    /// holders of tokens only.
    pub fn new(
        tenants: Arc<Tenants>,
        max_batch_size: usize,
        verifier: Option<Arc<Verifier>>,
    ) -> Arc<PageService> {
        Arc::new(PageService {
            tenants,
            max_batch_size,
            verifier,
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            next_connection_id: AtomicU64::new(1),
        })
    }

    /// Accepts connections until `shutdown`, then waits for those that are open to say good-bye.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, shutdown: CancellationToken) {
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.spawn(&tasks, stream, peer, shutdown.clone()),
                Err(error) => {
                    tracing::error!("page service cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        tasks.close();
        tasks.wait().await;
    }

    fn spawn(
        self: &Arc<Self>,
        tasks: &TaskTracker,
        stream: TcpStream,
        peer: SocketAddr,
        shutdown: CancellationToken,
    ) {
        let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else {
            tracing::warn!(%peer, "connection refused: there are {CONNECTIONS_MAX} already");
            return;
        };
        let id = self.next_connection_id.fetch_add(1, Ordering::Relaxed);
        let service = Arc::clone(self);
        let span = tracing::info_span!("page_service", id, %peer);
        let connection = async move {
            let _permit = permit;
            GLOBAL.connections.inc();
            if let Err(error) = service.connection(stream, &shutdown).await {
                if error.is_expected() {
                    tracing::debug!("connection ended: {error}");
                } else {
                    tracing::warn!("connection ended: {error}");
                }
            }
            GLOBAL.connections.dec();
        };
        tasks.spawn(connection.instrument(span));
    }

    async fn connection(
        self: &Arc<Self>,
        stream: TcpStream,
        shutdown: &CancellationToken,
    ) -> Result<(), QueryError> {
        pg_wire::socket::configure(&stream, &SocketOptions::default())
            .map_err(|error| QueryError::Disconnected(error.into()))?;
        // Computes keep idle connections for hours; dead ones are found by TCP keepalive.
        let timeouts = Timeouts { read: None, write: Some(WRITE_TIMEOUT) };
        let login = Login::new(self.verifier.as_ref());
        let auth = if login.wants_token() { AuthType::CleartextPassword } else { AuthType::Trust };
        let backend = PostgresBackend::new(stream, auth, timeouts);
        let mut connection = Connection { service: self, login };
        backend.run(&mut connection, shutdown).await
    }
}

struct Connection<'a> {
    service: &'a PageService,
    login: Login,
}

impl Connection<'_> {
    fn permit(&self, tenant: TenantId) -> Result<(), QueryError> {
        self.login.permit(Access::Pages(tenant)).map_err(|error| {
            tracing::warn!("command refused: {error}");
            unauthorized(&error)
        })
    }
}

fn unauthorized(error: &dyn std::error::Error) -> QueryError {
    QueryError::Unauthorized(error.to_string().into())
}

impl Handler<TcpStream> for Connection<'_> {
    /// The password is a token.
    fn check_password(&mut self, password: &[u8]) -> Result<(), QueryError> {
        self.login.show(password).map_err(|error| unauthorized(&error))
    }

    async fn process_query(
        &mut self,
        pgb: &mut PostgresBackend<TcpStream>,
        query: &str,
    ) -> Result<(), QueryError> {
        match Command::parse(query).map_err(|error| QueryError::Syntax(error.to_string().into()))? {
            Command::Pagestream { version, tenant, timeline } => {
                self.permit(tenant)?;
                let timeline = self.service.timeline(tenant, timeline)?;
                pagestream::serve(pgb, &timeline, version, self.service.max_batch_size).await
            }
            Command::Backup { kind, tenant, timeline, lsn } => {
                self.permit(tenant)?;
                let timeline = self.service.timeline(tenant, timeline)?;
                backup::serve(pgb, timeline, kind, lsn).await
            }
            Command::Set => {
                pgb.write_message_noflush(&BeMessage::CommandComplete("SET"))?;
                Ok(())
            }
        }
    }
}

impl PageService {
    fn timeline(
        &self,
        tenant: TenantId,
        timeline: pg_types::TimelineId,
    ) -> Result<Arc<crate::timeline::Timeline>, QueryError> {
        use crate::tenants::TenantError as E;
        self.tenants.timeline(tenant, timeline).map_err(|error| match error {
            E::TenantNotFound(_) | E::TimelineNotFound { .. } => {
                QueryError::NotFound(error.to_string().into())
            }
            other => QueryError::Sql {
                code: SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                message: other.to_string(),
            },
        })
    }
}
