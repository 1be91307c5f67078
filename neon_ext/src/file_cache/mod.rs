//! The local file cache (LFC): pages of permanent relations in a local file. What is where, and who may do what when,
//! is in `compute_core::file_cache`; here is what happens with the file.

mod io;
mod limit;
pub mod prewarm;
mod stats;

use std::time::{Duration, Instant};

use compute_core::file_cache::{Begin, BlockSet, ChunkKey, ChunkSpan, Found, Geometry};
use compute_core::request_lsn::wait_position;
use pg_types::page::{self, Page};
use pg_types::{BlockNumber, ForkNumber, Lsn, Oid, RelTag};

pub use self::limit::{apply_limit, start};
pub use self::stats::{Stats, lines, overview, pages, reset_working_set, working_set_size};

use self::limit::turn_off;
use self::stats::add;
use crate::ffi::file_cache::{self as memory, Fixed, Queued};
use crate::ffi::guc_file_cache as guc;
use crate::last_written_lsn;

/// Reads of one chunk that are tried before it counts as not cached: somebody changed it during each.
const READ_ATTEMPTS: usize = 8;

/// While this file is in the data directory, `neon.file_cache_hold_writes` holds.
const HOLD_FILE: &str = "neon_hold_file_cache";

/// Fills what is cached of consecutive blocks; returns which were. Pages that are not in the result hold anything.
///
/// Waits for blocks that another process is writing. Interrupts are served meanwhile.
pub fn read(rel: RelTag, first: BlockNumber, pages: &mut [&mut Page]) -> BlockSet {
    let mut hits = BlockSet::EMPTY;
    let Some((fixed, geometry)) = memory::attached() else { return hits };
    let started = Instant::now();
    let wanted = u32::try_from(pages.len()).unwrap_or(u32::MAX).min(BlockSet::CAPACITY);
    stats::note_used(fixed, rel, first..first.saturating_add(wanted));
    let mut rest = pages;
    let mut done = 0;
    for span in geometry.spans(rel, first..first.saturating_add(wanted)) {
        let count = (span.count as usize).min(rest.len());
        let (these, others) = std::mem::take(&mut rest).split_at_mut(count);
        rest = others;
        for block in read_chunk(geometry, &span, these).iter() {
            hits = hits.or(BlockSet::one(done + block - span.first));
        }
        done += span.count;
    }
    if !hits.is_empty() {
        fixed.stats.read_wait.observe(started.elapsed());
    }
    add(&fixed.stats.hits, hits.len().into());
    add(&fixed.stats.misses, (wanted - hits.len()).into());
    hits
}

/// Reads what is there of the blocks of one chunk; returns their numbers within it.
fn read_chunk(geometry: Geometry, span: &ChunkSpan, pages: &mut [&mut Page]) -> BlockSet {
    let partition = geometry.partition(&span.key);
    let wanted = span.blocks();
    for _ in 0..READ_ATTEMPTS {
        let mut found = memory::shared(partition, |chunks| chunks.look(&span.key, wanted));
        if found.is_some_and(|found| !found.pending.is_empty()) {
            await_pending(partition, &span.key, wanted);
            found = memory::shared(partition, |chunks| chunks.look(&span.key, wanted));
        }
        let Some(found) = found.filter(|found| !found.available.is_empty()) else {
            return BlockSet::EMPTY;
        };
        let result = read_runs(geometry, span, &found, pages);
        let state = memory::slot_state(partition, found.slot);
        if !state.is_some_and(|state| state.is_unchanged(found.version)) {
            continue;
        }
        return match result {
            Ok(()) => found.available,
            Err(error) => {
                turn_off(&format!("could not read from it: {error}"));
                BlockSet::EMPTY
            }
        };
    }
    BlockSet::EMPTY
}

fn read_runs(
    geometry: Geometry,
    span: &ChunkSpan,
    found: &Found,
    pages: &mut [&mut Page],
) -> std::io::Result<()> {
    let partition = geometry.partition(&span.key);
    let at = |block: u32| (block - span.first) as usize;
    for run in found.available.runs() {
        let these = pages.get_mut(at(run.start)..at(run.end)).unwrap_or_default();
        io::read(geometry.offset(partition, found.slot, run.start), these)?;
    }
    Ok(())
}

fn await_pending(partition: usize, key: &ChunkKey, blocks: BlockSet) {
    let mut queued = Queued::new(key);
    while memory::exclusive(partition, |chunks| chunks.wait_for(key, blocks)) {
        queued.sleep();
    }
}

/// Whether a block is cached, or about to be.
pub fn contains(rel: RelTag, block: BlockNumber) -> bool {
    let Some((_, geometry)) = memory::attached() else { return false };
    let (key, at) = geometry.locate(rel, block);
    memory::shared(geometry.partition(&key), |chunks| chunks.contains(&key, at))
}

/// A block that this process is writing to the file. Dropped without [`Pending::finish`], nothing was stored.
struct Pending {
    partition: usize,
    key: ChunkKey,
    block: u32,
    stored: bool,
}

impl Pending {
    fn finish(mut self, stored: bool) {
        self.stored = stored;
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Pending { partition, key, block, stored } = self;
        if memory::exclusive(*partition, |chunks| chunks.finish(key, *block, *stored)) {
            memory::wake(key);
        }
    }
}

/// Writes a pending page to the file. Only plain I/O happens while it is pending, so nothing can come between.
fn store(
    fixed: &Fixed,
    geometry: Geometry,
    pending: Pending,
    begun: (u32, u32),
    page: &Page,
) -> bool {
    let (slot, evicted_pages) = begun;
    let started = Instant::now();
    hold_for_test(&pending.key);
    let result = io::write(geometry.offset(pending.partition, slot, pending.block), page);
    pending.finish(result.is_ok());
    fixed.stats.write_wait.observe(started.elapsed());
    add(&fixed.stats.evicted_pages, evicted_pages.into());
    match result {
        Ok(()) => {
            add(&fixed.stats.writes, 1);
            true
        }
        Err(error) => {
            turn_off(&format!("could not write to it: {error}"));
            false
        }
    }
}

/// `neon.file_cache_hold_writes`: lets a test look at those who wait.
fn hold_for_test(key: &ChunkKey) {
    while guc::holds_writes(key.rel_number) && std::path::Path::new(HOLD_FILE).exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A page leaves shared buffers or is written by a checkpoint: it replaces what is cached. The caller has the I/O lock of
/// the buffer and has set the page's last-written LSN, if it has one. If the page cannot be stored, no older one is left.
///
/// A page of zeros is not stored: see [`io::read`].
pub fn write(rel: RelTag, block: BlockNumber, page: &Page) {
    let Some((fixed, geometry)) = memory::attached() else { return };
    if page::is_new(page) {
        return invalidate(rel, block..block.saturating_add(1));
    }
    stats::note_used(fixed, rel, block..block.saturating_add(1));
    let (key, at) = geometry.locate(rel, block);
    let partition = geometry.partition(&key);
    let begin = || memory::exclusive(partition, |chunks| chunks.begin_write(&key, at));
    let mut begun = begin();
    if begun == Begin::Wait {
        let mut queued = Queued::new(&key);
        loop {
            begun = begin();
            if begun != Begin::Wait {
                break;
            }
            queued.sleep();
        }
    }
    if let Begin::Go { slot, evicted_pages } = begun {
        let pending = Pending { partition, key, block: at, stored: false };
        store(fixed, geometry, pending, (slot, evicted_pages), page);
    }
}

/// Keeps a page that the page server sent, unless the block is cached or has changed since; returns whether it was kept.
///
/// `not_modified_since` is that of the request. No lock of a buffer is needed: the block is pending before its
/// last-written LSN is looked at. Whoever writes a newer version out raises that LSN first and calls [`write`] then,
/// which waits for what is pending and overwrites it.
pub fn fill(rel: RelTag, block: BlockNumber, page: &Page, not_modified_since: Lsn) -> bool {
    let Some((fixed, geometry)) = memory::attached() else { return false };
    if page::is_new(page) {
        return false;
    }
    let (key, at) = geometry.locate(rel, block);
    let partition = geometry.partition(&key);
    let begun = memory::exclusive(partition, |chunks| chunks.begin_fill(&key, at));
    let Begin::Go { slot, evicted_pages } = begun else { return false };
    let pending = Pending { partition, key, block: at, stored: false };
    if wait_position(last_written_lsn::get(rel, block)) > not_modified_since {
        return false;
    }
    store(fixed, geometry, pending, (slot, evicted_pages), page)
}

/// [`fill`] for a page that a read-ahead brought, if such pages are to be kept.
pub fn fill_prefetched(
    rel: RelTag,
    block: BlockNumber,
    page: &Page,
    not_modified_since: Lsn,
) -> bool {
    guc::STORE_PREFETCHED.get() && fill(rel, block, page, not_modified_since)
}

/// [`fill`] for a page that was asked for because the cache had it in an earlier life.
pub fn fill_prewarmed(
    rel: RelTag,
    block: BlockNumber,
    page: &Page,
    not_modified_since: Lsn,
) -> bool {
    let kept = fill(rel, block, page, not_modified_since);
    if kept && let Some((fixed, _)) = memory::attached() {
        add(&fixed.stats.prewarmed, 1);
    }
    kept
}

/// Whether a block can be kept without another chunk having to go.
fn has_room(rel: RelTag, block: BlockNumber) -> bool {
    let Some((_, geometry)) = memory::attached() else { return false };
    let (key, _) = geometry.locate(rel, block);
    memory::shared(geometry.partition(&key), |chunks| chunks.has_room(&key))
}

/// Blocks that are not what they were, or not there any more. Never waits, raises nothing.
///
/// If they were given new content, their last-written LSNs are set before.
pub fn invalidate(rel: RelTag, blocks: std::ops::Range<BlockNumber>) {
    let Some((_, geometry)) = memory::attached() else { return };
    let chunks = blocks.len() / geometry.chunk_blocks() as usize;
    if chunks > geometry.partition_capacity() * geometry.partitions() {
        return invalidate_fork(geometry, rel);
    }
    for span in geometry.spans(rel, blocks) {
        memory::exclusive(geometry.partition(&span.key), |chunks| {
            chunks.invalidate(&span.key, span.blocks());
        });
    }
}

fn invalidate_fork(geometry: Geometry, rel: RelTag) {
    let any = ChunkKey::new(rel, 0);
    invalidate_where(geometry, |key| ChunkKey { block: 0, ..*key } == any);
}

fn invalidate_where(geometry: Geometry, drop_it: impl Fn(&ChunkKey) -> bool) {
    for partition in 0..geometry.partitions() {
        memory::exclusive(partition, |chunks| chunks.invalidate_where(&drop_it));
    }
}

/// The fork is gone. Its size, if known, saves a search. Never waits, raises nothing.
pub fn forget(rel: RelTag, blocks: Option<BlockNumber>) {
    let Some((_, geometry)) = memory::attached() else { return };
    match blocks {
        Some(blocks) => invalidate(rel, 0..blocks),
        // Init forks are read from local files.
        None if rel.fork == ForkNumber::Init => {}
        None => invalidate_fork(geometry, rel),
    }
}

/// The database is gone, or its pages are other ones now.
pub fn forget_database(db_oid: Oid) {
    let Some((_, geometry)) = memory::attached() else { return };
    invalidate_where(geometry, |key| key.db_oid == db_oid);
}
