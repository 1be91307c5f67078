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

/// Asks the page server for the page and compares under the masks of the resource managers. A difference is logged with
/// both pages and ends the server: going on would hide how it came about.
///
/// The page is asked for as of `lsn`, its own, and if that does not match, as of `known`, its last-written LSN: the page of
/// a copied database carries the LSN of its original, from when the copy did not exist, and bits of a visibility map are
/// cleared by a truncation after the page's LSN. Not only as of `known`, when the relation may be dropped already.
pub fn compare(rel: RelTag, block: BlockNumber, page: &Page, lsn: Lsn, known: Lsn) {
    counters::add(Counter::AuditedPages, 1);
    let started = last_written_lsn::started_at();
    let result = compare_as_of(rel, block, page, lsn.max(started)).or_else(|difference| {
        if known <= lsn.max(started) {
            return Err(difference);
        }
        compare_as_of(rel, block, page, known)
    });
    match result {
        Ok(()) => {}
        Err(Difference::NoPage { at, error }) => report::panic(&format!(
            "audit: the page server has no page {block} of relation fork {rel} as of {at}: {error}"
        )),
        Err(Difference::Page { at, theirs, text }) => {
            let lsns = (pg_types::page::lsn(page), pg_types::page::lsn(&theirs.0));
            report::log(&format!(
                "audit: evicted page {block} of relation fork {rel}:\n{}",
                audit::hex_dump(page)
            ));
            report::log(&format!(
                "audit: the page server's page {block} of relation fork {rel}:\n{}",
                audit::hex_dump(&theirs.0)
            ));
            report::panic(&format!(
                "audit: page {block} of relation fork {rel} ({:?}) with LSN {} differs from the page server's as of {at}, which has LSN {}:\n{text}",
                audit::page_kind(rel.fork, page),
                lsns.0,
                lsns.1,
            ));
        }
    }
}

enum Difference {
    NoPage { at: Lsn, error: page_client::Error },
    Page { at: Lsn, theirs: Box<OwnedPage>, text: String },
}

fn compare_as_of(rel: RelTag, block: BlockNumber, page: &Page, lsn: Lsn) -> Result<(), Difference> {
    let at = wait_position(lsn);
    let lsns = RequestLsns { request_lsn: at, not_modified_since: at };
    let mut theirs = OwnedPage::copy_of(&pg_types::page::ZERO_PAGE);
    let mut reads = [PageRead { block, lsns, page: &mut theirs.0 }];
    page_client::get_pages(rel, &mut reads, 0..0)
        .map_err(|error| Difference::NoPage { at, error })?;
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
        return Ok(());
    }
    if rel.fork == ForkNumber::Vm && audit::only_lacks_visibility_bits(page, &theirs.0) {
        counters::add(Counter::LostVisibilityBits, 1);
        return Ok(());
    }
    let text = audit::hex_diff(&ours_masked.0, &theirs_masked.0, DIFF_LINES);
    Err(Difference::Page { at, theirs, text })
}
