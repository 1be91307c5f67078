//! Comparing an evicted page with the page server's version of it.

use std::fmt::Write;

use pg_types::page::{Page, SIZE_OF_PAGE_HEADER};
use pg_types::{BLCKSZ, ForkNumber};

/// Which masking rule fits a page. Masks hide what Postgres changes without WAL (hints) from a comparison; they
/// are the `rm_mask` functions of the resource managers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Heap, also of toast tables.
    Heap,
    /// B-tree index.
    Btree,
    /// Hash index.
    Hash,
    /// GiST index.
    Gist,
    /// SP-GiST index.
    Spgist,
    /// GIN index.
    Gin,
    /// BRIN index.
    Brin,
    /// Sequence.
    Sequence,
    /// Free space map or visibility map: bytes behind the header count, whatever the header says about free space.
    Map,
    /// Any other page with a standard header, such as those of other index methods (`generic_mask`).
    Generic,
}

fn u16_at(page: &Page, at: usize) -> u16 {
    page.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u16::from_le_bytes(*b))
}

fn u32_at(page: &Page, at: usize) -> u32 {
    page.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

/// Tells a page's kind from its special space, as `pg_filedump`-like tools do: the last two bytes of the special
/// space are an identifier in most access methods.
pub fn page_kind(fork: ForkNumber, page: &Page) -> PageKind {
    /// `SEQ_MAGIC` of `sequence.c`.
    const SEQ_MAGIC: u32 = 0x1717;
    /// `MAX_BT_CYCLE_ID` of `nbtree.h`; higher values are page identifiers of other access methods.
    const MAX_BT_CYCLE_ID: u16 = 0xFF7F;
    if matches!(fork, ForkNumber::Fsm | ForkNumber::Vm) {
        return PageKind::Map;
    }
    let special = usize::from(u16_at(page, 16));
    let size = BLCKSZ.saturating_sub(special);
    match (size, u16_at(page, BLCKSZ - 2)) {
        (0, _) => PageKind::Heap,
        (16, 0xFF80) => PageKind::Hash,
        (16, 0xFF81) => PageKind::Gist,
        (16, 0..=MAX_BT_CYCLE_ID) => PageKind::Btree,
        (8, 0xFF82) => PageKind::Spgist,
        (8, 0xF091..=0xF093) => PageKind::Brin,
        (8, _) if u32_at(page, special) == SEQ_MAGIC => PageKind::Sequence,
        // GIN's flags have nine bits; identifiers of other access methods are above 0xF000.
        (8, 0..=0x01FF) => PageKind::Gin,
        _ => PageKind::Generic,
    }
}

/// Hides from a [`PageKind::Map`] page what may differ: LSN, checksum and flags (bytes 0 to 11).
pub fn mask_map(page: &mut Page) {
    if let Some(header) = page.first_chunk_mut::<12>() {
        *header = [0; 12];
    }
}

/// Whether the page server's visibility map page lacks bits that ours has, and has none that ours lacks.
///
/// Missing bits cost speed only. Postgres loses them by itself: CREATE DATABASE with the WAL log strategy logs images of
/// map pages as if they had a hole, which is all of their content (`RelationCopyStorageUsingBuffer`).
pub fn only_lacks_visibility_bits(ours: &Page, theirs: &Page) -> bool {
    let content = |page: &Page| page.iter().copied().skip(SIZE_OF_PAGE_HEADER).collect::<Vec<u8>>();
    content(ours).into_iter().zip(content(theirs)).all(|(ours, theirs)| theirs & !ours == 0)
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
}

/// Hides what Postgres changes without WAL although no `rm_mask` function hides it: those see a page only after a
/// record for it, so hints in pages that are logged once, when they are made, escape them.
pub fn mask_unlogged_hints(kind: PageKind, page: &mut Page) {
    /// `SPGIST_META` of `spgist_private.h`, in the special space.
    const SPGIST_META: u16 = 1;
    /// `lastUsedPages` of `SpGistMetaPageData`: 8 pairs of 4-byte words behind the magic number.
    const SPGIST_LAST_USED_PAGES: std::ops::Range<usize> =
        SIZE_OF_PAGE_HEADER + 4..SIZE_OF_PAGE_HEADER + 4 + 64;
    let special = usize::from(u16_at(page, 16));
    if kind == PageKind::Spgist
        && u16_at(page, special) & SPGIST_META != 0
        && let Some(cache) = page.get_mut(SPGIST_LAST_USED_PAGES)
    {
        cache.fill(0);
    }
}

/// Where two pages differ: 32-byte lines that are not equal, ours above theirs, up to `max_lines` pairs.
pub fn hex_diff(ours: &Page, theirs: &Page, max_lines: usize) -> String {
    const LINE: usize = 32;
    let mut text = String::new();
    let mut left_out = 0;
    let mut shown = 0;
    for (index, (a, b)) in ours.chunks(LINE).zip(theirs.chunks(LINE)).enumerate() {
        if a == b {
            continue;
        }
        if shown == max_lines {
            left_out += 1;
            continue;
        }
        shown += 1;
        for (name, bytes) in [("evicted", a), ("server ", b)] {
            // Writing to a string does not fail.
            let _ = write!(text, "{:04x} {name} ", index * LINE);
            push_hex(&mut text, bytes);
            text.push('\n');
        }
    }
    if left_out > 0 {
        let _ = writeln!(text, "and {left_out} more lines of {LINE} bytes");
    }
    text
}

/// A whole page in hexadecimal, runs of equal lines left out.
pub fn hex_dump(page: &Page) -> String {
    const LINE: usize = 32;
    let mut text = String::new();
    let mut last: Option<&[u8]> = None;
    let mut skipping = false;
    for (index, line) in page.chunks(LINE).enumerate() {
        if last == Some(line) {
            if !skipping {
                text.push_str("*\n");
            }
            skipping = true;
            continue;
        }
        skipping = false;
        last = Some(line);
        let _ = write!(text, "{:04x} ", index * LINE);
        push_hex(&mut text, line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg_types::page::ZERO_PAGE;

    fn page(special_size: u16, tail: u16) -> Page {
        let mut page = ZERO_PAGE;
        page[16..18].copy_from_slice(&(8192 - special_size).to_le_bytes());
        page[8190..].copy_from_slice(&tail.to_le_bytes());
        page
    }

    #[test]
    fn kinds_are_told_apart() {
        let kind = |page: &Page| page_kind(ForkNumber::Main, page);
        assert_eq!(kind(&page(0, 0xFF80)), PageKind::Heap);
        assert_eq!(kind(&page(16, 0)), PageKind::Btree);
        assert_eq!(kind(&page(16, 0xFF80)), PageKind::Hash);
        assert_eq!(kind(&page(16, 0xFF81)), PageKind::Gist);
        assert_eq!(kind(&page(8, 0xFF82)), PageKind::Spgist);
        assert_eq!(kind(&page(8, 0xF092)), PageKind::Brin);
        assert_eq!(kind(&page(8, 0x0002)), PageKind::Gin);
        assert_eq!(kind(&page(8, 0xFF90)), PageKind::Generic);
        let mut sequence = page(8, 0);
        sequence[8184..8188].copy_from_slice(&0x1717u32.to_le_bytes());
        assert_eq!(kind(&sequence), PageKind::Sequence);
        assert_eq!(page_kind(ForkNumber::Vm, &page(0, 0)), PageKind::Map);
    }

    #[test]
    fn any_special_offset_is_survived() {
        for special in [0u16, 1, 8191, 8192, u16::MAX] {
            let mut page = ZERO_PAGE;
            page[16..18].copy_from_slice(&special.to_le_bytes());
            page_kind(ForkNumber::Main, &page);
        }
    }

    #[test]
    fn the_page_cache_of_spgist_is_hidden() {
        let mut meta = page(8, 0xFF82);
        meta[8184] = 1;
        let mut used = meta;
        used[28] = 7;
        used[91] = 7;
        mask_unlogged_hints(page_kind(ForkNumber::Main, &used), &mut used);
        assert_eq!(used, meta);
        used[92] = 7;
        used[8184] = 0;
        let before = used;
        mask_unlogged_hints(PageKind::Spgist, &mut used);
        assert_eq!(used, before, "not the meta page");
    }

    #[test]
    fn lost_visibility_bits_are_told_from_wrong_ones() {
        let mut ours = ZERO_PAGE;
        ours[30] = 0b0111;
        let mut theirs = ZERO_PAGE;
        assert!(only_lacks_visibility_bits(&ours, &theirs));
        theirs[30] = 0b0101;
        assert!(only_lacks_visibility_bits(&ours, &theirs));
        theirs[30] = 0b1000;
        assert!(!only_lacks_visibility_bits(&ours, &theirs));
    }

    #[test]
    fn differences_are_shown_and_bounded() {
        let mut other = ZERO_PAGE;
        other[33] = 0xAB;
        other[8191] = 1;
        assert_eq!(hex_diff(&ZERO_PAGE, &ZERO_PAGE, 5), "");
        let diff = hex_diff(&ZERO_PAGE, &other, 1);
        assert!(diff.starts_with("0020 evicted 0000"), "{diff}");
        assert!(diff.contains("0020 server  00ab"), "{diff}");
        assert!(diff.ends_with("and 1 more lines of 32 bytes\n"), "{diff}");
        assert_eq!(hex_dump(&ZERO_PAGE).lines().count(), 2);
    }
}
