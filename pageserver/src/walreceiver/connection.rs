//! One WAL stream from one safekeeper.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pg_types::{Lsn, xlog};
use pg_wire::replication::{
    PageserverFeedback, StandbyMessage, StandbyStatusUpdate, WalSenderMessage, current_timestamp,
};
use pg_wire::{ClientError, ConnectParams, CopyBoth, Endpoint};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, sleep_until};

use super::Settings;
use super::rivals::{Heard, overtaken};
use super::sink::{self, SinkError, Worker};
use crate::metrics::GLOBAL;
use crate::tenants::metadata::WalSource;
use crate::timeline::Timeline;
use crate::timeline::status::ReceiverState;

/// Feedback is sent this often at least, so that a safekeeper knows that someone listens.
const FEEDBACK_INTERVAL: Duration = Duration::from_secs(1);
/// Progress is reported at once after so much WAL, and otherwise after [`FEEDBACK_PAUSE`].
const FEEDBACK_BYTES: u64 = 1024 * 1024;
/// Each report wakes the safekeeper, the walproposer and its walsender, so one for each commit would cost more than the commit.
const FEEDBACK_PAUSE: Duration = Duration::from_millis(20);
/// A safekeeper that brings nothing for so long while a reader waits for WAL is left for another one: it may be stopped, cut
/// off, or behind.
const STARVED_AFTER: Duration = Duration::from_secs(2);
/// Messages between socket and ingest; each is at most 128 KiB.
const CHANNEL_MESSAGES: usize = 16;

/// How a stream ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// The timeline stops, or there is a new source.
    Stop,
    /// The connection could not be made or broke: try again, or another safekeeper.
    Ended(String),
    /// The WAL is wrong or cannot be stored: trying again would meet the same.
    CannotIngest(String),
}

impl From<ClientError> for StreamEnd {
    fn from(error: ClientError) -> StreamEnd {
        StreamEnd::Ended(error.to_string())
    }
}

/// WAL bytes on their way to ingest.
pub(super) struct WalChunk {
    pub(super) start: Lsn,
    pub(super) data: Bytes,
}

/// Connects, streams, and gives the WAL to ingest.
pub(super) async fn stream(
    timeline: &Arc<Timeline>,
    source: &WalSource,
    safekeeper: &str,
    news: &mut watch::Receiver<WalSource>,
    settings: &Settings,
) -> StreamEnd {
    let others = source.safekeepers.len() > 1;
    // Records are taken in whole: what an earlier stream left of a record is streamed again.
    let start = xlog::normalize(timeline.last_record_lsn());
    let shutdown = timeline.shutdown_token();
    let connected = tokio::select! {
        () = shutdown.cancelled() => return StreamEnd::Stop,
        _ = news.changed() => return StreamEnd::Stop,
        connected = connect(timeline, safekeeper, start, settings) => connected,
        () = starved(timeline), if others => {
            Err(StreamEnd::Ended(STARVED.to_owned()))
        }
    };
    let mut wire = match connected {
        Ok(wire) => wire,
        Err(end) => return end,
    };
    tracing::info!(%safekeeper, %start, "streaming WAL");
    timeline.receiver().set_state(ReceiverState::Streaming { safekeeper: safekeeper.to_owned() });
    let (sender, receiver) = mpsc::channel(CHANNEL_MESSAGES);
    let mut worker = sink::spawn(Arc::clone(timeline), start, receiver);
    let heard = Heard::default();
    let end = tokio::select! {
        () = shutdown.cancelled() => StreamEnd::Stop,
        _ = news.changed() => StreamEnd::Stop,
        end = pump(timeline, &mut wire, sender, &mut worker, &heard, settings.timeout) => end,
        () = starved(timeline), if others => StreamEnd::Ended(STARVED.to_owned()),
        () = overtaken(timeline, &source.safekeepers, safekeeper, &heard, settings), if others => {
            StreamEnd::Ended(OVERTAKEN.to_owned())
        }
    };
    // The sender is gone: ingest finishes what it has got and ends. Its verdict counts more than the socket's.
    match worker.join().await {
        Ok(()) => end,
        Err(SinkError::BadWal(reason)) => StreamEnd::CannotIngest(reason),
        Err(SinkError::Storage(reason)) => StreamEnd::Ended(reason),
    }
}

const STARVED: &str = "it does not bring the WAL that a reader waits for";
const OVERTAKEN: &str = "it does not bring WAL that another safekeeper has";

/// Returns when a reader waits for WAL, and for [`STARVED_AFTER`] none has come, nor is any that came before taken in.
async fn starved(timeline: &Timeline) {
    let mut ticks = tokio::time::interval(STARVED_AFTER / 2);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let positions = || (timeline.receiver().received_lsn(), timeline.last_record_lsn());
    let (mut before, mut idle_ticks) = (positions(), 0);
    loop {
        ticks.tick().await;
        let starving = timeline.is_wal_awaited() && positions() == before;
        before = positions();
        idle_ticks = if starving { idle_ticks + 1 } else { 0 };
        // One tick more than two halves: the first may come just after the reader.
        if idle_ticks > 2 {
            return;
        }
    }
}

async fn connect(
    timeline: &Timeline,
    safekeeper: &str,
    start: Lsn,
    settings: &Settings,
) -> Result<CopyBoth, StreamEnd> {
    let params = params(timeline, safekeeper, settings).map_err(StreamEnd::Ended)?.replication();
    let client = pg_wire::Client::connect(&params).await?;
    Ok(client.copy_both(&format!("START_REPLICATION PHYSICAL {start}")).await?)
}

/// How to connect to a safekeeper for this timeline, or why not.
pub(super) fn params(
    timeline: &Timeline,
    safekeeper: &str,
    settings: &Settings,
) -> Result<ConnectParams, String> {
    let endpoint: Endpoint = safekeeper.parse()?;
    let timeout = settings.timeout;
    let params = ConnectParams::new(endpoint, "pageserver")
        .param("application_name", "pageserver")
        .option("tenant_id", &timeline.tenant_id.to_string())
        .option("timeline_id", &timeline.metadata.timeline_id.to_string())
        .connect_timeout(timeout)
        .read_timeout(Some(timeout))
        .write_timeout(Some(timeout));
    let token = settings.own_token.read().map_err(|error| error.to_string())?;
    Ok(match token {
        Some(token) => params.password(&token),
        None => params,
    })
}

/// Moves WAL to ingest and feedback to the safekeeper until something ends it.
async fn pump(
    timeline: &Timeline,
    wire: &mut CopyBoth,
    sender: mpsc::Sender<WalChunk>,
    worker: &mut Worker,
    heard: &Heard,
    timeout: Duration,
) -> StreamEnd {
    let mut ticks = tokio::time::interval(FEEDBACK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut waiting: Option<WalChunk> = None;
    let mut reported = Reported { lsn: timeline.last_record_lsn(), at: Instant::now() };
    let mut progressed = false;
    loop {
        let mut feedback_due = false;
        tokio::select! {
            // Room in the channel for what was received; until then nothing more is read.
            permit = sender.reserve(), if waiting.is_some() => match permit {
                Ok(permit) => {
                    if let Some(chunk) = waiting.take() {
                        permit.send(chunk);
                    }
                    wire.reader.set_read_timeout(Some(timeout));
                }
                Err(_) => return StreamEnd::Ended("ingest stopped".to_owned()),
            },
            message = wire.reader.recv_wal(), if waiting.is_none() => match message {
                Ok(Some(WalSenderMessage::XLogData { wal_start, wal_end, data, .. })) => {
                    received(timeline, wal_start, &data);
                    heard.committed(wal_end);
                    if sender.capacity() == 0 {
                        heard.busy();
                    }
                    waiting = Some(WalChunk { start: wal_start, data });
                }
                Ok(Some(WalSenderMessage::KeepAlive { wal_end, reply_requested, .. })) => {
                    heard.committed(wal_end);
                    feedback_due = reply_requested;
                }
                Ok(None) => return StreamEnd::Ended("the safekeeper ended the stream".to_owned()),
                Err(error) => return error.into(),
            },
            progress = worker.progressed() => match progress {
                Ok(()) => {
                    progressed = true;
                    let bytes = timeline.last_record_lsn().saturating_sub(reported.lsn);
                    feedback_due = bytes >= FEEDBACK_BYTES;
                }
                Err(()) => return StreamEnd::Ended("ingest stopped".to_owned()),
            },
            () = sleep_until(reported.at + FEEDBACK_PAUSE), if progressed => feedback_due = true,
            () = timeline.wal_demanded() => {
                if let Err(error) = wire.writer.send_standby(&hurry(timeline)).await {
                    return error.into();
                }
            }
            _ = ticks.tick() => feedback_due = true,
        }
        if feedback_due {
            progressed = false;
            reported = Reported { lsn: timeline.last_record_lsn(), at: Instant::now() };
            let message = StandbyMessage::PageserverFeedback(feedback(timeline));
            if let Err(error) = wire.writer.send_standby(&message).await {
                return error.into();
            }
        }
    }
}

/// The last report.
struct Reported {
    lsn: Lsn,
    at: Instant,
}

fn received(timeline: &Timeline, start: Lsn, data: &Bytes) {
    let len = u64::try_from(data.len()).unwrap_or(u64::MAX);
    GLOBAL.wal_received_bytes.inc_by(len);
    timeline.receiver().set_received(Lsn(start.0.saturating_add(len)));
}

/// Asks the safekeeper not to hold WAL back: a reader waits for it.
fn hurry(timeline: &Timeline) -> StandbyMessage {
    StandbyMessage::Status(StandbyStatusUpdate {
        write_lsn: timeline.last_record_lsn(),
        flush_lsn: timeline.disk_consistent_lsn(),
        apply_lsn: timeline.last_record_lsn(),
        timestamp: current_timestamp(),
        reply_requested: true,
    })
}

/// What the safekeeper, and through it the compute, may know of this timeline.
fn feedback(timeline: &Timeline) -> PageserverFeedback {
    PageserverFeedback {
        current_timeline_size: timeline.metrics().logical_size(),
        last_received_lsn: timeline.receiver().received_lsn().max(timeline.last_record_lsn()),
        disk_consistent_lsn: timeline.disk_consistent_lsn(),
        remote_consistent_lsn: timeline.remote_consistent_lsn(),
        replytime: current_timestamp(),
        shard_number: 0,
        corruption_detected: false,
    }
}
