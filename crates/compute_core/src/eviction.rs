//! What to do with a page that Postgres writes out.
//!
//! Nothing is ever sent to the page server: it has the WAL. What matters is whether the WAL really tells all,
//! and from which position on.

use pg_types::page::{self, Page, SIZE_OF_PAGE_HEADER};
use pg_types::{BLCKSZ, BlockNumber, ForkNumber, Lsn, xlog};

/// What a page of a permanent relation is when it leaves shared buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// All zeros, or header only (`PageInit` and nothing else): a reader may as well get zeros, since every access
    /// method initialises such pages again.
    Blank,
    /// WAL up to this position rebuilds it.
    Logged(Lsn),
    /// A page of the free space map. Postgres never logs those, so an image has to be logged now.
    FreeSpaceMap,
    /// Changed by an unlogged build phase: WAL does not rebuild it, and the build logs it later (design D4).
    Unlogged,
}

/// Positions below this are no WAL positions: 0, and GiST's `GistBuildLSN` 1. The first segment is never used.
const FIRST_WAL_POSITION: Lsn = Lsn(xlog::WAL_SEGMENT_SIZE);

const PD_FLAGS: std::ops::Range<usize> = 10..12;
const PD_LOWER: std::ops::Range<usize> = 12..14;
const PD_UPPER: std::ops::Range<usize> = 14..16;
const PD_SPECIAL: std::ops::Range<usize> = 16..18;

fn word(page: &Page, range: std::ops::Range<usize>) -> u16 {
    page.get(range).and_then(|b| b.first_chunk()).map_or(0, |b| u16::from_le_bytes(*b))
}

/// Whether the page is what `PageInit(page, BLCKSZ, 0)` leaves.
fn is_header_only(page: &Page) -> bool {
    usize::from(word(page, PD_LOWER)) == SIZE_OF_PAGE_HEADER
        && usize::from(word(page, PD_UPPER)) == BLCKSZ
        && usize::from(word(page, PD_SPECIAL)) == BLCKSZ
        && word(page, PD_FLAGS) == 0
        && page.iter().skip(SIZE_OF_PAGE_HEADER).all(|byte| *byte == 0)
}

/// Classifies a page that is about to leave shared buffers.
pub fn classify(fork: ForkNumber, page: &Page) -> PageState {
    if page::is_new(page) {
        return PageState::Blank;
    }
    if fork == ForkNumber::Fsm {
        return PageState::FreeSpaceMap;
    }
    let lsn = page::lsn(page);
    if lsn >= FIRST_WAL_POSITION {
        PageState::Logged(lsn)
    } else if is_header_only(page) {
        PageState::Blank
    } else {
        PageState::Unlogged
    }
}

/// Whether WAL may have changed the page after its LSN.
///
/// `visibilitymap_set` logs that a heap page is all-visible, sets `PD_ALL_VISIBLE` in its header, and leaves its LSN
/// alone unless hint bits are logged. A reader that gets the page without the flag while the map has the bit would
/// insert rows without clearing the bit: they would be visible to everybody. So the caller takes the insert position,
/// which is behind that record, for every page with the flag.
pub fn may_be_newer_than_lsn(fork: ForkNumber, page: &Page) -> bool {
    const PD_ALL_VISIBLE: u16 = 0x0004;
    fork == ForkNumber::Main
        && usize::from(word(page, PD_SPECIAL)) == BLCKSZ
        && word(page, PD_FLAGS) & PD_ALL_VISIBLE != 0
}

/// Block of the visibility map whose bits for heap blocks from `heap_blocks` on are cleared when a heap is cut to
/// that size. `visibilitymap_prepare_truncate` clears them without touching the page's LSN, so the caller
/// records the truncation's position for this block.
pub fn visibility_map_block(heap_blocks: BlockNumber) -> BlockNumber {
    /// `HEAPBLOCKS_PER_PAGE` of `visibilitymap.c`: two bits for each heap block behind the page header.
    const HEAP_BLOCKS_PER_PAGE: u32 = (8192 - 24) * 4;
    heap_blocks / HEAP_BLOCKS_PER_PAGE
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg_types::page::{ZERO_PAGE, set_lsn};

    fn header_only() -> Page {
        let mut page = ZERO_PAGE;
        page[PD_LOWER].copy_from_slice(&24u16.to_le_bytes());
        page[PD_UPPER].copy_from_slice(&8192u16.to_le_bytes());
        page[PD_SPECIAL].copy_from_slice(&8192u16.to_le_bytes());
        page[18..20].copy_from_slice(&0x2004u16.to_le_bytes());
        page
    }

    #[test]
    fn blank_pages_may_be_dropped() {
        assert_eq!(classify(ForkNumber::Main, &ZERO_PAGE), PageState::Blank);
        assert_eq!(classify(ForkNumber::Fsm, &ZERO_PAGE), PageState::Blank);
        assert_eq!(classify(ForkNumber::Main, &header_only()), PageState::Blank);
        assert_eq!(classify(ForkNumber::Vm, &header_only()), PageState::Blank);
    }

    #[test]
    fn content_without_a_position_is_not_dropped() {
        let mut page = header_only();
        page[8191] = 1;
        assert_eq!(classify(ForkNumber::Main, &page), PageState::Unlogged);
        set_lsn(&mut page, Lsn(1));
        assert_eq!(classify(ForkNumber::Main, &page), PageState::Unlogged, "GistBuildLSN");
        let mut special = header_only();
        special[PD_SPECIAL].copy_from_slice(&8176u16.to_le_bytes());
        special[PD_UPPER].copy_from_slice(&8176u16.to_le_bytes());
        assert_eq!(classify(ForkNumber::Main, &special), PageState::Unlogged);
        assert_eq!(classify(ForkNumber::Vm, &page), PageState::Unlogged);
        assert_eq!(classify(ForkNumber::Fsm, &page), PageState::FreeSpaceMap);
    }

    #[test]
    fn logged_pages_carry_their_position() {
        let mut page = header_only();
        set_lsn(&mut page, Lsn(0x100_0000));
        assert_eq!(classify(ForkNumber::Main, &page), PageState::Logged(Lsn(0x100_0000)));
        assert_eq!(classify(ForkNumber::Fsm, &page), PageState::FreeSpaceMap);
    }

    #[test]
    fn all_visible_heap_pages_may_be_newer() {
        let mut page = header_only();
        assert!(!may_be_newer_than_lsn(ForkNumber::Main, &page));
        page[PD_FLAGS].copy_from_slice(&0x0005u16.to_le_bytes());
        assert!(may_be_newer_than_lsn(ForkNumber::Main, &page));
        assert!(!may_be_newer_than_lsn(ForkNumber::Vm, &page));
        page[PD_SPECIAL].copy_from_slice(&8176u16.to_le_bytes());
        assert!(!may_be_newer_than_lsn(ForkNumber::Main, &page), "an index page");
    }

    #[test]
    fn the_map_block_is_that_of_visibilitymap_c() {
        assert_eq!(visibility_map_block(0), 0);
        assert_eq!(visibility_map_block(32671), 0);
        assert_eq!(visibility_map_block(32672), 1);
    }
}
