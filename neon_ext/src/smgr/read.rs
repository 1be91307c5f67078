//! Reading pages.

use pg_types::page::Page;
use pg_types::{BlockNumber, RelTag};

use super::{Error, PageServerStorage};
use crate::page_client::PageRead;
use crate::{last_written_lsn, page_client, spill};

impl PageServerStorage {
    /// Spilled blocks come from their file, all others from the page server in one batch.
    pub(super) fn read_blocks(
        rel: RelTag,
        first: BlockNumber,
        pages: &mut [&mut Page],
    ) -> Result<(), Error> {
        let mut reads = Vec::with_capacity(pages.len());
        for (block, page) in (first..).zip(pages.iter_mut()) {
            let spilled = spill::read(rel, block, page).map_err(|source| Error::Spill {
                action: "read",
                rel,
                block,
                source,
            })?;
            if !spilled {
                let lsns = page_client::current(last_written_lsn::get(rel, block));
                reads.push(PageRead { block, lsns, page });
            }
        }
        page_client::get_pages(rel, &mut reads)?;
        Ok(())
    }
}
