//! One connection after another to one safekeeper: bytes to messages and back, nothing decided.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use pg_types::Lsn;
use pg_wire::client::{
    Client, ClientError, ConnectParams, CopyBothReader, CopyBothWriter, Endpoint,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use wal_consensus::codec::CodecError;
use wal_consensus::message::{AcceptorMessage, AppendHeader, ProposerMessage};
use wal_consensus::proposer::SkId;
use wal_consensus::version::{NeedsVersion3, ProtocolVersion};

use crate::backoff::Backoff;
use crate::config::Config;
use crate::limits::{EMPTY_APPENDS_MAX, SILENCE_MAX, WRITE_BATCH_BYTES, WRITTEN_BYTES_TOLD};

/// What the tasks around the driver tell it. `conn` and `fetch` number connections and fetches, so that what comes from
/// one that was given up can be told apart.
#[derive(Debug)]
pub(crate) enum Event {
    Connected { sk: SkId, conn: u64, sender: LinkSender },
    Message { sk: SkId, conn: u64, message: AcceptorMessage },
    Written { sk: SkId, conn: u64, wal_bytes: u64 },
    Disconnected { sk: SkId, conn: u64 },
    Fetched { sk: SkId, fetch: u64, begin_lsn: Lsn, wal: Bytes, permit: OwnedSemaphorePermit },
    FetchEnded { sk: SkId, fetch: u64, failed: bool },
}

/// Something to be sent.
#[derive(Debug)]
enum Outbound {
    Message(Bytes),
    Append { header: Bytes, wal: Vec<Bytes>, wal_bytes: u64 },
}

/// What cannot be said in the connection's version ends it.
type Encoded = Result<Outbound, NeedsVersion3>;

/// Queue in front of one connection. Dropping it closes the connection.
#[derive(Debug)]
pub(crate) struct LinkSender {
    queue: UnboundedSender<Encoded>,
    version: ProtocolVersion,
    /// Messages that wait in the queue. Those with WAL are bounded by the proposer (`QUEUED_BYTES_MAX`).
    waiting: Arc<AtomicUsize>,
}

impl LinkSender {
    pub(crate) fn send(&self, message: &ProposerMessage) {
        self.push(self.version.encode_proposer(message).map(Outbound::Message));
    }

    pub(crate) fn append(&self, header: &AppendHeader, wal: Vec<Bytes>) {
        let wal_bytes = header.wal_bytes();
        if wal_bytes == 0 && EMPTY_APPENDS_MAX <= self.waiting.load(Ordering::Relaxed) {
            return;
        }
        let header = self.version.encode_append_header(header);
        self.push(header.map(|header| Outbound::Append { header, wal, wal_bytes }));
    }

    fn push(&self, outbound: Encoded) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // A closed queue means that the connection is going down, which its own event says.
        drop(self.queue.send(outbound));
    }
}

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("malformed message: {0}")]
    Codec(#[from] CodecError),
    #[error(transparent)]
    Version(#[from] NeedsVersion3),
    #[error("safekeeper ended the stream")]
    Ended,
}

/// Connection parameters of a safekeeper for a timeline (the startup options that tell it which one).
pub(crate) fn safekeeper_params(config: &Config, endpoint: &Endpoint) -> ConnectParams {
    let params = ConnectParams::new(endpoint.clone(), "walproposer")
        .param("application_name", "walproposer")
        .replication()
        .option("tenant_id", &config.tenant_id.to_string())
        .option("timeline_id", &config.timeline_id.to_string())
        .read_timeout(Some(SILENCE_MAX))
        .write_timeout(Some(SILENCE_MAX));
    match &config.auth_token {
        Some(token) => params.password(token),
        None => params,
    }
}

/// Connects for as long as anybody listens to the events.
/// Connections are numbered from `first` on.
pub(crate) async fn keep_connected(
    sk: SkId,
    first: u64,
    params: ConnectParams,
    version: ProtocolVersion,
    events: mpsc::Sender<Event>,
) {
    let mut backoff = Backoff::new();
    for conn in first.. {
        let task = LinkTask { sk, conn, version, events: &events };
        if let Err(error) = task.serve(&params, &mut backoff).await {
            tracing::info!(safekeeper = %params.endpoint(), %error, "safekeeper connection");
        }
        if events.is_closed() {
            return;
        }
        backoff.pause().await;
    }
}

/// One connection.
struct LinkTask<'a> {
    sk: SkId,
    conn: u64,
    version: ProtocolVersion,
    events: &'a mpsc::Sender<Event>,
}

/// What waits to be sent over one connection.
struct Queue {
    messages: UnboundedReceiver<Encoded>,
    waiting: Arc<AtomicUsize>,
}

impl LinkTask<'_> {
    /// Until the connection breaks, or until the driver drops its sender.
    async fn serve(&self, params: &ConnectParams, backoff: &mut Backoff) -> Result<(), LinkError> {
        let client = Client::connect(params).await?;
        let version = self.version;
        let command =
            format!("START_WAL_PUSH (proto_version '{version}', allow_timeline_creation 'false')");
        let copy = client.copy_both(&command).await?;
        let (queue, messages) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let sender = LinkSender { queue, version, waiting: Arc::clone(&waiting) };
        let (sk, conn) = (self.sk, self.conn);
        self.tell(Event::Connected { sk, conn, sender }).await;
        let result = tokio::select! {
            error = self.read(copy.reader, backoff) => Err(error),
            ended = self.write(copy.writer, Queue { messages, waiting }) => ended,
        };
        self.tell(Event::Disconnected { sk, conn }).await;
        result
    }

    /// Nobody listening any more is noticed by [`keep_connected`].
    async fn tell(&self, event: Event) {
        drop(self.events.send(event).await);
    }

    async fn read(&self, mut reader: CopyBothReader, backoff: &mut Backoff) -> LinkError {
        let (sk, conn) = (self.sk, self.conn);
        loop {
            let message = match reader.recv().await {
                Ok(Some(payload)) => self.version.decode_acceptor(payload),
                Ok(None) => return LinkError::Ended,
                Err(error) => return error.into(),
            };
            match message {
                Ok(message) => {
                    // Only who talks sense counts as reachable.
                    backoff.reset();
                    self.tell(Event::Message { sk, conn, message }).await;
                }
                Err(error) => return error.into(),
            }
        }
    }

    async fn write(&self, mut writer: CopyBothWriter, mut queue: Queue) -> Result<(), LinkError> {
        let (sk, conn) = (self.sk, self.conn);
        let mut wal_bytes = 0;
        while let Some(first) = queue.messages.recv().await {
            let mut next = Some(first);
            while let Some(outbound) = next {
                wal_bytes += put(&mut writer, &outbound?)?;
                queue.waiting.fetch_sub(1, Ordering::Relaxed);
                let room = writer.pending() < WRITE_BATCH_BYTES;
                next = if room { queue.messages.try_recv().ok() } else { None };
            }
            writer.flush().await?;
            if WRITTEN_BYTES_TOLD <= wal_bytes {
                self.tell(Event::Written { sk, conn, wal_bytes }).await;
                wal_bytes = 0;
            }
        }
        Ok(())
    }
}

fn put(writer: &mut CopyBothWriter, outbound: &Outbound) -> Result<u64, ClientError> {
    match outbound {
        Outbound::Message(bytes) => writer.send_noflush(bytes).map(|()| 0),
        Outbound::Append { header, wal, wal_bytes } => {
            writer.send_with_noflush(|buf| {
                buf.extend_from_slice(header);
                wal.iter().for_each(|chunk| buf.extend_from_slice(chunk));
                Ok(())
            })?;
            Ok(*wal_bytes)
        }
    }
}
