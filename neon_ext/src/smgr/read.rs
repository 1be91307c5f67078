//! Reading pages, and asking for pages before they are needed.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use compute_core::readahead::Runs;
use compute_core::relation_size::Known;
use pg_types::page::Page;
use pg_types::{BlockNumber, RelTag};

use super::{Error, PageServerStorage};
use crate::ffi::guc;
use crate::page_client::PageRead;
use crate::{last_written_lsn, page_client, relation_size, spill};

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
    /// Spilled blocks come from their file, pages that were asked for ahead of need from there, and all others from the
    /// page server in one batch.
    pub(super) fn read_blocks(
        rel: RelTag,
        first: BlockNumber,
        pages: &mut [&mut Page],
    ) -> Result<(), Error> {
        let count = BlockNumber::try_from(pages.len()).unwrap_or(BlockNumber::MAX);
        let mut reads = Vec::with_capacity(pages.len());
        let mut far = false;
        for (block, page) in (first..).zip(pages.iter_mut()) {
            let spilled = spill::read(rel, block, page).map_err(|source| Error::Spill {
                action: "read",
                rel,
                block,
                source,
            })?;
            if spilled {
                continue;
            }
            let lsns = page_client::current(last_written_lsn::get(rel, block));
            far = true;
            if page_client::take_here(rel, block, lsns, page).is_none() {
                reads.push(PageRead { block, lsns, page });
            }
        }
        if far {
            FAR_READS.set(FAR_READS.get().wrapping_add(1));
        }
        let ahead = look_ahead(rel, first, count, far);
        if let Some(block) = page_client::get_pages(rel, &mut reads, ahead)? {
            RUNS.with_borrow_mut(|runs| runs.not_asked(rel, block));
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

/// Spilled pages are not on the page server, and which blocks are spilled is not worth a look for each.
fn may_read_ahead(rel: RelTag) -> bool {
    guc::enable_prefetch() && !spill::has_file(rel)
}

/// Blocks to ask for behind those that are read now. Nothing beyond the fork's end; where the size is not known, nothing at
/// all.
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
    match relation_size::get(rel) {
        Some(Known::Blocks(blocks)) => ahead.start.min(blocks)..ahead.end.min(blocks),
        _ => NOTHING,
    }
}
