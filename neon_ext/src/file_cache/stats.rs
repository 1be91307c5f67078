//! What the local file cache has done since the server started, and what is in it.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use compute_core::file_cache::{Chunk, ChunkKey};
use compute_core::fixed_map::Key;
use compute_core::last_written::BlockKey;
use pg_types::{BlockNumber, RelTag};

use crate::counters::Line;
use crate::ffi::file_cache::{self as memory, Fixed};
use crate::histogram::Histogram;

/// Numbers in shared memory. All-zero bytes are a valid value.
#[repr(C)]
pub struct Stats {
    /// Blocks that were read from the cache.
    pub hits: AtomicU64,
    /// Blocks that were asked for and not there.
    pub misses: AtomicU64,
    /// Blocks written to the cache.
    pub writes: AtomicU64,
    /// Blocks that had to go for others.
    pub evicted_pages: AtomicU64,
    /// Pages of the list that was read last.
    pub prewarm_total: AtomicU64,
    /// Pages of it that were brought.
    pub prewarmed: AtomicU64,
    /// Pages of it that are dealt with and were not brought.
    pub prewarm_skipped: AtomicU64,
    /// Number of the process that works on such a list; 0 when none does.
    pub prewarm_owner: AtomicU64,
    /// Times of reads that found something.
    pub read_wait: Histogram,
    /// Times of writes.
    pub write_wait: Histogram,
}

/// Adds to a number.
pub(super) fn add(number: &AtomicU64, amount: u64) {
    number.fetch_add(amount, Ordering::Relaxed);
}

/// When the server started; all processes inherit it.
static STARTED: OnceLock<Instant> = OnceLock::new();

/// Begins to count seconds, in the postmaster.
pub(super) fn start_clock() {
    STARTED.get_or_init(Instant::now);
}

/// The second since the server started, from 1.
fn second() -> u32 {
    let seconds = STARTED.get().map_or(0, |started| started.elapsed().as_secs());
    u32::try_from(seconds).unwrap_or(u32::MAX - 1) + 1
}

/// Notes for the working set that blocks were read or written.
pub(super) fn note_used(fixed: &Fixed, rel: RelTag, blocks: Range<BlockNumber>) {
    let (set, now) = (fixed.working_set(), second());
    for block in blocks {
        set.used(BlockKey::new(rel, block).hash(), now);
    }
}

/// About how many pages were used in the last `seconds`, or since the last reset; `None` without a cache.
pub fn working_set_size(seconds: Option<u32>) -> Option<u64> {
    let (fixed, _) = memory::attached()?;
    let since = seconds.map_or(0, |seconds| second().saturating_sub(seconds));
    Some(fixed.working_set().estimate(since))
}

/// Forgets which pages were used.
pub fn reset_working_set() {
    if let Some((fixed, _)) = memory::attached() {
        fixed.working_set().reset();
    }
}

/// A chunk in the cache, and how often it was used lately.
pub type Entry = (ChunkKey, Chunk, u32);

/// All chunks, partition by partition, in each from the one that came first.
pub(super) fn entries() -> Vec<Entry> {
    let Some((_, geometry)) = memory::attached() else { return Vec::new() };
    (0..geometry.partitions()).flat_map(entries_of).collect()
}

/// The chunks of a partition, from the one that came first.
pub(super) fn entries_of(partition: usize) -> Vec<Entry> {
    memory::shared(partition, |chunks| chunks.chunks().collect())
}

/// A cached page: its place in the list, its block, how often its chunk was used lately.
pub type CachedPage = (usize, BlockKey, u32);

/// All cached pages.
pub fn pages() -> Vec<CachedPage> {
    let Some((_, geometry)) = memory::attached() else { return Vec::new() };
    let pages = entries().into_iter().flat_map(|(key, chunk, uses)| {
        let first = key.block * geometry.chunk_blocks();
        chunk.available().iter().map(move |at| (BlockKey { block: first + at, ..key }, uses))
    });
    pages.enumerate().map(|(place, (key, uses))| (place, key, uses)).collect()
}

/// The rows of `neon_lfc_stats`; none without a cache.
pub fn overview() -> Vec<(&'static str, u64)> {
    let Some((fixed, geometry)) = memory::attached() else { return Vec::new() };
    let load = |number: &AtomicU64| number.load(Ordering::Relaxed);
    let entries = entries();
    let pages: u64 = entries.iter().map(|(_, chunk, _)| u64::from(chunk.available().len())).sum();
    let pinned = entries.iter().filter(|(_, chunk, _)| !chunk.pending().is_empty()).count();
    let is_on = fixed.is_on.load(Ordering::Acquire);
    vec![
        ("file_cache_is_on", u64::from(is_on)),
        ("file_cache_chunk_size_pages", geometry.chunk_blocks().into()),
        ("file_cache_limit", if is_on { load(&fixed.limit) } else { 0 }),
        ("file_cache_used", entries.len() as u64),
        ("file_cache_used_pages", pages),
        ("file_cache_chunks_pinned", pinned as u64),
        ("file_cache_hits", load(&fixed.stats.hits)),
        ("file_cache_misses", load(&fixed.stats.misses)),
        ("file_cache_writes", load(&fixed.stats.writes)),
        ("file_cache_evicted_pages", load(&fixed.stats.evicted_pages)),
    ]
}

/// Lines of the view `neon_perf_counters`.
pub fn lines() -> Vec<Line> {
    let Some((fixed, _)) = memory::attached() else { return Vec::new() };
    #[expect(clippy::cast_precision_loss, reason = "counters are shown, not computed with")]
    let float = |number: &AtomicU64| number.load(Ordering::Relaxed) as f64;
    let mut lines: Vec<Line> = [
        ("file_cache_hits_total", &fixed.stats.hits),
        ("file_cache_misses_total", &fixed.stats.misses),
        ("file_cache_writes_total", &fixed.stats.writes),
        ("file_cache_evicted_pages_total", &fixed.stats.evicted_pages),
    ]
    .map(|(name, number)| (name.to_owned(), None, float(number)))
    .into();
    lines.extend(fixed.stats.read_wait.lines("file_cache_read_wait_seconds"));
    lines.extend(fixed.stats.write_wait.lines("file_cache_write_wait_seconds"));
    lines
}
