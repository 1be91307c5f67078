//! Functions of `CREATE EXTENSION neon`. Their SQL declarations are in `sql/neon--1.0.sql`.

use pgrx::prelude::*;

use compute_core::backpressure::{Limits, Pace};

use crate::counters::{self, Counter};
use crate::ffi::{feedback_map, guc, shmem, xlog};
use crate::file_cache;

/// Version of the extension.
#[pg_extern]
fn neon_version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Whether permanent relations of this server live on a page server.
#[pg_extern]
fn neon_is_compute() -> bool {
    shmem::is_attached()
}

/// Logical size of the timeline in bytes; NULL while unknown.
#[pg_extern]
fn pg_cluster_size() -> Option<i64> {
    let size = feedback_map::read()?.current_timeline_size;
    i64::try_from(size).ok().filter(|size| *size > 0)
}

/// How far storage is, as bytes from 0/0; NULL while unknown.
#[pg_extern]
#[expect(
    clippy::type_complexity,
    reason = "the macro reads the columns from the type as it is written"
)]
fn backpressure_positions() -> TableIterator<
    'static,
    (
        name!(received, Option<i64>),
        name!(disk_consistent, Option<i64>),
        name!(remote_consistent, Option<i64>),
        name!(committed, Option<i64>),
    ),
> {
    let known = |lsn: pg_types::Lsn| i64::try_from(lsn.0).ok().filter(|lsn| *lsn > 0);
    let row = feedback_map::read().map_or((None, None, None, None), |feedback| {
        (
            known(feedback.last_received_lsn),
            known(feedback.disk_consistent_lsn),
            known(feedback.remote_consistent_lsn),
            known(feedback.commit_lsn),
        )
    });
    TableIterator::once(row)
}

/// How far storage is behind the local end of WAL, in bytes (NULL while unknown), the limits (0 for none), and what
/// follows from both.
#[pg_extern]
fn backpressure_lags() -> TableIterator<
    'static,
    (
        name!(stage, &'static str),
        name!(lag, Option<i64>),
        name!(lag_limit, i64),
        name!(seconds_per_mebibyte, f64),
    ),
> {
    let feedback = feedback_map::read().unwrap_or_default();
    let (flushed, limits) = (xlog::flush_position(), guc::lag_limits());
    let (write, flush, apply) = (limits.write, limits.flush, limits.apply);
    let stages = [
        ("received", feedback.last_received_lsn, Limits { write, ..Limits::default() }, write),
        (
            "disk_consistent",
            feedback.disk_consistent_lsn,
            Limits { flush, ..Limits::default() },
            flush,
        ),
        (
            "remote_consistent",
            feedback.remote_consistent_lsn,
            Limits { apply, ..Limits::default() },
            apply,
        ),
    ];
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    TableIterator::new(stages.map(|(stage, position, limits, limit)| {
        let lag = position.is_valid().then(|| bytes(flushed.saturating_sub(position)));
        (stage, lag, bytes(limit), Pace::at(flushed, &feedback, &limits).seconds_per_mebibyte())
    }))
}

/// Microseconds that writers were held back since the server started.
#[pg_extern]
fn backpressure_throttling_time() -> i64 {
    i64::try_from(counters::get(Counter::ThrottledMicros)).unwrap_or(i64::MAX)
}

/// Counters and histograms of the page client.
#[pg_extern]
fn get_perf_counters()
-> TableIterator<'static, (name!(metric, String), name!(bucket_le, Option<f64>), name!(value, f64))>
{
    TableIterator::new(counters::lines())
}

fn bigint(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// State and figures of the local file cache.
#[pg_extern]
fn neon_get_lfc_stats() -> TableIterator<'static, (name!(lfc_key, String), name!(lfc_value, i64))> {
    let rows = file_cache::overview().into_iter();
    TableIterator::new(rows.map(|(key, value)| (key.to_owned(), bigint(value))))
}

/// Pages in the local file cache.
#[pg_extern]
fn local_cache_pages() -> TableIterator<
    'static,
    (
        name!(pageoffs, i64),
        name!(relfilenode, pg_sys::Oid),
        name!(reltablespace, pg_sys::Oid),
        name!(reldatabase, pg_sys::Oid),
        name!(relforknumber, i16),
        name!(relblocknumber, i64),
        name!(accesscount, i32),
    ),
> {
    let rows = file_cache::pages().into_iter().map(|(place, key, uses)| {
        (
            bigint(place as u64),
            key.rel_number.into(),
            key.spc_oid.into(),
            key.db_oid.into(),
            i16::try_from(key.fork).unwrap_or(i16::MAX),
            key.block.into(),
            i32::try_from(uses).unwrap_or(i32::MAX),
        )
    });
    TableIterator::new(rows)
}

fn pages(count: Option<u64>) -> Option<i32> {
    count.map(|count| i32::try_from(count).unwrap_or(i32::MAX))
}

/// About how many different pages were read or written past shared buffers in the last seconds, or since the last reset.
#[pg_extern]
fn approximate_working_set_size_seconds(duration: Option<i32>) -> Option<i32> {
    let seconds = duration.map(|seconds| u32::try_from(seconds).unwrap_or(0));
    pages(file_cache::working_set_size(seconds))
}

/// As above since the last reset; perhaps with a reset.
#[pg_extern]
fn approximate_working_set_size(reset: bool) -> Option<i32> {
    let size = file_cache::working_set_size(None);
    if reset {
        file_cache::reset_working_set();
    }
    pages(size)
}

/// Which pages the local file cache holds, for [`prewarm_local_cache`]; at most so many chunks of them. NULL without a cache.
#[pg_extern]
fn get_local_cache_state(max_chunks: Option<i32>) -> Option<Vec<u8>> {
    let most = max_chunks.map_or(usize::MAX, |chunks| usize::try_from(chunks).unwrap_or(0));
    file_cache::prewarm::state(most)
}

/// Brings pages into the local file cache, and returns how many it brought.
#[pg_extern]
fn prewarm_local_cache(state: &[u8]) -> Result<i64, file_cache::prewarm::Error> {
    file_cache::prewarm::prewarm(state).map(bigint)
}

/// How far filling the local file cache is; NULL without a cache.
#[pg_extern]
fn get_prewarm_info() -> TableIterator<
    'static,
    (name!(total, i64), name!(prewarmed, i64), name!(skipped, i64), name!(active_workers, i64)),
> {
    let row = file_cache::prewarm::progress();
    TableIterator::new(row.into_iter().map(|numbers| {
        let [total, prewarmed, skipped, active] = numbers.map(bigint);
        (total, prewarmed, skipped, active)
    }))
}
