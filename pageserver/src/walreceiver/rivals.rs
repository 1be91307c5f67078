//! Whether another safekeeper has long had what the one that is streamed from does not bring.
//!
//! A safekeeper that is stopped ends its stream; one that is cut off from the compute and from the others, or whose disk is slow,
//! does not. Readers that wait are noticed by [`super::connection`]; without any, a compute would write until backpressure holds it
//! up for good, because the page server does not come on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pg_types::Lsn;
use pg_wire::{Client, ConnectParams};

use super::Settings;
use super::connection::params;
use crate::timeline::Timeline;

/// The others are asked so often while anything changes.
const ASK_MIN: Duration = Duration::from_secs(3);
/// And so often when nothing does.
const ASK_MAX: Duration = Duration::from_secs(60);
/// How long one of them may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// What the stream has told of its safekeeper.
#[derive(Debug, Default)]
pub(super) struct Heard {
    commit_lsn: AtomicU64,
    was_busy: AtomicBool,
}

impl Heard {
    /// WAL up to here is committed, says the safekeeper.
    pub(super) fn committed(&self, lsn: Lsn) {
        self.commit_lsn.fetch_max(lsn.0, Ordering::Relaxed);
    }

    /// The stream was not read for a while, because ingest has enough to do: nothing can be said of the safekeeper.
    pub(super) fn busy(&self) {
        self.was_busy.store(true, Ordering::Relaxed);
    }
}

/// One look at all positions after another.
#[derive(Debug)]
struct Comparison {
    /// What the farthest of the others had committed at the last look.
    others_before: Lsn,
    heard_before: Lsn,
    pause: Duration,
}

impl Comparison {
    fn new() -> Comparison {
        let (others_before, heard_before) = (Lsn::INVALID, Lsn::INVALID);
        Comparison { others_before, heard_before, pause: ASK_MIN }
    }

    /// `true` when by now the safekeeper has not come to where another one was at the look before.
    fn is_overtaken(&mut self, heard: Lsn, others: Lsn, was_busy: bool) -> bool {
        let overtaken = heard < self.others_before && !was_busy;
        let is_quiet = (heard, others) == (self.heard_before, self.others_before);
        self.pause = if is_quiet { (self.pause * 2).min(ASK_MAX) } else { ASK_MIN };
        self.heard_before = heard;
        // What was there before ingest had its hands full is no measure.
        self.others_before = if was_busy { Lsn::INVALID } else { others };
        overtaken
    }
}

/// Returns when another of `safekeepers` has been ahead of the current one for a while.
pub(super) async fn overtaken(
    timeline: &Timeline,
    safekeepers: &[String],
    current: &str,
    heard: &Heard,
    settings: &Settings,
) {
    let mut comparison = Comparison::new();
    loop {
        tokio::time::sleep(comparison.pause).await;
        let mut others = Lsn::INVALID;
        for rival in safekeepers.iter().filter(|rival| *rival != current) {
            others = others.max(commit_lsn(timeline, rival, settings).await);
        }
        let commit_lsn = Lsn(heard.commit_lsn.load(Ordering::Relaxed));
        let was_busy = heard.was_busy.swap(false, Ordering::Relaxed);
        // WAL that is here does not have to be brought.
        let known = commit_lsn.max(timeline.last_record_lsn());
        if comparison.is_overtaken(known, others, was_busy) {
            return;
        }
    }
}

/// What a safekeeper knows to be committed; nothing when it does not answer.
async fn commit_lsn(timeline: &Timeline, safekeeper: &str, settings: &Settings) -> Lsn {
    let Ok(params) = params(timeline, safekeeper, settings) else { return Lsn::INVALID };
    let answer = tokio::time::timeout(ANSWER_MAX, ask(&params)).await;
    answer.ok().flatten().unwrap_or_default()
}

async fn ask(params: &ConnectParams) -> Option<Lsn> {
    let mut client = Client::connect(params).await.ok()?;
    let results = client.simple_query("TIMELINE_STATUS").await.ok()?;
    drop(client.close().await);
    results.first()?.value(0, "commit_lsn")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_come_to_where_another_was_is_overtaken() {
        let mut comparison = Comparison::new();
        assert!(!comparison.is_overtaken(Lsn(100), Lsn(200), false), "it may come to 200 yet");
        assert!(!comparison.is_overtaken(Lsn(200), Lsn(300), false));
        assert!(!comparison.is_overtaken(Lsn(299), Lsn(300), true), "it was not listened to");
        assert!(!comparison.is_overtaken(Lsn(299), Lsn(400), false));
        assert!(comparison.is_overtaken(Lsn(399), Lsn(400), false));
    }

    #[test]
    fn silence_makes_for_longer_pauses() {
        let mut comparison = Comparison::new();
        for _ in 0..20 {
            assert!(!comparison.is_overtaken(Lsn(100), Lsn(100), false));
        }
        assert_eq!(comparison.pause, ASK_MAX);
        assert!(!comparison.is_overtaken(Lsn(100), Lsn(101), false));
        assert_eq!(comparison.pause, ASK_MIN);
    }

    #[test]
    fn others_that_do_not_answer_overtake_nobody() {
        let mut comparison = Comparison::new();
        for _ in 0..3 {
            assert!(!comparison.is_overtaken(Lsn(1), Lsn::INVALID, false));
        }
    }
}
