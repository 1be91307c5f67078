//! WAL from a proposer: one task reads and writes (L266). What has arrived together is written together and made
//! durable by one flush; meanwhile the socket collects what comes next.

use std::sync::Arc;

use bytes::Bytes;
use pg_wire::framed::ConnectionError;
use pg_wire::pq_proto::{BeMessage, SqlState};
use pg_wire::{CopyStreamEnd, PostgresBackend, PostgresBackendReader, QueryError};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tracing::Instrument;
use wal_consensus::message::{AcceptorMessage, AppendResponse, ProposerMessage};
use wal_consensus::version::ProtocolVersion;

use crate::metrics::Metrics;
use crate::timeline::core::Outgoing;
use crate::timeline::{Link, Timeline, TimelineError};

/// Bytes that are taken together at most: what a disk writes in a few milliseconds, so that answers are not held
/// up by more input.
const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Messages that are taken together at most.
const BATCH_MESSAGES_MAX: usize = 1024;

type Backend = PostgresBackend<TcpStream>;

impl From<TimelineError> for CopyStreamEnd {
    fn from(error: TimelineError) -> CopyStreamEnd {
        match error {
            TimelineError::Stopping => CopyStreamEnd::Cancelled,
            quarantined @ TimelineError::Quarantined(_) => {
                let (code, message) = (SqlState::DATA_CORRUPTED, quarantined.to_string());
                CopyStreamEnd::Failed(QueryError::Sql { code, message })
            }
        }
    }
}

/// Serves `START_WAL_PUSH` until the stream ends.
pub async fn receive_wal(
    pgb: &mut Backend,
    timeline: &Arc<Timeline>,
    version: ProtocolVersion,
    metrics: &Metrics,
) -> Result<(), QueryError> {
    let span = tracing::info_span!("WAL receiver", ttid = %timeline.id());
    async {
        tracing::debug!(%version, "a proposer comes");
        pgb.write_message(&BeMessage::CopyBothResponse).await?;
        let mut reader = pgb.split()?;
        metrics.wal_receivers.inc();
        let link = timeline.connect();
        let conn = link.conn;
        let mut receiver = Receiver {
            feedback: timeline.feedback().subscribe(),
            timeline,
            version,
            link,
            greeted: false,
            last_response: None,
        };
        let end = receiver.run(pgb, &mut reader).await;
        timeline.disconnect(conn).await;
        metrics.wal_receivers.dec();
        metrics.connections_ended.with_label_values(&[how(&end)]).inc();
        if end.is_expected() {
            tracing::info!("terminated: {end}");
        } else {
            tracing::warn!("terminated: {end}");
        }
        // L267: joined before anything else, so that no error of a half is lost.
        pgb.unsplit(reader)?;
        pgb.finish_copy_both(end).await
    }
    .instrument(span)
    .await
}

/// Label of the metric.
pub(crate) fn how(end: &CopyStreamEnd) -> &'static str {
    match end {
        CopyStreamEnd::Disconnected(ConnectionError::Io(error))
            if error.kind() == std::io::ErrorKind::TimedOut =>
        {
            "timed_out"
        }
        end if end.is_expected() => "closed",
        _ => "failed",
    }
}

struct Receiver<'a> {
    timeline: &'a Arc<Timeline>,
    version: ProtocolVersion,
    link: Link,
    /// Page servers' progress.
    feedback: watch::Receiver<Bytes>,
    /// A greeting has arrived: nothing else may come first.
    greeted: bool,
    /// Repeated when a page server has news and the proposer sends nothing that would be answered.
    last_response: Option<AppendResponse>,
}

impl Receiver<'_> {
    async fn run(
        &mut self,
        pgb: &mut Backend,
        reader: &mut PostgresBackendReader<TcpStream>,
    ) -> CopyStreamEnd {
        loop {
            if let Err(end) = self.turn(pgb, reader).await {
                return end;
            }
        }
    }

    /// Waits for one thing to happen and deals with it.
    async fn turn(
        &mut self,
        pgb: &mut Backend,
        reader: &mut PostgresBackendReader<TcpStream>,
    ) -> Result<(), CopyStreamEnd> {
        tokio::select! {
            first = reader.read_copy_data() => {
                let (batch, end) = collect(first?, reader).await;
                self.serve(pgb, batch).await?;
                if let Some(end) = end {
                    return Err(end);
                }
            }
            event = self.link.events.recv() => match event {
                Some(outgoing) => self.send(pgb, outgoing)?,
                None => {
                    let reason = "the proposer does not read its messages";
                    return Err(CopyStreamEnd::ServerInitiated(reason.to_owned()));
                }
            },
            Ok(()) = self.feedback.changed(), if self.last_response.is_some() => {
                if let Some(response) = self.last_response.clone() {
                    // Seen by `changed`, but not sent yet.
                    self.feedback.mark_changed();
                    self.send_response(pgb, response)?;
                }
            }
            () = self.timeline.cancellation().cancelled() => {
                // Says why when the timeline is out of service.
                self.timeline.check()?;
                return Err(CopyStreamEnd::Cancelled);
            }
        }
        Ok(pgb.flush().await?)
    }

    async fn serve(&mut self, pgb: &mut Backend, batch: Vec<Bytes>) -> Result<(), CopyStreamEnd> {
        if !self.greeted {
            self.greeted = starts_with_greeting(self.version, &batch)?;
        }
        let (conn, version) = (self.link.conn, self.version);
        let out = self.timeline.with_core(|core| core.receive(conn, version, batch)).await?;
        let (mine, others): (Vec<_>, Vec<_>) =
            out.into_iter().partition(|outgoing| outgoing.conn() == conn);
        self.timeline.dispatch(others);
        mine.into_iter().try_for_each(|outgoing| self.send(pgb, outgoing))
    }

    fn send(&mut self, pgb: &mut Backend, outgoing: Outgoing) -> Result<(), CopyStreamEnd> {
        match outgoing {
            Outgoing::Reply { message: AcceptorMessage::AppendResponse(response), .. } => {
                self.send_response(pgb, response)
            }
            Outgoing::Reply { message, .. } => self.put(pgb, &message),
            Outgoing::Close { reason, .. } => {
                let code = SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE;
                Err(CopyStreamEnd::Failed(QueryError::Sql { code, message: reason }))
            }
        }
    }

    /// An append response carries what readers of the WAL have said since the last one.
    fn send_response(
        &mut self,
        pgb: &mut Backend,
        mut response: AppendResponse,
    ) -> Result<(), CopyStreamEnd> {
        response.hs_feedback = self.timeline.feedback().hot_standbys();
        response.pageserver_feedback = match self.feedback.has_changed() {
            Ok(true) => self.feedback.borrow_and_update().clone(),
            _ => Bytes::new(),
        };
        // The first response of a connection tells what is known already.
        if self.last_response.is_none() {
            response.pageserver_feedback = self.feedback.borrow_and_update().clone();
        }
        self.last_response = Some(response.clone());
        self.put(pgb, &AcceptorMessage::AppendResponse(response))
    }

    /// A proposer that cannot be told the membership is told that, and nothing else.
    fn put(&self, pgb: &mut Backend, message: &AcceptorMessage) -> Result<(), CopyStreamEnd> {
        let payload = self.version.encode_acceptor(message).map_err(|error| {
            let (code, message) = (SqlState::FEATURE_NOT_SUPPORTED, error.to_string());
            CopyStreamEnd::Failed(QueryError::Sql { code, message })
        })?;
        Ok(pgb.write_message_noflush(&BeMessage::CopyData(&payload))?)
    }
}

/// Everything that is there without waiting, up to a bound; and the end of the stream when it was met.
async fn collect(
    first: Bytes,
    reader: &mut PostgresBackendReader<TcpStream>,
) -> (Vec<Bytes>, Option<CopyStreamEnd>) {
    let mut bytes = first.len();
    let mut batch = vec![first];
    while bytes < BATCH_BYTES_MAX && batch.len() < BATCH_MESSAGES_MAX {
        let next = tokio::select! {
            biased;
            next = reader.read_copy_data() => next,
            () = std::future::ready(()) => return (batch, None),
        };
        match next {
            Ok(data) => {
                bytes += data.len();
                batch.push(data);
            }
            Err(end) => return (batch, Some(end)),
        }
    }
    (batch, None)
}

fn starts_with_greeting(version: ProtocolVersion, batch: &[Bytes]) -> Result<bool, CopyStreamEnd> {
    let first = batch.first().cloned().unwrap_or_default();
    let failed = |message: String| {
        let code = SqlState::PROTOCOL_VIOLATION;
        CopyStreamEnd::Failed(QueryError::Sql { code, message })
    };
    match version.decode_proposer(first) {
        Ok(ProposerMessage::Greeting(_)) => Ok(true),
        Ok(_) => Err(failed("the first message must be a greeting".to_owned())),
        Err(error) => Err(failed(format!("malformed message: {error}"))),
    }
}
