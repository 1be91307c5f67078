//! A compute's WAL and how it hears of the quorum: the [`Compute`] that a reign needs, and the one that speaks to a
//! walsender as any physical standby would (design D7).

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use pg_types::Lsn;
use pg_wire::client::{Client, ClientError, ConnectParams, CopyBoth, Endpoint};
use pg_wire::replication::{StandbyMessage, StandbyStatusUpdate, WalSenderMessage};

use crate::backoff::Backoff;
use crate::config::{ComputeConfig, version_num};
use crate::limits::COMPUTE_WRITE_TIMEOUT;

/// Name of the physical replication slot that keeps WAL which no quorum has yet.
pub const SLOT_NAME: &str = "wal_proposer_slot";
/// `application_name` of the connection, to be listed in `synchronous_standby_names`.
pub const APPLICATION_NAME: &str = "walproposer";

/// Why the compute's WAL cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// The connection.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Nonsense in an answer.
    #[error("IDENTIFY_SYSTEM: no usable column {0}")]
    Identify(&'static str),
    /// Another server behind the same socket.
    #[error("server has system identifier {now}, it was {before}")]
    OtherServer {
        /// System identifier now.
        now: u64,
        /// System identifier when this process started.
        before: u64,
    },
    /// WAL in the wrong place.
    #[error("walsender sent WAL at {got_lsn} where {wanted_lsn} was due")]
    Gap {
        /// Where it was.
        got_lsn: Lsn,
        /// Where it should have been.
        wanted_lsn: Lsn,
    },
}

/// Who the compute is.
#[derive(Clone, Copy, Debug)]
pub struct ServerIdentity {
    /// Its system identifier.
    pub system_id: u64,
    /// Its version, as `server_version_num` spells it.
    pub version_num: u32,
}

/// Where a compute's WAL comes from, and whom the quorum's position is told.
pub trait Compute {
    /// Streams from a position on, whatever it did before.
    fn open_at(&mut self, lsn: Lsn);

    /// Ends the stream until it is opened again.
    fn close(&mut self);

    /// Next event; waits for ever while the stream is closed. Cancellation-safe.
    fn next(&mut self) -> impl Future<Output = StreamEvent>;

    /// Tells the compute how far a quorum is; nothing while there is no stream.
    fn report(&mut self, status: StandbyStatusUpdate) -> impl Future<Output = ()>;
}

/// How the walproposer of a compute connects to it: as a physical standby.
pub(crate) fn params(config: &ComputeConfig) -> ConnectParams {
    let endpoint = Endpoint::Unix { directory: config.socket_dir.clone(), port: config.port };
    ConnectParams::new(endpoint, &config.user)
        .param("application_name", APPLICATION_NAME)
        .replication()
        .write_timeout(Some(COMPUTE_WRITE_TIMEOUT))
}

async fn connect(config: &ComputeConfig) -> Result<(Client, ServerIdentity), ComputeError> {
    let mut client = Client::connect(&params(config)).await?;
    let results = client.simple_query("IDENTIFY_SYSTEM").await?;
    let text = results.first().and_then(|result| result.value(0, "systemid"));
    let system_id =
        text.and_then(|text| text.parse().ok()).ok_or(ComputeError::Identify("systemid"))?;
    let version_num = version_num(client.parameter("server_version"));
    Ok((client, ServerIdentity { system_id, version_num }))
}

/// Waits until the compute answers, and creates the slot.
pub(crate) async fn wait_for_server(config: &ComputeConfig) -> ServerIdentity {
    let mut backoff = Backoff::new();
    loop {
        match prepare(config).await {
            Ok(identity) => return identity,
            Err(error) => tracing::info!(%error, "waiting for the compute"),
        }
        backoff.pause().await;
    }
}

async fn prepare(config: &ComputeConfig) -> Result<ServerIdentity, ComputeError> {
    let (mut client, identity) = connect(config).await?;
    // Making one that is there would work, too, but leave an error in the compute's log at each of our starts.
    let found = client.simple_query(&format!("READ_REPLICATION_SLOT {SLOT_NAME}")).await?;
    if found.first().and_then(|result| result.value(0, "slot_type")).is_none() {
        let command = format!("CREATE_REPLICATION_SLOT {SLOT_NAME} PHYSICAL (RESERVE_WAL)");
        client.simple_query(&command).await?;
    }
    client.close().await?;
    Ok(identity)
}

/// What the stream has for us.
#[derive(Debug)]
pub enum StreamEvent {
    /// The stream has begun, or begun again.
    Opened,
    /// WAL, without gaps from where the stream was opened.
    Wal {
        /// Position of the first byte.
        begin_lsn: Lsn,
        /// The bytes.
        wal: Bytes,
    },
    /// The walsender wants to hear from us.
    ReplyRequested,
    /// The server has shut down in good order; everything it wrote was acknowledged.
    Ended,
}

type Opening = Pin<Box<dyn Future<Output = Result<CopyBoth, ComputeError>> + Send>>;

enum State {
    Idle,
    Opening(Opening),
    Open(CopyBoth),
}

/// The stream of the compute's WAL; connects again by itself.
pub(crate) struct ComputeStream {
    config: ComputeConfig,
    system_id: u64,
    next_lsn: Lsn,
    backoff: Backoff,
    state: State,
}

impl ComputeStream {
    pub(crate) fn new(config: ComputeConfig, identity: ServerIdentity) -> ComputeStream {
        ComputeStream {
            config,
            system_id: identity.system_id,
            next_lsn: Lsn::INVALID,
            backoff: Backoff::new(),
            state: State::Idle,
        }
    }

    fn reopen(&mut self) {
        // The pause is part of the opening, so that `next` can be dropped at any moment.
        let pause = self.backoff.step();
        let (config, system_id, lsn) = (self.config.clone(), self.system_id, self.next_lsn);
        self.state = State::Opening(Box::pin(async move {
            tokio::time::sleep(pause).await;
            start(config, system_id, lsn).await
        }));
    }

    async fn try_next(&mut self) -> Result<Option<StreamEvent>, ComputeError> {
        match &mut self.state {
            State::Idle => std::future::pending().await,
            State::Opening(opening) => {
                self.state = State::Open(opening.await?);
                Ok(Some(StreamEvent::Opened))
            }
            State::Open(copy) => {
                let message = copy.reader.recv_wal().await?;
                self.backoff.reset();
                self.interpret(message)
            }
        }
    }

    fn interpret(
        &mut self,
        message: Option<WalSenderMessage>,
    ) -> Result<Option<StreamEvent>, ComputeError> {
        match message {
            None => {
                self.state = State::Idle;
                Ok(Some(StreamEvent::Ended))
            }
            Some(WalSenderMessage::KeepAlive { reply_requested, .. }) => {
                Ok(reply_requested.then_some(StreamEvent::ReplyRequested))
            }
            Some(WalSenderMessage::XLogData { wal_start, data, .. }) => {
                if wal_start != self.next_lsn {
                    let (got_lsn, wanted_lsn) = (wal_start, self.next_lsn);
                    return Err(ComputeError::Gap { got_lsn, wanted_lsn });
                }
                self.next_lsn = Lsn(wal_start.0.saturating_add(data.len() as u64));
                Ok(Some(StreamEvent::Wal { begin_lsn: wal_start, wal: data }))
            }
        }
    }
}

impl Compute for ComputeStream {
    fn open_at(&mut self, lsn: Lsn) {
        self.next_lsn = lsn;
        self.state = State::Opening(Box::pin(start(self.config.clone(), self.system_id, lsn)));
    }

    fn close(&mut self) {
        self.state = State::Idle;
    }

    async fn next(&mut self) -> StreamEvent {
        loop {
            match self.try_next().await {
                Ok(Some(event)) => return event,
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "the compute's WAL stream");
                    self.reopen();
                }
            }
        }
    }

    async fn report(&mut self, status: StandbyStatusUpdate) {
        let State::Open(copy) = &mut self.state else { return };
        match copy.writer.send_standby(&StandbyMessage::Status(status)).await {
            Ok(()) => {}
            // The walsender is gone, and what it said before has not been read to its end: perhaps that the compute stops.
            Err(ClientError::Connection(error)) => tracing::info!(%error, "telling the compute"),
            Err(error) => {
                tracing::warn!(%error, "telling the compute");
                self.reopen();
            }
        }
    }
}

async fn start(config: ComputeConfig, system_id: u64, lsn: Lsn) -> Result<CopyBoth, ComputeError> {
    let (client, identity) = connect(&config).await?;
    if identity.system_id != system_id {
        return Err(ComputeError::OtherServer { now: identity.system_id, before: system_id });
    }
    let command = format!("START_REPLICATION SLOT {SLOT_NAME} PHYSICAL {lsn}");
    Ok(client.copy_both(&command).await?)
}
