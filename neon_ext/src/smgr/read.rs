//! Reading pages.

use compute_core::file_cache::BlockSet;
use pg_types::page::Page;
use pg_types::{BlockNumber, RelTag};

use super::{Error, PageServerStorage};
use crate::page_client::PageRead;
use crate::{file_cache, last_written_lsn, page_client, spill};

/// Blocks that are looked for in the cache at once. Postgres reads at most 32 with one call.
const BATCH: usize = BlockSet::CAPACITY as usize;

impl PageServerStorage {
    /// Spilled blocks come from their file, others from the local file cache, all others from the page server.
    pub(super) fn read_blocks(
        rel: RelTag,
        first: BlockNumber,
        pages: &mut [&mut Page],
    ) -> Result<(), Error> {
        let mut first = first;
        for pages in pages.chunks_mut(BATCH) {
            let done = read_local(rel, first, pages)?;
            let missing = (first..).zip(0u32..).zip(pages.iter_mut());
            let missing = missing.filter(|((_, at), _)| !done.contains(*at));
            read_remote(rel, missing.map(|((block, _), page)| (block, &mut **page)))?;
            first = first.saturating_add(u32::try_from(pages.len()).unwrap_or(u32::MAX));
        }
        Ok(())
    }
}

/// Reads what is on this machine; returns which pages were.
fn read_local(rel: RelTag, first: BlockNumber, pages: &mut [&mut Page]) -> Result<BlockSet, Error> {
    if !spill::has_file(rel) {
        return Ok(file_cache::read(rel, first, pages));
    }
    let mut done = BlockSet::EMPTY;
    for ((block, at), page) in (first..).zip(0u32..).zip(pages.iter_mut()) {
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

/// Asks the page server for pages in one batch, and keeps them in the cache.
fn read_remote<'a>(
    rel: RelTag,
    pages: impl Iterator<Item = (BlockNumber, &'a mut Page)>,
) -> Result<(), Error> {
    let mut reads: Vec<PageRead<'_>> = pages
        .map(|(block, page)| {
            let lsns = page_client::current(last_written_lsn::get(rel, block));
            PageRead { block, lsns, page }
        })
        .collect();
    page_client::get_pages(rel, &mut reads)?;
    for read in &reads {
        file_cache::fill(rel, read.block, read.page, read.lsns.not_modified_since);
    }
    Ok(())
}
