//! Pages that leave shared buffers.

use compute_core::eviction::{PageState, classify, may_be_newer_than_lsn};
use pg_types::page::{self, Page};
use pg_types::{BlockNumber, Lsn, RelTag};

use super::{Error, PageServerStorage, StorageManager};
use crate::counters::{self, Counter};
use crate::ffi::xlog::{self, OwnedPage};
use crate::ffi::{guc, process, report};
use crate::{audit, file_cache, last_written_lsn, spill};

impl PageServerStorage {
    pub(super) fn write_block(rel: RelTag, block: BlockNumber, page: &Page) -> Result<(), Error> {
        match classify(rel.fork, page) {
            // There is no position to note, nor anything to wait for: a reader gets zeros from the page server, or from the
            // cache a page that has nothing but its header.
            PageState::Blank => Self::drop_spilled(rel, block)?,
            PageState::Logged(lsn) => {
                Self::drop_spilled(rel, block)?;
                let newer = may_be_newer_than_lsn(rel.fork, page);
                let changed = if newer { xlog::insert_position().max(lsn) } else { lsn };
                let known = last_written_lsn::set(rel, block, changed);
                audit_evicted(rel, block, page, lsn, known);
            }
            PageState::FreeSpaceMap => {
                // Without an image the page server's version is older: it is a hint and gets corrected.
                Self::log_map_page(rel, block, page);
            }
            PageState::Unlogged => {
                Self::keep_unlogged(rel, block, page)?;
                file_cache::invalidate(rel, block..block.saturating_add(1));
                return Ok(());
            }
        }
        // Last, when the position is noted: see `file_cache::fill`.
        file_cache::write(rel, block, page);
        Ok(())
    }

    fn drop_spilled(rel: RelTag, block: BlockNumber) -> Result<(), Error> {
        spill::remove(rel, block).map_err(|source| Error::Spill {
            action: "remove a page from",
            rel,
            block,
            source,
        })
    }

    /// Logs an image of a free space map page. The page given may be the shared one, so a copy is logged and stamped.
    /// `None` where no WAL may be written.
    pub(super) fn log_map_page(rel: RelTag, block: BlockNumber, page: &Page) -> Option<Lsn> {
        if !xlog::may_log_evicted_page() {
            return None;
        }
        counters::add(Counter::FsmImages, 1);
        Some(log_copy(rel, block, page))
    }

    /// Keeps a page that WAL does not rebuild, without which a later read would return what was there before: in a
    /// spill file, or if that cannot be, as an image in WAL.
    pub(super) fn keep_unlogged(rel: RelTag, block: BlockNumber, page: &Page) -> Result<(), Error> {
        let reason = match spill::write(rel, block, page) {
            Ok(true) => return Ok(()),
            Ok(false) => "too many relations have spilled pages".to_owned(),
            Err(error) => error.to_string(),
        };
        if xlog::may_log_evicted_page() {
            // A failed write may have left an older or a torn page, which a reader would take first.
            Self::drop_spilled(rel, block)?;
            counters::add(Counter::UnloggedImages, 1);
            log_copy(rel, block, page);
            return Ok(());
        }
        // An error would be tried again for ever by the checkpointer, and the page is lost either way (L023).
        report::panic(&format!(
            "page {block} of relation fork {rel} was evicted with LSN {}, which is no WAL position, and could be kept neither in a spill file nor in WAL: {reason}",
            page::lsn(page)
        ))
    }
}

fn log_copy(rel: RelTag, block: BlockNumber, page: &Page) -> Lsn {
    let mut copy = OwnedPage::copy_of(page);
    let lsn = xlog::log_page_image(rel, block, &mut copy);
    last_written_lsn::set(rel, block, lsn);
    audit_evicted(rel, block, &copy.0, lsn, lsn);
    lsn
}

/// `neon.audit_pages`. Not in processes that the page server's progress depends on, nor in the last moments of a
/// server, when walproposer may be gone.
fn audit_evicted(rel: RelTag, block: BlockNumber, page: &Page, lsn: Lsn, known: Lsn) {
    if guc::AUDIT_PAGES.get() && !process::is_walsender() && !process::is_shutting_down() {
        audit::compare(rel, block, page, lsn, known);
    }
}

impl StorageManager for PageServerStorage {
    fn create(&self, rel: RelTag) -> Result<(), Error> {
        Self::create_fork(rel)
    }

    fn exists(&self, rel: RelTag) -> Result<bool, Error> {
        Self::fork_exists(rel)
    }

    fn unlink(&self, rel: RelTag) {
        Self::unlink_fork(rel);
    }

    fn extend(&self, rel: RelTag, block: BlockNumber, page: &Page) -> Result<(), Error> {
        Self::extend_by_page(rel, block, page)
    }

    fn zero_extend(&self, rel: RelTag, blocks: std::ops::Range<u64>) -> Result<(), Error> {
        Self::extend_by_zeros(rel, blocks)
    }

    fn prefetch(&self, rel: RelTag, blocks: std::ops::Range<BlockNumber>) {
        Self::prefetch_blocks(rel, blocks);
    }

    fn read(&self, rel: RelTag, first: BlockNumber, pages: &mut [&mut Page]) -> Result<(), Error> {
        Self::read_blocks(rel, first, pages)
    }

    fn write(&self, rel: RelTag, block: BlockNumber, page: &Page) -> Result<(), Error> {
        Self::write_block(rel, block, page)
    }

    fn nblocks(&self, rel: RelTag) -> Result<BlockNumber, Error> {
        Self::fork_size(rel)
    }

    fn truncate(&self, rel: RelTag, blocks: BlockNumber) {
        Self::cut(rel, blocks);
    }
}
