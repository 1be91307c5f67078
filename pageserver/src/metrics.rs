//! Measurements, by Prometheus' conventions: base units, `_total` on counters alone.

use std::sync::LazyLock;

use page_protocol::RequestKind;
use pg_types::{Lsn, TenantId, TimelineId};
use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

/// From 5 µs, a page found in memory, to 10 s.
const LATENCY_BUCKETS: [f64; 17] = [
    5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5, 2.0,
    10.0,
];
const WAIT_BUCKETS: [f64; 9] = [1e-3, 5e-3, 2e-2, 0.1, 0.5, 2.0, 10.0, 30.0, 60.0];
const COUNT_BUCKETS: [f64; 12] =
    [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0, 4096.0];

/// Everything that `/metrics` shows.
pub static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::new);

/// Registers a collector; a second one of the same name would be a defect of this file, and is only not shown.
fn registered<C: Collector + Clone + 'static>(made: prometheus::Result<C>) -> C {
    #[expect(
        clippy::expect_used,
        reason = "names and labels are constants of this file, covered by a test"
    )]
    let collector = made.expect("metric has a valid name");
    if let Err(error) = REGISTRY.register(Box::new(collector.clone())) {
        tracing::error!("metric is not shown: {error}");
    }
    collector
}

fn histogram(name: &str, help: &str, buckets: &[f64]) -> Histogram {
    registered(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
}

fn counter(name: &str, help: &str) -> IntCounter {
    registered(IntCounter::new(name, help))
}

fn gauge_vec(name: &str, help: &str) -> IntGaugeVec {
    registered(IntGaugeVec::new(Opts::new(name, help), &["tenant_id", "timeline_id"]))
}

/// Measurements that are not split by timeline.
pub struct GlobalMetrics {
    /// Requests of the page service.
    pub requests: RequestMetrics,
    /// Requests of one batch.
    pub batch_size: Histogram,
    /// Connections of the page service that are open.
    pub connections: IntGauge,
    /// Waits for WAL.
    pub wait_lsn_seconds: Histogram,
    /// Memtables and layer files visited for a page.
    pub layers_per_read: Histogram,
    /// Records replayed for a page, where there were any.
    pub records_per_read: Histogram,
    /// Pages found in the cache of rebuilt pages.
    pub page_cache_hits: IntCounter,
    /// Relation sizes that were remembered.
    pub relsize_hits: IntCounter,
    /// Relation sizes that had to be read.
    pub relsize_misses: IntCounter,
    /// Flushes of a timeline's memory to a layer file.
    pub flush_seconds: Histogram,
    /// Base backups, by kind.
    pub basebackup_seconds: HistogramVec,
    /// WAL bytes received.
    pub wal_received_bytes: IntCounter,
    /// WAL records ingested.
    pub wal_ingested_records: IntCounter,
    last_record_lsn: IntGaugeVec,
    disk_consistent_lsn: IntGaugeVec,
    logical_size: IntGaugeVec,
    ingest_failed: IntGaugeVec,
    /// Timelines that could not be loaded.
    pub broken_timelines: IntGauge,
}

/// Measurements of page service requests.
pub struct RequestMetrics {
    exists: KindMetrics,
    nblocks: KindMetrics,
    get_page: KindMetrics,
    db_size: KindMetrics,
    slru_segment: KindMetrics,
}

/// Measurements of one kind of request, with labels resolved once: a look-up would cost as much as a small read.
pub struct KindMetrics {
    /// From decoded to encoded, waits for WAL included.
    pub seconds: Histogram,
    /// Requests that were begun; minus the count of the histogram: those that are stuck.
    pub started: IntCounter,
    /// Requests that were answered with an error.
    pub errors: IntCounter,
}

impl RequestMetrics {
    fn new() -> RequestMetrics {
        let labels = ["smgr_query_type"];
        let seconds = registered(HistogramVec::new(
            HistogramOpts::new(
                "pageserver_smgr_query_seconds",
                "Time to answer a page service request, waits for WAL included",
            )
            .buckets(LATENCY_BUCKETS.to_vec()),
            &labels,
        ));
        let counter_vec =
            |name: &str, help: &str| registered(IntCounterVec::new(Opts::new(name, help), &labels));
        let started =
            counter_vec("pageserver_smgr_query_started_total", "Page service requests begun");
        let errors = counter_vec(
            "pageserver_smgr_query_errors_total",
            "Page service requests answered with an error",
        );
        let kind = |name: &str| KindMetrics {
            seconds: seconds.with_label_values(&[name]),
            started: started.with_label_values(&[name]),
            errors: errors.with_label_values(&[name]),
        };
        RequestMetrics {
            exists: kind("get_rel_exists"),
            nblocks: kind("get_rel_size"),
            get_page: kind("get_page_at_lsn"),
            db_size: kind("get_db_size"),
            slru_segment: kind("get_slru_segment"),
        }
    }

    /// Those of a request's kind.
    pub fn of(&self, kind: &RequestKind) -> &KindMetrics {
        match kind {
            RequestKind::Exists(_) => &self.exists,
            RequestKind::Nblocks(_) => &self.nblocks,
            RequestKind::GetPage(..) => &self.get_page,
            RequestKind::DbSize(_) => &self.db_size,
            RequestKind::SlruSegment(..) => &self.slru_segment,
        }
    }
}

/// The one set of global measurements.
pub static GLOBAL: LazyLock<GlobalMetrics> = LazyLock::new(|| GlobalMetrics {
    requests: RequestMetrics::new(),
    batch_size: histogram(
        "pageserver_page_service_batch_size",
        "Requests answered with one flush",
        &COUNT_BUCKETS,
    ),
    connections: registered(IntGauge::new(
        "pageserver_page_service_connections",
        "Open connections of the page service",
    )),
    wait_lsn_seconds: histogram("pageserver_wait_lsn_seconds", "Waits for WAL", &WAIT_BUCKETS),
    layers_per_read: histogram(
        "pageserver_layers_per_read",
        "Memtables and layer files visited for a page",
        &COUNT_BUCKETS,
    ),
    records_per_read: histogram(
        "pageserver_deltas_per_read",
        "Records replayed for a page, where there were any",
        &COUNT_BUCKETS,
    ),
    page_cache_hits: counter(
        "pageserver_page_cache_hits_total",
        "Pages found in the cache of rebuilt pages",
    ),
    relsize_hits: counter(
        "pageserver_relsize_latest_cache_hits_total",
        "Relation sizes that were remembered",
    ),
    relsize_misses: counter(
        "pageserver_relsize_latest_cache_misses_total",
        "Relation sizes that had to be read",
    ),
    flush_seconds: histogram(
        "pageserver_flush_seconds",
        "Flushes of a timeline's memory to a layer file",
        &WAIT_BUCKETS,
    ),
    basebackup_seconds: registered(HistogramVec::new(
        HistogramOpts::new("pageserver_basebackup_query_seconds", "Base backups served")
            .buckets(WAIT_BUCKETS.to_vec()),
        &["kind"],
    )),
    wal_received_bytes: counter("pageserver_wal_received_bytes_total", "WAL bytes received"),
    wal_ingested_records: counter("pageserver_wal_ingested_records_total", "WAL records ingested"),
    last_record_lsn: gauge_vec("pageserver_last_record_lsn_bytes", "WAL ingested up to here"),
    disk_consistent_lsn: gauge_vec(
        "pageserver_disk_consistent_lsn_bytes",
        "WAL in layer files up to here",
    ),
    logical_size: gauge_vec(
        "pageserver_current_logical_size_bytes",
        "Bytes of all relations of a timeline",
    ),
    ingest_failed: gauge_vec(
        "pageserver_wal_ingest_failed",
        "1 when a timeline's WAL cannot be ingested",
    ),
    broken_timelines: registered(IntGauge::new(
        "pageserver_broken_timelines",
        "Timelines that could not be loaded",
    )),
});

/// Measurements of one timeline, with labels resolved once.
pub struct TimelineMetrics {
    labels: [String; 2],
    last_record_lsn: IntGauge,
    disk_consistent_lsn: IntGauge,
    logical_size: IntGauge,
    ingest_failed: IntGauge,
    /// See [`GlobalMetrics::wait_lsn_seconds`].
    pub wait_lsn_seconds: Histogram,
    /// See [`GlobalMetrics::layers_per_read`].
    pub layers_per_read: Histogram,
    /// See [`GlobalMetrics::records_per_read`].
    pub records_per_read: Histogram,
    /// See [`GlobalMetrics::page_cache_hits`].
    pub page_cache_hits: IntCounter,
    /// See [`GlobalMetrics::relsize_hits`].
    pub relsize_hits: IntCounter,
    /// See [`GlobalMetrics::relsize_misses`].
    pub relsize_misses: IntCounter,
    /// See [`GlobalMetrics::flush_seconds`].
    pub flush_seconds: Histogram,
}

impl TimelineMetrics {
    /// The measurements of a timeline.
    pub fn new(tenant: TenantId, timeline: TimelineId) -> TimelineMetrics {
        let labels = [tenant.to_string(), timeline.to_string()];
        let gauge =
            |vec: &IntGaugeVec| vec.with_label_values(&[labels[0].as_str(), labels[1].as_str()]);
        TimelineMetrics {
            last_record_lsn: gauge(&GLOBAL.last_record_lsn),
            disk_consistent_lsn: gauge(&GLOBAL.disk_consistent_lsn),
            logical_size: gauge(&GLOBAL.logical_size),
            ingest_failed: gauge(&GLOBAL.ingest_failed),
            wait_lsn_seconds: GLOBAL.wait_lsn_seconds.clone(),
            layers_per_read: GLOBAL.layers_per_read.clone(),
            records_per_read: GLOBAL.records_per_read.clone(),
            page_cache_hits: GLOBAL.page_cache_hits.clone(),
            relsize_hits: GLOBAL.relsize_hits.clone(),
            relsize_misses: GLOBAL.relsize_misses.clone(),
            flush_seconds: GLOBAL.flush_seconds.clone(),
            labels,
        }
    }

    /// How far the timeline has come.
    pub fn set_positions(&self, last_record: Lsn, disk_consistent: Lsn) {
        self.last_record_lsn.set(saturating(last_record.0));
        self.disk_consistent_lsn.set(saturating(disk_consistent.0));
    }

    /// Bytes of all relations.
    pub fn set_logical_size(&self, bytes: u64) {
        self.logical_size.set(saturating(bytes));
    }

    /// Bytes of all relations, as last computed.
    pub fn logical_size(&self) -> u64 {
        u64::try_from(self.logical_size.get()).unwrap_or(0)
    }

    /// Whether WAL cannot be ingested.
    pub fn set_ingest_failed(&self, failed: bool) {
        self.ingest_failed.set(i64::from(failed));
    }

    /// Takes the timeline's series off the page.
    pub fn remove(&self) {
        let labels = [self.labels[0].as_str(), self.labels[1].as_str()];
        let vecs = [
            &GLOBAL.last_record_lsn,
            &GLOBAL.disk_consistent_lsn,
            &GLOBAL.logical_size,
            &GLOBAL.ingest_failed,
        ];
        for vec in vecs {
            // An error means that it is gone already.
            let _ = vec.remove_label_values(&labels);
        }
    }
}

fn saturating(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The page that Prometheus reads.
pub fn render() -> Result<String, prometheus::Error> {
    LazyLock::force(&GLOBAL);
    let mut text = Vec::new();
    let families = REGISTRY.gather().into_iter().chain(prometheus::gather());
    TextEncoder::new().encode(&families.collect::<Vec<_>>(), &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_come_and_go_with_their_timeline() {
        let (tenant, timeline) = (TenantId([1; 16]), TimelineId([2; 16]));
        let metrics = TimelineMetrics::new(tenant, timeline);
        metrics.set_positions(Lsn(0x10), Lsn(0x8));
        let line = format!(
            "pageserver_last_record_lsn_bytes{{tenant_id=\"{tenant}\",timeline_id=\"{timeline}\"}} 16"
        );
        assert!(render().unwrap().contains(&line));
        metrics.remove();
        assert!(!render().unwrap().contains(&timeline.to_string()));
    }

    #[test]
    fn every_metric_is_registered() {
        let page = render().unwrap();
        for name in ["pageserver_smgr_query_seconds_bucket", "pageserver_wait_lsn_seconds_count"] {
            assert!(page.contains(name), "{name}");
        }
    }
}
