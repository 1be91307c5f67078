//! What the extension has done since the server started, in shared memory.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::ffi::shmem;
use crate::file_cache;
use crate::histogram::Histogram;

/// One number that only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter {
    /// Pages asked for.
    GetPageRequests,
    /// Questions whether a fork exists.
    ExistsRequests,
    /// Questions for a fork's size.
    NblocksRequests,
    /// Questions for a database's size.
    DbSizeRequests,
    /// Batches of requests sent at once.
    Flushes,
    /// Connections opened.
    Connects,
    /// Connections lost or closed in the middle of a request.
    Disconnects,
    /// Waits for a response that were long enough for the log.
    StuckRequests,
    /// Connections closed because no response came.
    ResponseTimeouts,
    /// Errors that the page server answered.
    ErrorResponses,
    /// Pages written to spill files.
    SpillWrites,
    /// Pages read from spill files.
    SpillReads,
    /// Images of free space map pages logged.
    FsmImages,
    /// Images logged of pages that could not be spilled.
    UnloggedImages,
    /// Records "relation extended" logged.
    ExtendRecords,
    /// Pages compared with the page server's.
    AuditedPages,
    /// Audited pages of visibility maps that the page server has with fewer bits.
    LostVisibilityBits,
    /// Microseconds that writers were held back.
    ThrottledMicros,
    /// Pages asked for ahead of need.
    PrefetchRequests,
    /// Pages read that had been asked for ahead of need.
    PrefetchHits,
    /// Pages to be asked for ahead of need that were here or under way already.
    PrefetchDuplicates,
    /// Pages asked for ahead of need that nobody read before they were out of date or their place was needed.
    PrefetchWasted,
    /// Times that WAL waited before it was sent to safekeepers, and more commits came.
    CommitsJoined,
    /// Times that it waited in vain.
    CommitsHeldInVain,
    /// Huge pages that shared memory was put into.
    HugePages,
}

/// Every counter with its name in views, in the order of their declaration.
const COUNTERS: [(Counter, &str); 25] = [
    (Counter::GetPageRequests, "getpage_sync_requests_total"),
    (Counter::ExistsRequests, "exists_requests_total"),
    (Counter::NblocksRequests, "nblocks_requests_total"),
    (Counter::DbSizeRequests, "dbsize_requests_total"),
    (Counter::Flushes, "pageserver_send_flushes_total"),
    (Counter::Connects, "pageserver_connects_total"),
    (Counter::Disconnects, "pageserver_disconnects_total"),
    (Counter::StuckRequests, "compute_getpage_stuck_requests_total"),
    (Counter::ResponseTimeouts, "pageserver_response_timeouts_total"),
    (Counter::ErrorResponses, "pageserver_error_responses_total"),
    (Counter::SpillWrites, "spill_writes_total"),
    (Counter::SpillReads, "spill_reads_total"),
    (Counter::FsmImages, "fsm_images_logged_total"),
    (Counter::UnloggedImages, "unlogged_page_images_logged_total"),
    (Counter::ExtendRecords, "relation_extend_records_total"),
    (Counter::AuditedPages, "audited_pages_total"),
    (Counter::LostVisibilityBits, "audited_pages_without_visibility_bits_total"),
    (Counter::ThrottledMicros, "backpressure_throttling_us_total"),
    (Counter::PrefetchRequests, "getpage_prefetch_requests_total"),
    (Counter::PrefetchHits, "getpage_prefetch_hits_total"),
    (Counter::PrefetchDuplicates, "getpage_prefetch_duplicates_total"),
    (Counter::PrefetchWasted, "getpage_prefetch_discards_total"),
    (Counter::CommitsJoined, "commits_held_and_joined_total"),
    (Counter::CommitsHeldInVain, "commits_held_in_vain_total"),
    (Counter::HugePages, "shared_memory_huge_pages_total"),
];

/// The numbers. All-zero bytes are a valid value.
#[repr(C)]
pub struct Counters {
    values: [AtomicU64; COUNTERS.len()],
    getpage_wait: Histogram,
}

thread_local! {
    /// What this process has added.
    static OWN: [Cell<u64>; COUNTERS.len()] = const { [const { Cell::new(0) }; COUNTERS.len()] };
}

/// What this process has added to a counter.
pub fn of_this_process(counter: Counter) -> u64 {
    OWN.with(|own| own.get(counter as usize).map_or(0, Cell::get))
}

/// Adds to a counter; nothing happens where there is no shared memory.
pub fn add(counter: Counter, amount: u64) {
    OWN.with(|own| {
        if let Some(own) = own.get(counter as usize) {
            own.set(own.get().wrapping_add(amount));
        }
    });
    let value = shmem::fixed().and_then(|fixed| fixed.counters.values.get(counter as usize));
    if let Some(value) = value {
        value.fetch_add(amount, Ordering::Relaxed);
    }
}

/// A counter's value.
pub fn get(counter: Counter) -> u64 {
    shmem::fixed()
        .and_then(|fixed| fixed.counters.values.get(counter as usize))
        .map_or(0, |value| value.load(Ordering::Relaxed))
}

/// Records how long a read of one or more pages waited for the page server.
pub fn observe_getpage_wait(time: Duration) {
    if let Some(fixed) = shmem::fixed() {
        fixed.counters.getpage_wait.observe(time);
    }
}

/// One line of the view `neon_perf_counters`: metric, upper bound of a histogram's bucket in seconds, value.
pub type Line = (String, Option<f64>, f64);

#[expect(clippy::cast_precision_loss, reason = "counters are shown, not computed with")]
fn float(value: u64) -> f64 {
    value as f64
}

/// All counters for the view.
pub fn lines() -> Vec<Line> {
    let Some(fixed) = shmem::fixed() else { return Vec::new() };
    let mut lines: Vec<Line> = COUNTERS
        .iter()
        .map(|(counter, name)| ((*name).to_owned(), None, float(get(*counter))))
        .collect();
    lines.extend(fixed.counters.getpage_wait.lines("getpage_wait_seconds"));
    lines.extend(file_cache::lines());
    lines
}
