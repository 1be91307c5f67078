//! Sizes of forks: asking, growing, cutting.

use std::ops::Range;

use compute_core::eviction::{PageState, classify, visibility_map_block};
use compute_core::relation_size::Known;
use pg_types::page::Page;
use pg_types::{BlockNumber, ForkNumber, INVALID_BLOCK_NUMBER, Lsn, RelTag};

use super::{Error, PageServerStorage};
use crate::counters::{self, Counter};
use crate::ffi::{feedback_map, guc, process, report, xlog};
use crate::{backpressure, file_cache, last_written_lsn, page_client, relation_size, spill};

impl PageServerStorage {
    pub(super) fn fork_size(rel: RelTag) -> Result<BlockNumber, Error> {
        let known = match relation_size::get(rel) {
            Some(known) => known,
            None => {
                let last_written = last_written_lsn::get_metadata(rel);
                let answer = page_client::nblocks(rel, last_written)?;
                relation_size::learn(rel, Known::Blocks(answer))
            }
        };
        match known {
            Known::Blocks(blocks) => Ok(blocks),
            Known::Absent => Err(Error::NoSuchFork(rel)),
        }
    }

    /// A page put at the end, or behind it with a gap (`RelationCopyStorageUsingBuffer` writes the last page of a
    /// copy first).
    pub(super) fn extend_by_page(
        rel: RelTag,
        block: BlockNumber,
        page: &Page,
    ) -> Result<(), Error> {
        check_cluster_size()?;
        let end = block.checked_add(1).filter(|end| *end < INVALID_BLOCK_NUMBER);
        let end = end.ok_or(Error::TooManyBlocks(rel))?;
        let gap_start = Self::fork_size(rel)?.min(block);
        let state = classify(rel.fork, page);
        let lsn = match state {
            // The page's own WAL record tells the page server how long the fork is now.
            PageState::Logged(lsn) => {
                drop_spilled(rel, block)?;
                lsn
            }
            PageState::FreeSpaceMap => Self::log_map_page(rel, block, page).unwrap_or_default(),
            PageState::Blank => {
                drop_spilled(rel, block)?;
                log_extend(rel, end)
            }
            PageState::Unlogged => {
                Self::keep_unlogged(rel, block, page)?;
                log_extend(rel, end)
            }
        };
        grown(rel, gap_start..end, lsn);
        if state != PageState::Unlogged {
            file_cache::write(rel, block, page);
        }
        Ok(())
    }

    pub(super) fn extend_by_zeros(rel: RelTag, blocks: Range<u64>) -> Result<(), Error> {
        check_cluster_size()?;
        let number = |block: u64| {
            BlockNumber::try_from(block).ok().filter(|block| *block < INVALID_BLOCK_NUMBER)
        };
        let (Some(start), Some(end)) = (number(blocks.start), number(blocks.end)) else {
            return Err(Error::TooManyBlocks(rel));
        };
        // Without WAL (recovery) nothing may change: the page server would not learn of it.
        if xlog::insert_allowed() {
            let lsn = log_extend(rel, end);
            grown(rel, start..end, lsn);
        }
        Ok(())
    }

    pub(super) fn cut(rel: RelTag, blocks: BlockNumber) {
        let lsn = xlog::insert_position();
        // Only gives room: `grown` makes sure that what is cached of cut blocks is never read.
        if let Some(Known::Blocks(before)) = relation_size::get(rel) {
            file_cache::invalidate(rel, blocks..before);
        }
        relation_size::set(rel, blocks);
        last_written_lsn::set_metadata(rel, lsn);
        if rel.fork == ForkNumber::Main {
            // The bits of the cut blocks were cleared in the map's last page without a WAL record of its own.
            let map = rel.locator.fork(ForkNumber::Vm);
            last_written_lsn::set(map, visibility_map_block(blocks), lsn);
        }
        if let Err(error) = spill::truncate(rel, blocks) {
            report::log(&format!("could not truncate the spill file of fork {rel}: {error}"));
        }
    }
}

fn drop_spilled(rel: RelTag, block: BlockNumber) -> Result<(), Error> {
    spill::remove(rel, block).map_err(|source| Error::Spill {
        action: "remove a page from",
        rel,
        block,
        source,
    })
}

fn log_extend(rel: RelTag, end: BlockNumber) -> Lsn {
    counters::add(Counter::ExtendRecords, 1);
    backpressure::wal_inserted();
    xlog::log_relation_extend(rel, end)
}

/// New blocks: a read of one of them must not be answered with what the page server had there before a truncation.
fn grown(rel: RelTag, blocks: Range<BlockNumber>, lsn: Lsn) {
    let end = blocks.end;
    last_written_lsn::set_range(rel, blocks.clone(), lsn);
    // Nor with what this server had cached then: buffers of new blocks can be dropped without having been written.
    file_cache::invalidate(rel, blocks);
    last_written_lsn::set_metadata(rel, lsn);
    relation_size::raise(rel, end);
}

/// `neon.max_cluster_size`. Autovacuum goes on, since it is what makes room.
fn check_cluster_size() -> Result<(), Error> {
    let Some(limit) = guc::max_cluster_size() else { return Ok(()) };
    let size = feedback_map::read().map_or(0, |feedback| feedback.current_timeline_size);
    if size > limit && !process::is_autovacuum_worker() {
        return Err(Error::ClusterFull { size, limit });
    }
    Ok(())
}
