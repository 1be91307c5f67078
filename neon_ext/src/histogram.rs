//! Histograms of times in shared memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets, in microseconds; the last bucket has none.
const BUCKETS: [u64; 24] = [
    2, 3, 6, 10, 20, 30, 60, 100, 200, 300, 600, 1_000, 2_000, 3_000, 6_000, 10_000, 20_000,
    30_000, 60_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000,
];

/// How often something took how long. All-zero bytes are a valid value.
#[repr(C)]
pub struct Histogram {
    counts: [AtomicU64; BUCKETS.len() + 1],
    micros: AtomicU64,
}

#[expect(clippy::cast_precision_loss, reason = "counters are shown, not computed with")]
fn float(value: u64) -> f64 {
    value as f64
}

impl Histogram {
    /// Records one.
    pub fn observe(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS.partition_point(|bound| *bound < micros);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Lines of a view: metric, upper bound of the bucket in seconds, value.
    pub fn lines(&self, name: &str) -> Vec<(String, Option<f64>, f64)> {
        let mut cumulated = 0.0;
        let bounds = BUCKETS.iter().map(|micros| float(*micros) / 1e6).chain([f64::INFINITY]);
        let mut lines = Vec::new();
        for (bound, count) in bounds.zip(&self.counts) {
            cumulated += float(count.load(Ordering::Relaxed));
            lines.push((format!("{name}_bucket"), Some(bound), cumulated));
        }
        lines.push((format!("{name}_count"), None, cumulated));
        let sum = float(self.micros.load(Ordering::Relaxed)) / 1e6;
        lines.push((format!("{name}_sum"), None, sum));
        lines
    }
}
