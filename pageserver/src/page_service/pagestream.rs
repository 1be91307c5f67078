//! A stream of page requests: read several, answer them in order, flush once.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use page_protocol::{
    DecodeError, Payload, ProtocolVersion, Request, decode_request, encode_response,
};
use pg_wire::{BeMessage, CopyStreamEnd, PostgresBackend, PostgresBackendReader, QueryError};
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::Instrument;

use crate::metrics::GLOBAL;
use crate::timeline::{Answer, RequestError, Timeline, WaitError};

/// Output that is held back for one flush at most: a batch of 32 pages, and one more.
const PENDING_OUTPUT_MAX: usize = 33 * 8300;

/// Serves the stream until the client ends it.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send>(
    pgb: &mut PostgresBackend<S>,
    timeline: &Arc<Timeline>,
    version: ProtocolVersion,
    max_batch_size: usize,
) -> Result<(), QueryError> {
    pgb.write_message(&BeMessage::CopyBothResponse).await?;
    let mut reader = pgb.split()?;
    let span = tracing::info_span!(
        "pagestream",
        tenant_id = %timeline.tenant_id,
        timeline_id = %timeline.metadata.timeline_id
    );
    let mut stream = Stream { pgb, reader: &mut reader, timeline, version, max_batch_size };
    let end = tokio::select! {
        biased;
        () = timeline.shutdown_token().cancelled() => CopyStreamEnd::Failed(QueryError::Reconnect),
        end = stream.run().instrument(span) => end,
    };
    pgb.unsplit(reader)?;
    pgb.finish_copy_both(end).await
}

struct Stream<'a, S> {
    pgb: &'a mut PostgresBackend<S>,
    reader: &'a mut PostgresBackendReader<S>,
    timeline: &'a Arc<Timeline>,
    version: ProtocolVersion,
    max_batch_size: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream<'_, S> {
    async fn run(&mut self) -> CopyStreamEnd {
        loop {
            match self.batch().await {
                Ok(()) => {}
                Err(end) => return end,
            }
        }
    }

    /// Waits for a request, answers it and those that came with it, and flushes.
    async fn batch(&mut self) -> Result<(), CopyStreamEnd> {
        let mut next = Some(self.reader.read_copy_data().await?);
        let mut size = 0;
        // An end of the stream that came behind requests is acted on after their answers are sent.
        let mut end = None;
        while let Some(message) = next.take() {
            self.request(message).await?;
            size += 1;
            if size < self.max_batch_size {
                match self.reader.buffered_copy_data() {
                    Ok(message) => next = message,
                    Err(reason) => end = Some(reason),
                }
            }
        }
        self.pgb.flush().await?;
        GLOBAL.batch_size.observe(f64::from(u32::try_from(size).unwrap_or(u32::MAX)));
        end.map_or(Ok(()), Err)
    }

    async fn request(&mut self, message: Bytes) -> Result<(), CopyStreamEnd> {
        let request = decode_request(self.version, &message).map_err(malformed)?;
        let metrics = GLOBAL.requests.of(&request.kind);
        metrics.started.inc();
        let started = Instant::now();
        // Answers that are ready do not wait for one that is not.
        let must_wait = !self.timeline.is_ready_for(request.not_modified_since);
        if must_wait || self.pgb.pending_output() > PENDING_OUTPUT_MAX {
            self.pgb.flush().await?;
        }
        let answer = self.answer(&request).await;
        let payload = match &answer {
            Ok(answer) => answer.payload(),
            // The timeline goes away: let the client come again rather than fail its query.
            Err(RequestError::Wait(WaitError::Closed)) => {
                return Err(CopyStreamEnd::Failed(QueryError::Reconnect));
            }
            Err(error) => {
                metrics.errors.inc();
                tracing::warn!("{} failed: {error}", request.kind.name());
                Payload::Error(error.to_string().into())
            }
        };
        self.pgb.write_copy_data_noflush(|out| {
            encode_response(self.version, &request, &payload, out);
            Ok(())
        })?;
        metrics.seconds.observe(started.elapsed().as_secs_f64());
        Ok(())
    }

    async fn answer(&self, request: &Request) -> Result<Answer, RequestError> {
        let Request { request_lsn, not_modified_since, kind, .. } = request;
        let lsn = self.timeline.wait_for_read(*request_lsn, *not_modified_since).await?;
        self.timeline.answer(kind, lsn, *not_modified_since)
    }
}

/// The stream is out of step: no further message can be trusted.
fn malformed(error: DecodeError) -> CopyStreamEnd {
    CopyStreamEnd::Failed(QueryError::Sql {
        code: pg_wire::pq_proto::SqlState::PROTOCOL_VIOLATION,
        message: error.to_string(),
    })
}
