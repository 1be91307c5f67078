//! The `rm_mask` functions: what Postgres may change on a page without WAL, hidden from a comparison.
//!
//! Written after `bufmask.c` and the mask function of each resource manager.

use pg_types::page::Page;
use pg_types::{BLCKSZ, BlockNumber, ForkNumber};

const MARKER: u8 = 0;
const PD_FLAGS: usize = 10;
const PD_LOWER: usize = 12;
const PD_UPPER: usize = 14;
const PD_SPECIAL: usize = 16;
const PD_PRUNE_XID: usize = 20;
const HEADER: usize = 24;

const RM_HEAP2: u8 = 9;
const RM_HEAP: u8 = 10;
const RM_BTREE: u8 = 11;
const RM_HASH: u8 = 12;
const RM_GIN: u8 = 13;
const RM_GIST: u8 = 14;
const RM_SEQ: u8 = 15;
const RM_SPGIST: u8 = 16;
const RM_BRIN: u8 = 17;
const RM_GENERIC: u8 = 20;
const RM_NEON: u8 = 134;

struct View<'a>(&'a mut Page);

impl View<'_> {
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    fn put16(&mut self, at: usize, value: u16) {
        self.0[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn put32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn clear(&mut self, at: usize, bits: u16) {
        let value = self.u16(at) & !bits;
        self.put16(at, value);
    }

    fn lsn_and_checksum(&mut self) {
        self.0[..10].fill(MARKER);
    }

    /// PD_HAS_FREE_LINES 1, PD_PAGE_FULL 2, PD_ALL_VISIBLE 4.
    fn hint_bits(&mut self) {
        self.put32(PD_PRUNE_XID, 0);
        self.clear(PD_FLAGS, 7);
    }

    fn unused_space(&mut self) {
        let (lower, upper) = (self.u16(PD_LOWER) as usize, self.u16(PD_UPPER) as usize);
        assert!(
            HEADER <= lower
                && lower <= upper
                && upper <= self.special()
                && self.special() <= BLCKSZ
        );
        self.0[lower..upper].fill(MARKER);
    }

    fn content(&mut self) {
        self.0[HEADER..].fill(MARKER);
        self.put16(PD_LOWER, 0);
        self.put16(PD_UPPER, 0);
    }

    fn special(&self) -> usize {
        self.u16(PD_SPECIAL) as usize
    }

    /// Offsets of the line pointers.
    fn line_pointers(&self) -> impl Iterator<Item = usize> + use<> {
        (HEADER..(self.u16(PD_LOWER) as usize).max(HEADER)).step_by(4)
    }

    /// `mask_lp_flags`: bits 15 and 16 of a line pointer.
    fn lp_flags(&mut self) {
        for at in self.line_pointers() {
            let value = self.u32(at) & !(3 << 15);
            self.put32(at, value);
        }
    }

    fn heap(&mut self, blkno: BlockNumber, cids_count: bool) {
        const XMIN_FROZEN: u16 = 0x0300;
        const XACT_MASK: u16 = 0xFFF0;
        const XMAX_COMMITTED_INVALID: u16 = 0x0400 | 0x0800;
        const SPEC_TOKEN: u16 = 0xFFFE;
        self.hint_bits();
        self.unused_space();
        for (index, at) in self.line_pointers().enumerate() {
            let pointer = self.u32(at);
            let (item, flags, len) =
                ((pointer & 0x7FFF) as usize, pointer >> 15 & 3, (pointer >> 17) as usize);
            if flags == 1 {
                let infomask = self.u16(item + 20);
                let frozen = infomask & XMIN_FROZEN == XMIN_FROZEN;
                self.clear(item + 20, if frozen { XMAX_COMMITTED_INVALID } else { XACT_MASK });
                if !cids_count {
                    self.put32(item + 8, 0);
                }
                if self.u16(item + 16) == SPEC_TOKEN {
                    // ip_blkid is two 16-bit halves, high one first.
                    self.put16(item + 12, u16::try_from(blkno >> 16).unwrap());
                    self.put16(item + 14, u16::try_from(blkno & 0xFFFF).unwrap());
                    self.put16(item + 16, u16::try_from(index).unwrap() + 1);
                }
            }
            if len > 0 {
                let end = item + len;
                self.0[end..end.next_multiple_of(8)].fill(MARKER);
            }
        }
    }

    fn btree(&mut self) {
        self.hint_bits();
        self.unused_space();
        let flags = self.special() + 12;
        if self.u16(flags) & 1 != 0 {
            self.lp_flags();
        }
        // BTP_HAS_GARBAGE 0x40, BTP_SPLIT_END 0x20; then the cycle id.
        self.clear(flags, 0x60);
        self.put16(flags + 2, 0);
    }

    fn hash(&mut self) {
        self.hint_bits();
        self.unused_space();
        let flags = self.special() + 12;
        match self.u16(flags) & 0x0F {
            0 => self.content(),
            1 | 2 => self.lp_flags(),
            _ => (),
        }
        if flags < BLCKSZ && self.u16(flags) != 0 {
            self.clear(flags, 0x80);
        }
    }

    fn gin(&mut self) {
        let flags = self.special() + 6;
        self.hint_bits();
        if self.u16(flags) & 4 != 0 {
            self.content();
        } else if self.u16(PD_LOWER) as usize > HEADER {
            self.unused_space();
        }
    }

    fn gist(&mut self) {
        self.hint_bits();
        self.unused_space();
        let special = self.special();
        self.0[special..special + 8].fill(MARKER);
        let flags = special + 12;
        // F_FOLLOW_RIGHT 8 is set, F_HAS_GARBAGE 16 cleared; F_LEAF is 1.
        let value = self.u16(flags) | 8;
        self.put16(flags, value);
        if value & 1 != 0 {
            self.lp_flags();
        }
        self.clear(flags, 16);
    }

    fn brin(&mut self) {
        self.hint_bits();
        let (kind, flags) = (self.u16(BLCKSZ - 2), BLCKSZ - 4);
        let meta = kind == 0xF091 && self.u16(PD_LOWER) as usize > HEADER;
        if kind == 0xF093 || meta {
            self.unused_space();
        }
        self.clear(flags, 1);
    }
}

/// Masks `page` as the resource manager of a record that changed it would, with two exceptions: of a visibility
/// map page everything counts (to `heap_mask` all of it is unused space), and of a page that the `neon` resource
/// manager changed, the command ids do.
pub fn mask(rmid: u8, page: &mut Page, fork: ForkNumber, blkno: BlockNumber) {
    let mut view = View(page);
    view.lsn_and_checksum();
    if fork == ForkNumber::Vm {
        return;
    }
    match rmid {
        RM_HEAP | RM_HEAP2 => view.heap(blkno, false),
        RM_NEON => view.heap(blkno, true),
        RM_BTREE => view.btree(),
        RM_HASH => view.hash(),
        RM_GIN => view.gin(),
        RM_GIST => view.gist(),
        RM_SPGIST => {
            view.hint_bits();
            if view.u16(PD_LOWER) as usize >= HEADER {
                view.unused_space();
            }
        }
        RM_BRIN => view.brin(),
        RM_SEQ | RM_GENERIC => view.unused_space(),
        other => panic!("no page is masked for resource manager {other}"),
    }
}
