//! Pauses between attempts.

use std::time::Duration;

use crate::limits::{BACKOFF_MAX, BACKOFF_MIN};

/// Doubles from [`BACKOFF_MIN`] to [`BACKOFF_MAX`]; each pause is drawn between half and all of it, so that two
/// walproposers do not stay in step.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Backoff {
        Backoff { next: BACKOFF_MIN }
    }

    /// To be called after a success.
    pub(crate) fn reset(&mut self) {
        self.next = BACKOFF_MIN;
    }

    /// The next pause.
    pub(crate) fn step(&mut self) -> Duration {
        let pause = self.next.mul_f64(rand::random_range(0.5..=1.0));
        self.next = (self.next * 2).min(BACKOFF_MAX);
        pause
    }

    pub(crate) async fn pause(&mut self) {
        tokio::time::sleep(self.step()).await;
    }
}
