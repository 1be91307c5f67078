//! `neon.audit_pages`: proof, page by page, that WAL rebuilds what this server had in memory.

use compute_core::audit::{self, PageKind};
use compute_core::request_lsn::{RequestLsns, wait_position};
use pg_types::page::Page;
use pg_types::{BlockNumber, ForkNumber, Lsn, RelTag};

use crate::counters::{self, Counter};
use crate::ffi::xlog::OwnedPage;
use crate::ffi::{mask, report};
use crate::last_written_lsn;
use crate::page_client::{self, PageRead};

/// Lines of difference that are shown; both pages follow as a whole.
const DIFF_LINES: usize = 64;

/// Asks the page server for the page as of `lsn` and compares under the masks of the resource managers. A difference
/// is logged with both pages and ends the server: going on would hide how it came about.
pub fn compare(rel: RelTag, block: BlockNumber, page: &Page, lsn: Lsn) {
    let at = wait_position(lsn.max(last_written_lsn::started_at()));
    let lsns = RequestLsns { request_lsn: at, not_modified_since: at };
    let mut theirs = OwnedPage::copy_of(&pg_types::page::ZERO_PAGE);
    let mut reads = [PageRead { block, lsns, page: &mut theirs.0 }];
    if let Err(error) = page_client::get_pages(rel, &mut reads) {
        report::panic(&format!(
            "audit of page {block} of relation fork {rel} at {lsn}: the page server has no such page: {error}"
        ));
    }
    counters::add(Counter::AuditedPages, 1);
    let kind = audit::page_kind(rel.fork, page);
    let mut ours_masked = OwnedPage::copy_of(page);
    let mut theirs_masked = OwnedPage::copy_of(&theirs.0);
    for masked in [&mut ours_masked, &mut theirs_masked] {
        match kind {
            PageKind::Map => audit::mask_map(&mut masked.0),
            other => {
                audit::mask_unlogged_hints(other, &mut masked.0);
                mask::apply(other, masked, block);
            }
        }
    }
    if ours_masked.0 == theirs_masked.0 {
        return;
    }
    if rel.fork == ForkNumber::Vm && audit::only_lacks_visibility_bits(page, &theirs.0) {
        counters::add(Counter::LostVisibilityBits, 1);
        report::log(&format!(
            "audit: the page server's page {block} of relation fork {rel} lacks bits that were set here"
        ));
        return;
    }
    report::log(&format!(
        "audit: evicted page {block} of relation fork {rel}:\n{}",
        audit::hex_dump(page)
    ));
    report::log(&format!(
        "audit: the page server's page {block} of relation fork {rel}:\n{}",
        audit::hex_dump(&theirs.0)
    ));
    report::panic(&format!(
        "audit: page {block} of relation fork {rel} ({kind:?}) with LSN {} differs from the page server's as of {at}, which has LSN {}:\n{}",
        pg_types::page::lsn(page),
        pg_types::page::lsn(&theirs.0),
        audit::hex_diff(&ours_masked.0, &theirs_masked.0, DIFF_LINES)
    ));
}
