//! What is measured (L057–L061), in the process-wide Prometheus registry.

use std::sync::LazyLock;

use prometheus::{
    Histogram, HistogramOpts, IntCounter, exponential_buckets, register_histogram,
    register_int_counter,
};

fn histogram(name: &str, help: &str, start: f64, factor: f64, count: usize) -> Histogram {
    let buckets = exponential_buckets(start, factor, count).expect("constants make buckets");
    register_histogram!(HistogramOpts::new(name, help).buckets(buckets))
        .expect("each metric is registered once")
}

/// Seconds from the start of a Postgres batch until a process is held; a launch is not counted.
pub static WAL_REDO_WAIT_TIME: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "pageserver_wal_redo_wait_seconds",
        "Time spent waiting for access to the WAL redo process",
        1e-6,
        4.0,
        14,
    )
});

/// Seconds each batch takes. For Postgres batches it begins when the process is held, so it includes a launch.
pub static WAL_REDO_TIME: LazyLock<Histogram> = LazyLock::new(|| {
    histogram("pageserver_wal_redo_seconds", "Time spent on WAL redo of one batch", 1e-6, 2.0, 26)
});

/// Records of each Postgres batch.
pub static WAL_REDO_RECORDS_HISTOGRAM: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "pageserver_wal_redo_records_histogram",
        "Records in one batch for the WAL redo process",
        1.0,
        2.0,
        16,
    )
});

/// Record bytes of each Postgres batch.
pub static WAL_REDO_BYTES_HISTOGRAM: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "pageserver_wal_redo_bytes_histogram",
        "Bytes of records in one batch for the WAL redo process",
        32.0,
        2.0,
        20,
    )
});

/// Records sent to redo processes.
pub static WAL_REDO_RECORD_COUNTER: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!(
        "pageserver_replayed_wal_records_total",
        "WAL records replayed by the WAL redo process"
    )
    .expect("each metric is registered once")
});
