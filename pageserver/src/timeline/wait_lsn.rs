//! Waiting until WAL up to a position was ingested.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pg_types::Lsn;
use tokio::sync::{Notify, oneshot};

/// A position that only grows, and those who wait for it, in the order of what they wait for.
///
/// `advance` is called by the one ingesting thread for each batch and by nobody else; its cost without waiters
/// is one atomic store and one uncontended lock.
#[derive(Debug)]
pub struct WaitLsn {
    current: AtomicU64,
    waiters: Mutex<Waiters>,
    /// Told of each new waiter.
    demand: Notify,
}

#[derive(Debug, Default)]
struct Waiters {
    next_id: u64,
    /// By position, then by arrival, so that a wake-up takes a prefix.
    by_lsn: BTreeMap<(Lsn, u64), oneshot::Sender<()>>,
    closed: bool,
}

/// Why a wait ended without the position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The time is over.
    #[error("timed out after {waited:?} waiting for WAL up to {wanted}; received up to {current}")]
    Timeout {
        /// What was waited for.
        wanted: Lsn,
        /// What is there.
        current: Lsn,
        /// For how long.
        waited: Duration,
    },
    /// The timeline stops.
    #[error("the timeline is shutting down")]
    Closed,
}

impl WaitLsn {
    /// Starts at a position.
    pub fn new(current: Lsn) -> WaitLsn {
        WaitLsn {
            current: AtomicU64::new(current.0),
            waiters: Mutex::default(),
            demand: Notify::new(),
        }
    }

    /// The position.
    pub fn current(&self) -> Lsn {
        Lsn(self.current.load(Ordering::Acquire))
    }

    fn lock(&self) -> MutexGuard<'_, Waiters> {
        // Nothing panics between two changes of the map that belong together.
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the position to `lsn`, or leaves it when it is already there or beyond, and wakes whom it reaches.
    pub fn advance(&self, lsn: Lsn) {
        let mut waiters = self.lock();
        self.current.fetch_max(lsn.0, Ordering::AcqRel);
        if waiters.by_lsn.first_key_value().is_none_or(|((wanted, _), _)| *wanted > lsn) {
            return;
        }
        let later = waiters.by_lsn.split_off(&(Lsn(lsn.0.saturating_add(1)), 0));
        let reached = std::mem::replace(&mut waiters.by_lsn, later);
        drop(waiters);
        for sender in reached.into_values() {
            // An error means that the waiter gave up.
            let _ = sender.send(());
        }
    }

    /// Waits until the position is at or beyond `lsn`. Dropping the future gives up.
    ///
    /// # Errors
    /// [`WaitError::Timeout`] after `timeout`, [`WaitError::Closed`] when the timeline stops meanwhile.
    pub async fn wait_for(&self, lsn: Lsn, timeout: Duration) -> Result<(), WaitError> {
        if self.current() >= lsn {
            return Ok(());
        }
        let (receiver, id) = {
            let mut waiters = self.lock();
            // Under the lock: `advance` cannot pass between this look and the registration.
            if self.current() >= lsn {
                return Ok(());
            }
            if waiters.closed {
                return Err(WaitError::Closed);
            }
            let id = waiters.next_id;
            waiters.next_id += 1;
            let (sender, receiver) = oneshot::channel();
            waiters.by_lsn.insert((lsn, id), sender);
            self.demand.notify_one();
            (receiver, id)
        };
        let _registration = Registration { wait_lsn: self, key: (lsn, id) };
        match tokio::time::timeout(timeout, receiver).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(WaitError::Closed),
            Err(_) => {
                Err(WaitError::Timeout { wanted: lsn, current: self.current(), waited: timeout })
            }
        }
    }

    /// Returns once somebody has begun to wait since the last call: what brings WAL should hurry.
    pub async fn demanded(&self) {
        self.demand.notified().await;
    }

    /// Ends all waits, present and future.
    pub fn close(&self) {
        let mut waiters = self.lock();
        waiters.closed = true;
        waiters.by_lsn.clear();
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.lock().by_lsn.len()
    }
}

/// Takes a waiter off the list when its future goes, however it goes.
struct Registration<'a> {
    wait_lsn: &'a WaitLsn,
    key: (Lsn, u64),
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        self.wait_lsn.lock().by_lsn.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const LONG: Duration = Duration::from_secs(600);

    async fn until_waiting(wait_lsn: &WaitLsn, count: usize) {
        while wait_lsn.waiting() != count {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn wakes_exactly_those_who_are_reached() {
        let wait_lsn = Arc::new(WaitLsn::new(Lsn(10)));
        wait_lsn.wait_for(Lsn(10), LONG).await.unwrap();
        let mut tasks = Vec::new();
        for lsn in [30, 20, 40] {
            let wait_lsn = wait_lsn.clone();
            tasks.push(tokio::spawn(async move { wait_lsn.wait_for(Lsn(lsn), LONG).await }));
        }
        until_waiting(&wait_lsn, 3).await;
        wait_lsn.advance(Lsn(30));
        assert_eq!(wait_lsn.waiting(), 1);
        assert_eq!(wait_lsn.current(), Lsn(30));
        wait_lsn.advance(Lsn(25));
        assert_eq!(wait_lsn.current(), Lsn(30), "a position never goes back");
        wait_lsn.advance(Lsn::MAX);
        for task in tasks {
            task.await.unwrap().unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_out_says_how_far_ingest_is() {
        let wait_lsn = WaitLsn::new(Lsn(0x10));
        let error = wait_lsn.wait_for(Lsn(0x20), Duration::from_secs(60)).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "timed out after 60s waiting for WAL up to 0/20; received up to 0/10"
        );
        assert_eq!(wait_lsn.waiting(), 0);
    }

    #[tokio::test]
    async fn a_dropped_wait_leaves_nothing_behind() {
        let wait_lsn = WaitLsn::new(Lsn(1));
        let mut wait = Box::pin(wait_lsn.wait_for(Lsn(2), LONG));
        assert!(futures_poll_once(&mut wait).await.is_none());
        assert_eq!(wait_lsn.waiting(), 1);
        drop(wait);
        assert_eq!(wait_lsn.waiting(), 0);
    }

    async fn futures_poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|context| match std::pin::Pin::new(&mut *future).poll(context) {
            std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
            std::task::Poll::Pending => std::task::Poll::Ready(None),
        })
        .await
    }

    #[tokio::test]
    async fn closing_ends_waits() {
        let wait_lsn = Arc::new(WaitLsn::new(Lsn(1)));
        let waiter = wait_lsn.clone();
        let task = tokio::spawn(async move { waiter.wait_for(Lsn(2), LONG).await });
        until_waiting(&wait_lsn, 1).await;
        wait_lsn.close();
        assert_eq!(task.await.unwrap(), Err(WaitError::Closed));
        assert_eq!(wait_lsn.wait_for(Lsn(2), LONG).await, Err(WaitError::Closed));
        assert_eq!(wait_lsn.wait_for(Lsn(1), LONG).await, Ok(()));
    }

    #[tokio::test]
    async fn who_brings_wal_hears_of_those_who_begin_to_wait() {
        let wait_lsn = WaitLsn::new(Lsn(1));
        wait_lsn.wait_for(Lsn(1), LONG).await.unwrap();
        assert!(futures_poll_once(&mut Box::pin(wait_lsn.demanded())).await.is_none());
        let mut wait = Box::pin(wait_lsn.wait_for(Lsn(2), LONG));
        assert!(futures_poll_once(&mut wait).await.is_none());
        wait_lsn.demanded().await;
        assert!(futures_poll_once(&mut Box::pin(wait_lsn.demanded())).await.is_none());
    }
}
