//! Reading pages, and asking for pages before they are needed.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use compute_core::file_cache::BlockSet;
use compute_core::readahead::Runs;
use compute_core::relation_size::Known;
use pg_types::page::Page;
use pg_types::{BlockNumber, RelTag};

use super::{Error, PageServerStorage};
use crate::ffi::guc;
use crate::page_client::PageRead;
use crate::{file_cache, last_written_lsn, page_client, relation_size, spill};

/// Blocks that are looked for in the cache at once. Postgres reads at most 32 with one call.
const BATCH: usize = BlockSet::CAPACITY as usize;

thread_local! {
    /// Reads by this process that needed the page server.
    static FAR_READS: Cell<u64> = const { Cell::new(0) };
    /// What this process reads from block to block.
    static RUNS: RefCell<Runs> = RefCell::default();
}

/// Reads by this process that needed the page server, in time (asked for ahead of need) or not.
pub fn far_reads() -> u64 {
    FAR_READS.get()
}

impl PageServerStorage {
    /// Pages that were asked for ahead of need come from there, spilled blocks from their file, others from the local file
    /// cache, and all others from the page server in one batch.
    pub(super) fn read_blocks(
        rel: RelTag,
        first: BlockNumber,
        pages: &mut [&mut Page],
    ) -> Result<(), Error> {
        let mut first = first;
        for pages in pages.chunks_mut(BATCH) {
            read_batch(rel, first, pages)?;
            first = first.saturating_add(u32::try_from(pages.len()).unwrap_or(u32::MAX));
        }
        Ok(())
    }

    /// PostgreSQL knows what it will read: bitmap scans, ANALYZE, read streams with gaps.
    pub(super) fn prefetch_blocks(rel: RelTag, blocks: Range<BlockNumber>) {
        if may_read_ahead(rel) {
            page_client::prefetch(rel, blocks);
        }
    }
}

fn read_batch(rel: RelTag, first: BlockNumber, pages: &mut [&mut Page]) -> Result<(), Error> {
    let count = u32::try_from(pages.len()).unwrap_or(u32::MAX);
    let ahead = take_asked_ahead(rel, first, pages);
    let done = read_local(rel, first, pages, ahead)?;
    let mut reads: Vec<PageRead<'_>> = (first..)
        .zip(0u32..)
        .zip(pages.iter_mut())
        .filter(|((_, at), _)| !done.contains(*at))
        .map(|((block, _), page)| {
            let lsns = page_client::current(last_written_lsn::get(rel, block));
            PageRead { block, lsns, page }
        })
        .collect();
    let far = !ahead.is_empty() || !reads.is_empty();
    if far {
        FAR_READS.set(FAR_READS.get().wrapping_add(1));
    }
    let ahead = look_ahead(rel, first, count, far);
    if let Some(block) = page_client::get_pages(rel, &mut reads, ahead)? {
        RUNS.with_borrow_mut(|runs| runs.not_asked(rel, block));
    }
    for read in &reads {
        file_cache::fill(rel, read.block, read.page, read.lsns.not_modified_since);
    }
    Ok(())
}

/// Takes the pages that were asked for ahead of need and have come; returns which.
fn take_asked_ahead(rel: RelTag, first: BlockNumber, pages: &mut [&mut Page]) -> BlockSet {
    let mut taken = BlockSet::EMPTY;
    if spill::has_file(rel) {
        return taken;
    }
    let mut uncached = Vec::new();
    page_client::take_here(rel, first, pages, |at, since| {
        taken = taken.or(BlockSet::one(at));
        uncached.extend(since.map(|since| (at, since)));
    });
    for (at, since) in uncached {
        if let Some(page) = pages.get(at as usize) {
            file_cache::fill(rel, first.saturating_add(at), page, since);
        }
    }
    taken
}

/// Reads what is on this machine and not done yet; returns what is done then.
fn read_local(
    rel: RelTag,
    first: BlockNumber,
    pages: &mut [&mut Page],
    done: BlockSet,
) -> Result<BlockSet, Error> {
    if done.is_empty() && !spill::has_file(rel) {
        return Ok(file_cache::read(rel, first, pages));
    }
    let mut done = done;
    for ((block, at), page) in (first..).zip(0u32..).zip(pages.iter_mut()) {
        if done.contains(at) {
            continue;
        }
        let spilled = spill::read(rel, block, page).map_err(|source| Error::Spill {
            action: "read",
            rel,
            block,
            source,
        })?;
        if spilled || !file_cache::read(rel, block, &mut [page]).is_empty() {
            done = done.or(BlockSet::one(at));
        }
    }
    Ok(done)
}

/// Spilled pages are not on the page server, and which blocks are spilled is not worth a look for each.
fn may_read_ahead(rel: RelTag) -> bool {
    guc::enable_prefetch() && !spill::has_file(rel)
}

/// Blocks to ask for behind those that are read now. Nothing beyond the fork's end.
fn look_ahead(
    rel: RelTag,
    first: BlockNumber,
    count: BlockNumber,
    far: bool,
) -> Range<BlockNumber> {
    const NOTHING: Range<BlockNumber> = 0..0;
    if !may_read_ahead(rel) {
        return NOTHING;
    }
    let window = BlockNumber::try_from(guc::readahead_buffer_size() / 2).unwrap_or(0);
    let ahead = RUNS.with_borrow_mut(|runs| runs.read(rel, first, count, far, window));
    if ahead.is_empty() {
        return NOTHING;
    }
    // TOAST values are read without a look at the size of their relation: it is asked for once. Without an answer there is
    // just nothing to ask ahead.
    let known = relation_size::get(rel);
    let known = known.or_else(|| PageServerStorage::fork_size(rel).ok().map(Known::Blocks));
    match known {
        Some(Known::Blocks(blocks)) => ahead.start.min(blocks)..ahead.end.min(blocks),
        _ => NOTHING,
    }
}
