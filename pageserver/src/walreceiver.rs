//! Pulling a timeline's WAL from its safekeepers.
//!
//! ```text
//!  safekeeper ──XLogData──► receive loop ──bounded channel──► ingest thread ──► store
//!             ◄─feedback──       ▲ progress ◄─────────────────────┘
//! ```
//!
//! The channel is short: when ingest is slow, because memory is full and being flushed, the socket is not read,
//! the safekeeper's send buffer fills, and nothing grows here.

mod backoff;
mod connection;
mod rivals;
mod sink;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use auth_token::OwnToken;
use tokio::sync::watch;
use tracing::Instrument;

use crate::tenants::metadata::WalSource;
use crate::timeline::Timeline;
use crate::timeline::status::ReceiverState;
use backoff::Backoff;
use connection::StreamEnd;

/// How safekeepers are connected to.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bounds connecting, and silence on a connection.
    pub timeout: Duration,
    /// What is shown to them.
    pub own_token: OwnToken,
}

/// Runs until the timeline stops.
pub async fn run(timeline: Arc<Timeline>, settings: Settings) {
    let span = tracing::info_span!(
        "walreceiver",
        tenant_id = %timeline.tenant_id,
        timeline_id = %timeline.metadata.timeline_id
    );
    let running = timeline.receiver().begin();
    let shutdown = timeline.shutdown_token().clone();
    let mut source = timeline.receiver().watch_source();
    while !shutdown.is_cancelled() {
        source.mark_unchanged();
        let now = source.borrow().clone();
        follow(&timeline, &now, &mut source, &settings).instrument(span.clone()).await;
    }
    drop(running);
}

/// Receives from one source until there is a new one or the timeline stops.
async fn follow(
    timeline: &Arc<Timeline>,
    source: &WalSource,
    news: &mut watch::Receiver<WalSource>,
    settings: &Settings,
) {
    let receiver = timeline.receiver();
    let shutdown = timeline.shutdown_token();
    let mut backoff = Backoff::default();
    let mut last_error = None;
    timeline.metrics().set_ingest_failed(false);
    for safekeeper in source.safekeepers.iter().cycle() {
        receiver.set_state(ReceiverState::Connecting {
            safekeeper: safekeeper.clone(),
            last_error: last_error.take(),
        });
        let before = timeline.last_record_lsn();
        match connection::stream(timeline, source, safekeeper, news, settings).await {
            StreamEnd::Stop => return,
            StreamEnd::Ended(reason) => {
                tracing::info!(%safekeeper, "WAL stream ended: {reason}");
                last_error = Some(reason);
            }
            StreamEnd::CannotIngest(reason) => {
                tracing::error!(%safekeeper, "WAL cannot be ingested: {reason}");
                timeline.metrics().set_ingest_failed(true);
                receiver.set_state(ReceiverState::Failed { reason });
                break;
            }
        }
        if timeline.last_record_lsn() > before {
            backoff = Backoff::default();
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = news.changed() => return,
            () = tokio::time::sleep(backoff.next_pause()) => {}
        }
    }
    if source.safekeepers.is_empty() {
        receiver.set_state(ReceiverState::NoSource);
    }
    tokio::select! {
        () = shutdown.cancelled() => {}
        _ = news.changed() => {}
    }
}
