//! What a timeline's WAL receiver is told and what it does: the part that others see.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pg_types::Lsn;
use serde::Serialize;
use tokio::sync::watch;

use crate::tenants::metadata::WalSource;

/// States of a WAL receiver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ReceiverState {
    /// No safekeeper is named; the timeline stands still.
    #[default]
    NoSource,
    /// Trying to reach a safekeeper.
    Connecting {
        /// Its address.
        safekeeper: String,
        /// Why the last attempt or stream ended.
        #[serde(skip_serializing_if = "Option::is_none")]
        last_error: Option<String>,
    },
    /// WAL comes in.
    Streaming {
        /// From this address.
        safekeeper: String,
    },
    /// WAL cannot be ingested. Nothing goes on before the server is restarted or the source is set anew.
    Failed {
        /// Why, with the position.
        reason: String,
    },
    /// The timeline stops.
    Stopped,
}

/// What concerns a timeline's WAL receiver.
#[derive(Debug)]
pub struct WalReceiverStatus {
    inner: Mutex<(ReceiverState, Lsn)>,
    source: watch::Sender<WalSource>,
    running: watch::Sender<bool>,
}

impl Default for WalReceiverStatus {
    fn default() -> WalReceiverStatus {
        WalReceiverStatus {
            inner: Mutex::default(),
            source: watch::Sender::new(WalSource::default()),
            running: watch::Sender::new(false),
        }
    }
}

/// Says that the receiver runs, as long as it lives.
#[derive(Debug)]
pub struct Running<'a>(&'a WalReceiverStatus);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set_state(ReceiverState::Stopped);
        self.0.running.send_replace(false);
    }
}

impl WalReceiverStatus {
    fn lock(&self) -> MutexGuard<'_, (ReceiverState, Lsn)> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state.
    pub fn state(&self) -> ReceiverState {
        self.lock().0.clone()
    }

    /// Changes the state.
    pub fn set_state(&self, state: ReceiverState) {
        self.lock().0 = state;
    }

    /// End of the WAL that was received, ingested or not; never goes back.
    pub fn received_lsn(&self) -> Lsn {
        self.lock().1
    }

    /// WAL came up to here.
    pub fn set_received(&self, lsn: Lsn) {
        let mut inner = self.lock();
        inner.1 = inner.1.max(lsn);
    }

    /// Where WAL comes from.
    pub fn source(&self) -> WalSource {
        self.source.borrow().clone()
    }

    /// Sets where WAL comes from; the receiver begins anew even when it is the same as before.
    pub fn set_source(&self, source: WalSource) {
        self.source.send_replace(source);
    }

    /// Where WAL comes from, and news of it.
    pub fn watch_source(&self) -> watch::Receiver<WalSource> {
        self.source.subscribe()
    }

    /// Called by the receiver when it begins.
    pub fn begin(&self) -> Running<'_> {
        self.running.send_replace(true);
        Running(self)
    }

    /// Waits until the receiver is not running.
    pub async fn wait_stopped(&self) {
        // The sender is in `self`, so the channel cannot close meanwhile.
        let _ = self.running.subscribe().wait_for(|running| !*running).await;
    }
}
