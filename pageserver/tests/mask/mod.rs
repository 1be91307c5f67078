//! What PostgreSQL may change on a page without WAL, hidden from a comparison: `bufmask.c` and the `rm_mask` function
//! of each access method. The kind of a page is told by its special area, so that no catalog is needed.

use pg_types::page::Page;
use pg_types::{BLCKSZ, BlockNumber, ForkNumber};

const HEADER: usize = 24;
const PD_FLAGS: usize = 10;
const PD_LOWER: usize = 12;
const PD_UPPER: usize = 14;
const PD_SPECIAL: usize = 16;
const PD_PRUNE_XID: usize = 20;

/// `MASK_MARKER`.
const MARKER: u8 = 0;

/// Which access method made a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    New,
    VisibilityMap,
    Heap,
    Btree,
    Hash,
    Gist,
    SpGist,
    Gin,
    Brin,
    Sequence,
}

/// What a page is, by its fork, the size of its special area and the marks in it.
pub fn kind(page: &Page, fork: ForkNumber) -> Kind {
    if u16_at(page, PD_UPPER) == 0 {
        return Kind::New;
    }
    if fork == ForkNumber::Vm {
        return Kind::VisibilityMap;
    }
    // `gist_page_id`, `hashso_page_id`, `spgist_page_id`, BRIN_PAGETYPE_* and SEQ_MAGIC; btree's last field is a
    // cycle id, which stays below all of them (`MAX_BT_CYCLE_ID`), gin's are flags.
    let special = usize::from(u16_at(page, PD_SPECIAL));
    let mark = u16_at(page, BLCKSZ - 2);
    match (BLCKSZ - special, mark) {
        (0, _) => Kind::Heap,
        (16, 0xFF81) => Kind::Gist,
        (16, 0xFF80) => Kind::Hash,
        (16, _) => Kind::Btree,
        (8, 0xFF82) => Kind::SpGist,
        (8, 0xF091..=0xF093) => Kind::Brin,
        (8, _) if u32_at(page, special) == 0x1717 => Kind::Sequence,
        (8, _) => Kind::Gin,
        (other, _) => panic!("special area of {other} bytes"),
    }
}

/// Hides what may differ.
pub fn mask(page: &mut Page, kind: Kind, blkno: BlockNumber) {
    // mask_page_lsn_and_checksum: pd_lsn and pd_checksum.
    page[..PD_FLAGS].fill(MARKER);
    match kind {
        Kind::New => {}
        Kind::VisibilityMap => {}
        Kind::Heap => heap(page, blkno),
        Kind::Btree => btree(page),
        Kind::Hash => hash(page),
        Kind::Gist => gist(page),
        Kind::SpGist => {
            hint_bits(page);
            if u16_at(page, PD_LOWER) >= 24 {
                unused_space(page);
            }
        }
        Kind::Gin => gin(page),
        Kind::Brin => brin(page),
        Kind::Sequence => unused_space(page),
    }
}

fn u16_at(page: &Page, at: usize) -> u16 {
    u16::from_le_bytes([page[at], page[at + 1]])
}

fn u32_at(page: &Page, at: usize) -> u32 {
    u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
}

fn put_u16(page: &mut Page, at: usize, value: u16) {
    page[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn put_u32(page: &mut Page, at: usize, value: u32) {
    page[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn special(page: &Page) -> usize {
    usize::from(u16_at(page, PD_SPECIAL)).min(BLCKSZ)
}

/// `mask_page_hint_bits`: pd_prune_xid, PD_PAGE_FULL, PD_HAS_FREE_LINES, PD_ALL_VISIBLE.
fn hint_bits(page: &mut Page) {
    put_u32(page, PD_PRUNE_XID, u32::from(MARKER));
    let flags = u16_at(page, PD_FLAGS) & !7;
    put_u16(page, PD_FLAGS, flags);
}

/// `mask_unused_space`: between pd_lower and pd_upper.
fn unused_space(page: &mut Page) {
    let (lower, upper) = (usize::from(u16_at(page, PD_LOWER)), usize::from(u16_at(page, PD_UPPER)));
    let sane = HEADER <= lower && lower <= upper && upper <= special(page);
    assert!(sane, "invalid page pd_lower {lower} pd_upper {upper} pd_special {}", special(page));
    page[lower..upper].fill(MARKER);
}

/// `mask_page_content`: everything behind the header, and the header's pointers.
fn content(page: &mut Page) {
    page[HEADER..].fill(MARKER);
    put_u16(page, PD_LOWER, 0);
    put_u16(page, PD_UPPER, 0);
}

/// `mask_lp_flags`: LP_DEAD is set without WAL.
fn lp_flags(page: &mut Page) {
    for at in line_pointers(page) {
        let value = u32_at(page, at);
        if value >> 15 & 3 == 3 || value >> 15 & 3 == 1 {
            put_u32(page, at, value & !(3 << 15));
        }
    }
}

fn line_pointers(page: &Page) -> impl Iterator<Item = usize> + use<> {
    (HEADER..usize::from(u16_at(page, PD_LOWER)).max(HEADER)).step_by(4)
}

/// `heap_mask`.
fn heap(page: &mut Page, blkno: BlockNumber) {
    const T_CID: usize = 8;
    const T_CTID: usize = 12;
    const T_INFOMASK: usize = 20;
    const HEAP_XMIN_FROZEN: u16 = 0x0300;
    const HEAP_XMAX_COMMITTED_OR_INVALID: u16 = 0x0C00;
    const HEAP_XACT_MASK: u16 = 0xFFF0;
    const SPEC_TOKEN_OFFSET: u16 = 0xFFFE;
    hint_bits(page);
    unused_space(page);
    for (index, at) in line_pointers(page).enumerate() {
        let item = u32_at(page, at);
        let (start, state, len) = ((item & 0x7FFF) as usize, item >> 15 & 3, (item >> 17) as usize);
        if state == 1 {
            let infomask = u16_at(page, start + T_INFOMASK);
            let hidden = match infomask & HEAP_XMIN_FROZEN {
                HEAP_XMIN_FROZEN => HEAP_XMAX_COMMITTED_OR_INVALID,
                _ => HEAP_XACT_MASK,
            };
            put_u16(page, start + T_INFOMASK, infomask & !hidden);
            put_u32(page, start + T_CID, u32::from(MARKER));
            if u16_at(page, start + T_CTID + 4) == SPEC_TOKEN_OFFSET {
                let [low, high] = [blkno as u16, (blkno >> 16) as u16];
                put_u16(page, start + T_CTID, high);
                put_u16(page, start + T_CTID + 2, low);
                put_u16(page, start + T_CTID + 4, u16::try_from(index + 1).unwrap());
            }
        }
        if len > 0 {
            let end = start + len;
            page[end..end.next_multiple_of(8)].fill(MARKER);
        }
    }
}

/// `btree_mask`.
fn btree(page: &mut Page) {
    const BTP_LEAF: u16 = 1;
    const BTP_HAS_GARBAGE_OR_SPLIT_END: u16 = 0x60;
    hint_bits(page);
    unused_space(page);
    let flags_at = special(page) + 12;
    let flags = u16_at(page, flags_at);
    if flags & BTP_LEAF != 0 {
        lp_flags(page);
    }
    put_u16(page, flags_at, flags & !BTP_HAS_GARBAGE_OR_SPLIT_END);
    put_u16(page, flags_at + 2, 0);
}

/// `hash_mask`.
fn hash(page: &mut Page) {
    const LH_PAGE_TYPE: u16 = 0x000F;
    const LH_PAGE_HAS_DEAD_TUPLES: u16 = 0x0080;
    hint_bits(page);
    unused_space(page);
    let flags_at = special(page) + 12;
    let flags = u16_at(page, flags_at);
    match flags & LH_PAGE_TYPE {
        0 => return content(page),
        1 | 2 => lp_flags(page),
        _ => {}
    }
    put_u16(page, flags_at, flags & !LH_PAGE_HAS_DEAD_TUPLES);
}

/// `gist_mask`.
fn gist(page: &mut Page) {
    const F_LEAF: u16 = 1;
    const F_FOLLOW_RIGHT: u16 = 8;
    const F_HAS_GARBAGE: u16 = 16;
    hint_bits(page);
    unused_space(page);
    let nsn = special(page);
    page[nsn..nsn + 8].fill(MARKER);
    let flags_at = nsn + 12;
    let flags = u16_at(page, flags_at) | F_FOLLOW_RIGHT;
    if flags & F_LEAF != 0 {
        lp_flags(page);
    }
    put_u16(page, flags_at, flags & !F_HAS_GARBAGE);
}

/// `gin_mask`.
fn gin(page: &mut Page) {
    const GIN_DELETED: u16 = 4;
    hint_bits(page);
    let flags = u16_at(page, special(page) + 6);
    if flags & GIN_DELETED != 0 {
        content(page);
    } else if usize::from(u16_at(page, PD_LOWER)) > HEADER {
        unused_space(page);
    }
}

/// `brin_mask`.
fn brin(page: &mut Page) {
    const BRIN_PAGETYPE_META: u16 = 0xF091;
    const BRIN_PAGETYPE_REGULAR: u16 = 0xF093;
    const BRIN_EVACUATE_PAGE: u16 = 1;
    hint_bits(page);
    let page_type = u16_at(page, BLCKSZ - 2);
    let pointers = usize::from(u16_at(page, PD_LOWER)) > HEADER;
    if page_type == BRIN_PAGETYPE_REGULAR || (page_type == BRIN_PAGETYPE_META && pointers) {
        unused_space(page);
    }
    let flags = u16_at(page, BLCKSZ - 4) & !BRIN_EVACUATE_PAGE;
    put_u16(page, BLCKSZ - 4, flags);
}
