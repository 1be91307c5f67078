//! WAL to a reader: to a page server or standby what is committed, to a recovering safekeeper or proposer what is
//! flushed, as long as one term lasts. One task sends and listens (L266).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pg_types::xlog::{SEND_BYTES_MAX, send_len};
use pg_types::{Lsn, Term};
use pg_wire::pq_proto::{BeMessage, SqlState};
use pg_wire::replication::{StandbyMessage, current_timestamp};
use pg_wire::{CopyStreamEnd, PostgresBackend, PostgresBackendReader, QueryError};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, sleep_until};
use tracing::Instrument;

use crate::backup::{BackedUpWal, FetchError};
use crate::feedback::ReaderId;
use crate::metrics::Metrics;
use crate::receive_wal::how;
use crate::timeline::Timeline;
use crate::timeline::core::Progress;
use crate::wal_storage::ReadError;

/// WAL for page servers is sent this often, unless somebody waits for it: a message for each commit would cost both sides,
/// and on a busy machine the commit itself, more than the WAL is worth.
const PAUSE: Duration = Duration::from_millis(20);
/// A page server that asks for WAL at once gets it without pauses for so long.
const HURRY: Duration = Duration::from_millis(10);

type Backend = PostgresBackend<TcpStream>;

/// What a reader wants.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// First position.
    pub start_lsn: Lsn,
    /// Flushed WAL while this term lasts; else committed WAL.
    pub term: Option<Term>,
    /// `application_name`.
    pub application_name: String,
    /// Silence before a keepalive.
    pub keepalive_interval: Duration,
}

/// Serves `START_REPLICATION` until the stream ends.
pub async fn send_wal(
    pgb: &mut Backend,
    timeline: &Arc<Timeline>,
    subscription: Subscription,
    wal: BackedUpWal,
    metrics: &Metrics,
) -> Result<(), QueryError> {
    let span = tracing::info_span!("WAL sender", ttid = %timeline.id());
    async {
        pgb.write_message(&BeMessage::CopyBothResponse).await?;
        let mut reader = pgb.split()?;
        metrics.wal_senders.inc();
        let id = timeline.feedback().connect(&subscription.application_name);
        let mut sender = Sender {
            timeline,
            metrics,
            wal,
            progress: timeline.subscribe(),
            committed: timeline.subscribe_committed(),
            id,
            sent_lsn: subscription.start_lsn,
            term: subscription.term,
            pauses: Pauses::default(),
        };
        tracing::info!(start_lsn = %subscription.start_lsn, "started");
        let end = sender.run(pgb, &mut reader, subscription.keepalive_interval).await;
        timeline.feedback().disconnect(id);
        metrics.wal_senders.dec();
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

struct Sender<'a> {
    timeline: &'a Arc<Timeline>,
    metrics: &'a Metrics,
    wal: BackedUpWal,
    progress: watch::Receiver<Progress>,
    committed: watch::Receiver<Lsn>,
    id: ReaderId,
    sent_lsn: Lsn,
    term: Option<Term>,
    pauses: Pauses,
}

/// When WAL may be held back for a moment, so that it goes out with what comes next.
#[derive(Debug, Default)]
struct Pauses {
    /// The reader is a page server: it has reported as one. Others are never kept waiting.
    is_pageserver: bool,
    until: Option<Instant>,
    hurry_until: Option<Instant>,
}

impl Pauses {
    /// WAL was sent.
    fn sent(&mut self) {
        self.until = self.is_pageserver.then(|| Instant::now() + PAUSE);
    }

    /// The reader wants what there is.
    fn hurry(&mut self) {
        self.hurry_until = Some(Instant::now() + HURRY);
        self.until = None;
    }

    /// Until when these bytes may wait.
    fn hold(&mut self, available: u64) -> Option<Instant> {
        let now = Instant::now();
        let hurries = self.hurry_until.is_some_and(|until| now < until);
        self.until.filter(|until| now < *until && !hurries && available < SEND_BYTES_MAX)
    }
}

impl Sender<'_> {
    async fn run(
        &mut self,
        pgb: &mut Backend,
        reader: &mut PostgresBackendReader<TcpStream>,
        keepalive_interval: Duration,
    ) -> CopyStreamEnd {
        let mut quiet = tokio::time::interval(keepalive_interval);
        quiet.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let turn = async {
                if pgb.pending_output() == 0 && self.queue_next(pgb).await? {
                    quiet.reset();
                }
                let sending = pgb.pending_output() > 0;
                let held = self.held_until()?;
                // While WAL is held back, commits wake nobody here.
                let idle = !sending && held.is_none();
                tokio::select! {
                    flushed = pgb.flush(), if sending => flushed?,
                    data = reader.read_copy_data() => self.listen(data?)?,
                    changed = self.committed.changed(), if idle && self.term.is_none() => {
                        changed.map_err(|_| CopyStreamEnd::Cancelled)?;
                    }
                    changed = self.progress.changed(), if idle && self.term.is_some() => {
                        changed.map_err(|_| CopyStreamEnd::Cancelled)?;
                    }
                    () = sleep_until(held.unwrap_or_else(Instant::now)), if held.is_some() => {}
                    _ = quiet.tick(), if !sending => self.queue_keepalive(pgb)?,
                    () = self.timeline.cancellation().cancelled() => {
                        self.timeline.check()?;
                        return Err(CopyStreamEnd::Cancelled);
                    }
                }
                Ok(())
            };
            if let Err(end) = turn.await {
                return end;
            }
        }
    }

    /// `[SK4]` End of what this reader may get now.
    fn end_lsn(&mut self) -> Result<Lsn, CopyStreamEnd> {
        let Some(term) = self.term else { return Ok(*self.committed.borrow_and_update()) };
        let progress = *self.progress.borrow_and_update();
        if term == progress.term {
            return Ok(progress.ladder.flush_lsn);
        }
        Err(refused(
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("term {term} is over, this safekeeper is in term {}", progress.term),
        ))
    }

    /// Until when WAL is held back.
    fn held_until(&mut self) -> Result<Option<Instant>, CopyStreamEnd> {
        let available = self.end_lsn()?.saturating_sub(self.sent_lsn);
        Ok(self.pauses.hold(available))
    }

    /// Queues the next piece of WAL, if there is one.
    async fn queue_next(&mut self, pgb: &mut Backend) -> Result<bool, CopyStreamEnd> {
        let end_lsn = self.end_lsn()?;
        let available = end_lsn.saturating_sub(self.sent_lsn);
        if available == 0 || self.pauses.hold(available).is_some() {
            return Ok(false);
        }
        let data = self.read(send_len(self.sent_lsn, available)).await?;
        if self.term.is_some() {
            // The log may have been cut while it was read: then these bytes are nobody's.
            self.end_lsn()?;
        }
        let wal_start = self.sent_lsn;
        let timestamp = current_timestamp();
        pgb.write_message_noflush(&BeMessage::XLogData {
            wal_start,
            wal_end: end_lsn,
            timestamp,
            data: &data,
        })?;
        self.sent_lsn += data.len() as u64;
        self.pauses.sent();
        self.metrics.sent_bytes.inc_by(data.len() as u64);
        self.timeline.feedback().sent(self.id, self.sent_lsn);
        Ok(true)
    }

    async fn read(&mut self, len: u64) -> Result<Bytes, CopyStreamEnd> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let read = tokio::select! {
            read = self.wal.read(self.sent_lsn, len) => read,
            // The object store may take its time.
            () = self.timeline.cancellation().cancelled() => return Err(CopyStreamEnd::Cancelled),
        };
        read.map_err(|error| {
            let code = match error {
                FetchError::Local(ReadError::Removed(_)) => SqlState::UNDEFINED_FILE,
                FetchError::Local(_) | FetchError::Store { .. } => SqlState::IO_ERROR,
            };
            refused(code, error.to_string())
        })
    }

    fn queue_keepalive(&mut self, pgb: &mut Backend) -> Result<(), CopyStreamEnd> {
        let wal_end = self.end_lsn()?;
        let (timestamp, reply_requested) = (current_timestamp(), true);
        pgb.write_message_noflush(&BeMessage::KeepAlive { wal_end, timestamp, reply_requested })?;
        Ok(())
    }

    fn listen(&mut self, data: Bytes) -> Result<(), CopyStreamEnd> {
        let message = StandbyMessage::parse(data)
            .map_err(|error| CopyStreamEnd::Disconnected(error.into()))?;
        let feedback = self.timeline.feedback();
        match message {
            StandbyMessage::Status(status) => {
                if status.reply_requested {
                    self.pauses.hurry();
                }
                feedback.status(self.id, status);
            }
            StandbyMessage::HotStandbyFeedback(wishes) => feedback.hot_standby(self.id, wishes),
            StandbyMessage::PageserverFeedback(report) => {
                self.pauses.is_pageserver = true;
                if !feedback.pageserver(self.id, report) {
                    let message = format!("shard {} is one too many", report.shard_number);
                    return Err(refused(SqlState::INVALID_PARAMETER_VALUE, message));
                }
            }
        }
        Ok(())
    }
}

fn refused(code: SqlState, message: String) -> CopyStreamEnd {
    CopyStreamEnd::Failed(QueryError::Sql { code, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn page_servers_wait_a_moment_unless_they_hurry_or_there_is_much() {
        let mut pauses = Pauses::default();
        pauses.sent();
        assert_eq!(pauses.hold(1), None, "not a page server");
        pauses.is_pageserver = true;
        pauses.sent();
        let until = Instant::now() + PAUSE;
        assert_eq!(pauses.hold(1), Some(until));
        assert_eq!(pauses.hold(SEND_BYTES_MAX), None);
        tokio::time::advance(PAUSE).await;
        assert_eq!(pauses.hold(1), None);
        pauses.hurry();
        pauses.sent();
        assert_eq!(pauses.hold(1), None, "hurries");
        tokio::time::advance(HURRY).await;
        pauses.sent();
        assert!(pauses.hold(1).is_some());
    }
}
