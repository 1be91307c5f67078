//! Prometheus metrics. One registry per safekeeper, so that several can live in one process.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// Upper bounds in seconds for operations on disk.
const DISK_SECONDS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0,
    30.0,
];
/// Upper bounds for requests that share a flush.
const GROUP_SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// All metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    /// Time to make written WAL durable.
    pub flush_seconds: Histogram,
    /// Messages of a proposer that were served by one flush.
    pub flush_group_size: Histogram,
    /// WAL bytes written.
    pub written_bytes: IntCounter,
    /// Time to save a control file.
    pub control_file_seconds: Histogram,
    /// Segments removed because nobody needs them.
    pub removed_segments: IntCounter,
    /// Objects made in the object store.
    pub backup_uploads: IntCounter,
    /// WAL bytes in them.
    pub backup_bytes: IntCounter,
    /// Uploads that failed.
    pub backup_errors: IntCounter,
    /// WAL bytes read back from the object store.
    pub backup_fetched_bytes: IntCounter,
    /// WAL bytes sent.
    pub sent_bytes: IntCounter,
    /// Connections of proposers.
    pub wal_receivers: IntGauge,
    /// Connections of those who read WAL.
    pub wal_senders: IntGauge,
    /// Connections that ended, by how.
    pub connections_ended: IntCounterVec,
    /// Positions of each timeline.
    pub lsn: IntGaugeVec,
    /// Term of each timeline.
    pub term: IntGaugeVec,
    /// 1 for a timeline that is out of service.
    pub quarantined: IntGaugeVec,
}

impl Metrics {
    /// Registers everything.
    pub fn new() -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new_custom(Some("safekeeper".to_owned()), None)?;
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            let metric = Histogram::with_opts(opts)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let counter = |name: &str, help: &str| {
            let metric = IntCounter::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let gauge = |name: &str, help: &str| {
            let metric = IntGauge::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let ended = Opts::new("connections_ended_total", "Connections that ended, by how");
        let connections_ended = IntCounterVec::new(ended, &["how"])?;
        registry.register(Box::new(connections_ended.clone()))?;
        let timeline = ["tenant_id", "timeline_id"];
        Ok(Metrics {
            flush_seconds: histogram("flush_seconds", "Time to make WAL durable", DISK_SECONDS)?,
            flush_group_size: histogram(
                "flush_group_size",
                "Messages served by one flush",
                GROUP_SIZES,
            )?,
            written_bytes: counter("written_wal_bytes_total", "WAL bytes written")?,
            control_file_seconds: histogram(
                "control_file_save_seconds",
                "Time to save a control file",
                DISK_SECONDS,
            )?,
            removed_segments: counter("removed_segments_total", "WAL segments removed")?,
            backup_uploads: counter("backup_uploads_total", "WAL objects uploaded")?,
            backup_bytes: counter("backup_uploaded_bytes_total", "WAL bytes uploaded")?,
            backup_errors: counter("backup_errors_total", "Uploads of WAL that failed")?,
            backup_fetched_bytes: counter(
                "backup_fetched_bytes_total",
                "WAL bytes read from the object store",
            )?,
            sent_bytes: counter("sent_wal_bytes_total", "WAL bytes sent to readers")?,
            wal_receivers: gauge("wal_receivers", "Connections of proposers")?,
            wal_senders: gauge("wal_senders", "Connections of WAL readers")?,
            connections_ended,
            lsn: gauges(
                "lsn",
                "Positions of a timeline",
                &["tenant_id", "timeline_id", "position"],
            )?,
            term: gauges("term", "Term of a timeline", &timeline)?,
            quarantined: gauges("quarantined", "1 when a timeline is out of service", &timeline)?,
            registry,
        })
    }

    /// Everything in the text format.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// Seconds as Prometheus counts them.
pub fn seconds(elapsed: Duration) -> f64 {
    elapsed.as_secs_f64()
}
