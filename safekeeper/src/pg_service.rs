//! The Postgres-protocol port: accepts connections and runs their commands.

use std::sync::Arc;
use std::time::Duration;

use auth_token::{Access, Login, Verifier};
use pg_types::Lsn;
use pg_wire::postgres_backend::Timeouts;
use pg_wire::pq_proto::{BeMessage, RowDescriptor, SqlState, StartupParams, TypeOid};
use pg_wire::socket::{self, SocketOptions};
use pg_wire::{AuthType, Handler, PostgresBackend, QueryError};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;
use wal_consensus::version::{ProtocolVersion, UnknownVersion};

use crate::backup::{BackedUpWal, WalStore};
use crate::command::Command;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::peers::PeerStatus;
use crate::receive_wal::receive_wal;
use crate::send_wal::{Subscription, send_wal};
use crate::threads;
use crate::timeline::{TenantTimelineId, Timeline, TimelineError};
use crate::timelines::{Timelines, TimelinesError};

/// Pause after a failed accept: when descriptors run out, trying at once would only burn a core.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

type Backend = PostgresBackend<TcpStream>;

/// What every connection needs.
#[derive(Debug, Clone)]
pub struct PgService {
    /// Settings.
    pub config: Arc<Config>,
    /// The timelines.
    pub timelines: Arc<Timelines>,
    /// Where to count.
    pub metrics: Metrics,
    /// Where WAL is that has been removed here.
    pub store: Option<WalStore>,
    /// Who is let in; `None`: anybody.
    pub verifier: Option<Arc<Verifier>>,
}

impl PgService {
    /// Accepts connections until `shutdown`, then waits until all have ended.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) {
        let slots = Arc::new(Semaphore::new(self.config.max_connections));
        let connections = TaskTracker::new();
        let mut cid: u64 = 0;
        let accepting = async {
            loop {
                // Never closed, so this cannot fail; if it did, nothing more would be accepted.
                let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
                let started = match listener.accept().await {
                    Ok((stream, peer)) => {
                        cid += 1;
                        let (service, shutdown) = (self.clone(), shutdown.clone());
                        let held = (slot, connections.token());
                        let serve = move |stream| async move {
                            let _held = held;
                            let span = tracing::info_span!("", cid);
                            let connection = async {
                                tracing::debug!(%peer, "accepted");
                                service.connection(stream, shutdown).await;
                            };
                            connection.instrument(span).await;
                        };
                        threads::serve_connection(cid, stream, serve)
                    }
                    Err(error) => Err(error),
                };
                if let Err(error) = started {
                    tracing::warn!("could not accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        };
        tokio::select! {
            () = accepting => {}
            () = shutdown.cancelled() => {}
        }
        connections.close();
        connections.wait().await;
    }

    async fn connection(self, stream: TcpStream, shutdown: CancellationToken) {
        match self.session(stream, &shutdown).await {
            Ok(()) => {}
            Err(error) if error.is_expected() => tracing::info!("connection ended: {error}"),
            Err(error) => tracing::warn!("connection failed: {error}"),
        }
    }

    async fn session(
        self,
        stream: TcpStream,
        shutdown: &CancellationToken,
    ) -> Result<(), QueryError> {
        socket::configure(&stream, &SocketOptions::default()).map_err(QueryError::other)?;
        let timeout = Some(self.config.connection_timeout);
        let timeouts = Timeouts { read: timeout, write: timeout };
        let login = Login::new(self.verifier.as_ref());
        let auth = if login.wants_token() { AuthType::CleartextPassword } else { AuthType::Trust };
        let backend = PostgresBackend::new(stream, auth, timeouts);
        let application_name = String::new();
        let mut session = Session { service: self, login, id: None, application_name };
        backend.run(&mut session, shutdown).await
    }
}

/// State of one connection.
struct Session {
    service: PgService,
    login: Login,
    /// Which timeline it is about, from the startup options.
    id: Option<TenantTimelineId>,
    application_name: String,
}

impl From<TimelinesError> for QueryError {
    fn from(error: TimelinesError) -> QueryError {
        match error {
            TimelinesError::NotFound(_) | TimelinesError::Deleted(_) => {
                QueryError::NotFound(error.to_string().into())
            }
            TimelinesError::Timeline(TimelineError::Stopping) => QueryError::Reconnect,
            TimelinesError::Timeline(TimelineError::Quarantined(_)) => {
                QueryError::Sql { code: SqlState::DATA_CORRUPTED, message: error.to_string() }
            }
            other => QueryError::other(other),
        }
    }
}

impl Handler<TcpStream> for Session {
    fn startup(&mut self, _pgb: &mut Backend, params: &StartupParams) -> Result<(), QueryError> {
        self.application_name = params.get("application_name").unwrap_or_default().to_owned();
        let id = |name: &str| params.option(name).ok_or_else(|| missing_option(name));
        // A connection without them may still ask questions that need no timeline.
        if params.option("tenant_id").is_some() || params.option("timeline_id").is_some() {
            let tenant_id = id("tenant_id")?.parse().map_err(invalid_option)?;
            let timeline_id = id("timeline_id")?.parse().map_err(invalid_option)?;
            self.id = Some(TenantTimelineId { tenant_id, timeline_id });
        }
        Ok(())
    }

    /// The password is a token.
    fn check_password(&mut self, password: &[u8]) -> Result<(), QueryError> {
        self.login.show(password).map_err(|error| unauthorized(&error))
    }

    async fn process_query(&mut self, pgb: &mut Backend, query: &str) -> Result<(), QueryError> {
        let command = query
            .parse::<Command>()
            .map_err(|error| QueryError::Syntax(error.to_string().into()))?;
        let id = self.id.ok_or_else(|| missing_option("tenant_id"))?;
        // Every command is about WAL.
        self.login.permit(Access::Wal(id.tenant_id)).map_err(|error| {
            tracing::warn!("command refused: {error}");
            unauthorized(&error)
        })?;
        match command {
            Command::StartWalPush { proto_version, allow_timeline_creation: _ } => {
                let version = ProtocolVersion::try_from(proto_version).map_err(unknown_version)?;
                // A timeline that a compute could create would begin at a position nobody has agreed upon: they
                // are created over HTTP only, whatever the compute allows.
                let timeline = self.timeline(id)?;
                let _working = timeline.enter().map_err(TimelinesError::from)?;
                receive_wal(pgb, &timeline, version, &self.service.metrics).await
            }
            Command::StartReplication { start_lsn, term } => {
                let timeline = self.timeline(id)?;
                let _working = timeline.enter().map_err(TimelinesError::from)?;
                let subscription = Subscription {
                    start_lsn,
                    term,
                    application_name: self.application_name.clone(),
                    keepalive_interval: self.service.config.keepalive_interval,
                };
                let (store, metrics) = (self.service.store.clone(), &self.service.metrics);
                let wal = BackedUpWal::new(&timeline, store, metrics.clone());
                send_wal(pgb, &timeline, subscription, wal, metrics).await
            }
            Command::IdentifySystem => {
                let timeline = self.timeline(id)?;
                let state = timeline.state().await.map_err(TimelinesError::from)?;
                identify_system(pgb, state.system_id, timeline.progress().ladder.commit_lsn)
            }
            Command::TimelineStatus => match self.timeline(id) {
                Ok(timeline) => {
                    let state = timeline.copy_state().await.map_err(TimelinesError::from)?;
                    let status = PeerStatus::new(&state, timeline.feedback().shards());
                    timeline_status(pgb, Some(&status))
                }
                Err(QueryError::NotFound(_)) => timeline_status(pgb, None),
                Err(error) => Err(error),
            },
        }
    }
}

impl Session {
    fn timeline(&self, id: TenantTimelineId) -> Result<Arc<Timeline>, QueryError> {
        Ok(self.service.timelines.get(id)?)
    }
}

fn unauthorized(error: &dyn std::error::Error) -> QueryError {
    QueryError::Unauthorized(error.to_string().into())
}

fn missing_option(name: &str) -> QueryError {
    let message = format!("startup option {name} is missing");
    QueryError::Sql { code: SqlState::INVALID_PARAMETER_VALUE, message }
}

fn unknown_version(error: UnknownVersion) -> QueryError {
    QueryError::Sql { code: SqlState::FEATURE_NOT_SUPPORTED, message: error.to_string() }
}

fn invalid_option(error: pg_types::ids::IdParseError) -> QueryError {
    QueryError::Sql { code: SqlState::INVALID_PARAMETER_VALUE, message: error.to_string() }
}

/// Answer of `IdentifySystem` (`walsender.c`).
fn identify_system(pgb: &mut Backend, system_id: u64, xlogpos: Lsn) -> Result<(), QueryError> {
    let column = |name, type_oid| RowDescriptor { name, type_oid };
    pgb.write_message_noflush(&BeMessage::RowDescription(&[
        column("systemid", TypeOid::Text),
        column("timeline", TypeOid::Int8),
        column("xlogpos", TypeOid::Text),
        column("dbname", TypeOid::Text),
    ]))?;
    let (systemid, xlogpos) = (system_id.to_string(), xlogpos.to_string());
    let row = [Some(systemid.as_bytes()), Some(b"1"), Some(xlogpos.as_bytes()), None];
    pgb.write_message_noflush(&BeMessage::DataRow(&row))?;
    pgb.write_message_noflush(&BeMessage::CommandComplete("IDENTIFY_SYSTEM"))?;
    Ok(())
}

/// One row with the positions; none when the timeline does not exist.
fn timeline_status(pgb: &mut Backend, status: Option<&PeerStatus>) -> Result<(), QueryError> {
    let column = |name| RowDescriptor { name, type_oid: TypeOid::Text };
    pgb.write_message_noflush(&BeMessage::RowDescription(&PeerStatus::COLUMNS.map(column)))?;
    if let Some(status) = status {
        let row = status.row().map_err(QueryError::other)?;
        let row = row.each_ref().map(|value| Some(value.as_bytes()));
        pgb.write_message_noflush(&BeMessage::DataRow(&row))?;
    }
    pgb.write_message_noflush(&BeMessage::CommandComplete("TIMELINE_STATUS"))?;
    Ok(())
}
