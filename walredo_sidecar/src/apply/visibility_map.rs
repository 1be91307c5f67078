//! Visibility map (`visibilitymap.c`): two bits for each heap block, behind a page header.

use pg_types::page::{Page, SIZE_OF_PAGE_HEADER, is_new, set_lsn};
use pg_types::{BLCKSZ, BlockNumber, ForkNumber, Key, Lsn};

use super::invalid;
use crate::WalRedoError;

/// `MAXALIGN(SizeOfPageHeaderData)`: where the map starts in a page.
const MAP_START: usize = SIZE_OF_PAGE_HEADER;
const _: () = assert!(MAP_START.is_multiple_of(8));
/// `BITS_PER_HEAPBLOCK`.
const BITS_PER_HEAPBLOCK: u32 = 2;
/// `HEAPBLOCKS_PER_BYTE`.
const HEAPBLOCKS_PER_BYTE: u32 = 8 / BITS_PER_HEAPBLOCK;
/// `MAPSIZE`.
const MAPSIZE: u32 = 8168;
const _: () = assert!(MAPSIZE as usize == BLCKSZ - MAP_START);
/// `HEAPBLOCKS_PER_PAGE`.
const HEAPBLOCKS_PER_PAGE: u32 = MAPSIZE * HEAPBLOCKS_PER_BYTE;

/// `HEAPBLK_TO_MAPBLOCK`.
fn map_block(heap_blkno: BlockNumber) -> BlockNumber {
    heap_blkno / HEAPBLOCKS_PER_PAGE
}

/// `HEAPBLK_TO_MAPBYTE`.
fn map_byte(heap_blkno: BlockNumber) -> usize {
    (heap_blkno % HEAPBLOCKS_PER_PAGE / HEAPBLOCKS_PER_BYTE) as usize
}

/// `HEAPBLK_TO_OFFSET`.
fn map_offset(heap_blkno: BlockNumber) -> u32 {
    heap_blkno % HEAPBLOCKS_PER_BYTE * BITS_PER_HEAPBLOCK
}

/// The map block that `key` names (L070).
fn map_key(key: Key, record: &str, lsn: Lsn) -> Result<BlockNumber, WalRedoError> {
    match key.to_rel_block() {
        Ok((rel, blkno)) if rel.fork == ForkNumber::Vm => Ok(blkno),
        _ => {
            Err(invalid(key, lsn, &format!("{record} record with a key that is no VM fork block")))
        }
    }
}

/// Clears `flags` of the given heap blocks (L069), as `visibilitymap_clear` does. The page gets the record's
/// LSN unless it is new: a page of zeros must stay one.
pub(super) fn clear(
    key: Key,
    page: &mut Page,
    heap_blocks: [Option<BlockNumber>; 2],
    flags: u8,
    lsn: Lsn,
) -> Result<(), WalRedoError> {
    let blkno = map_key(key, "ClearVisibilityMapFlags", lsn)?;
    let blocks = heap_blocks.into_iter().flatten();
    if let Some(other) = blocks.clone().find(|heap_blkno| map_block(*heap_blkno) != blkno) {
        let what =
            format!("ClearVisibilityMapFlags record for heap block {other} of another map block");
        return Err(invalid(key, lsn, &what));
    }
    for heap_blkno in blocks {
        if let Some(byte) = page.get_mut(MAP_START + map_byte(heap_blkno)) {
            // As in C: bits shifted out of the byte are lost.
            *byte &= !(flags << map_offset(heap_blkno));
        }
    }
    stamp(page, lsn);
    Ok(())
}

/// Clears everything behind bit `trunc_offs` of map byte `trunc_byte`, as `visibilitymap_prepare_truncate`
/// does. Stock redo leaves the page's LSN alone; here the page is a version of its own, so it gets one.
pub(super) fn truncate(
    key: Key,
    page: &mut Page,
    trunc_byte: u16,
    trunc_offs: u8,
    lsn: Lsn,
) -> Result<(), WalRedoError> {
    map_key(key, "TruncateVisibilityMap", lsn)?;
    let (_, map) = page.split_at_mut(MAP_START);
    let Some(([boundary], tail)) =
        map.get_mut(usize::from(trunc_byte)..).and_then(|rest| rest.split_first_chunk_mut())
    else {
        let what = format!("TruncateVisibilityMap record for byte {trunc_byte} outside the map");
        return Err(invalid(key, lsn, &what));
    };
    let keep = 1u8.checked_shl(u32::from(trunc_offs)).map_or(u8::MAX, |bit| bit - 1);
    *boundary &= keep;
    tail.fill(0);
    stamp(page, lsn);
    Ok(())
}

fn stamp(page: &mut Page, lsn: Lsn) {
    if !is_new(page) {
        set_lsn(page, lsn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg_types::RelFileLocator;
    use pg_types::page;
    use proptest::prelude::*;

    const LSN: Lsn = Lsn(0x1234_5678);

    fn key(fork: ForkNumber, blkno: BlockNumber) -> Key {
        let locator = RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: 16384 };
        Key::rel_block(locator.fork(fork), blkno)
    }

    fn full_page() -> Page {
        let mut page = [0xFF; BLCKSZ];
        page::set_lsn(&mut page, Lsn(8));
        page
    }

    #[test]
    fn clears_two_heap_blocks_and_nothing_else() {
        let mut page = full_page();
        let before = page;
        // Heap block 5 is bits 2..4 of byte 1; heap block 7 is bits 6..8 of byte 1.
        clear(key(ForkNumber::Vm, 0), &mut page, [Some(5), Some(7)], 0b11, LSN).unwrap();
        assert_eq!(page[MAP_START + 1], 0b0011_0011);
        assert_eq!(page::lsn(&page), LSN);
        page[MAP_START + 1] = 0xFF;
        page[..8].copy_from_slice(&before[..8]);
        assert_eq!(page, before);
    }

    #[test]
    fn only_the_given_bit_goes() {
        let mut page = full_page();
        let blkno = HEAPBLOCKS_PER_PAGE * 3 + 1;
        clear(key(ForkNumber::Vm, 3), &mut page, [None, Some(blkno)], 0b10, LSN).unwrap();
        assert_eq!(page[MAP_START], 0b1111_0111);
    }

    #[test]
    fn a_new_page_stays_all_zeros() {
        let mut page = [0; BLCKSZ];
        clear(key(ForkNumber::Vm, 0), &mut page, [Some(1), None], 0b11, LSN).unwrap();
        truncate(key(ForkNumber::Vm, 0), &mut page, 0, 0, LSN).unwrap();
        assert_eq!(page, [0; BLCKSZ]);
    }

    #[test]
    fn wrong_fork_and_wrong_block_are_refused() {
        let mut page = full_page();
        for (key, heap_blkno) in [
            (key(ForkNumber::Main, 0), 1),
            (key(ForkNumber::Vm, 1), 1),
            (key(ForkNumber::Vm, 0), HEAPBLOCKS_PER_PAGE),
            (Key::CHECKPOINT, 1),
        ] {
            let result = clear(key, &mut page, [None, Some(heap_blkno)], 3, LSN);
            assert!(matches!(result, Err(WalRedoError::InvalidRecord)), "{key}");
        }
        assert!(truncate(key(ForkNumber::Vm, 0), &mut page, 8168, 0, LSN).is_err());
        assert_eq!(page, full_page());
    }

    #[test]
    fn truncation_keeps_what_is_in_front() {
        let mut page = full_page();
        truncate(key(ForkNumber::Vm, 0), &mut page, 10, 4, LSN).unwrap();
        assert!(page[MAP_START..MAP_START + 10].iter().all(|byte| *byte == 0xFF));
        assert_eq!(page[MAP_START + 10], 0x0F);
        assert!(page[MAP_START + 11..].iter().all(|byte| *byte == 0));
    }

    proptest! {
        #[test]
        fn never_panics(new: Option<u32>, old: Option<u32>, flags: u8, blkno: u32, byte: u16, offs: u8) {
            let mut page = full_page();
            let _ = clear(key(ForkNumber::Vm, blkno), &mut page, [new, old], flags, LSN);
            let _ = truncate(key(ForkNumber::Vm, blkno), &mut page, byte, offs, LSN);
        }

        #[test]
        fn clears_exactly_the_bits_of_the_block(heap_blkno in 0u32..HEAPBLOCKS_PER_PAGE) {
            let mut page = full_page();
            clear(key(ForkNumber::Vm, 0), &mut page, [Some(heap_blkno), None], 3, LSN).unwrap();
            let zeros: u32 = page[MAP_START..].iter().map(|byte| byte.count_zeros()).sum();
            prop_assert_eq!(zeros, 2);
            let bit = heap_blkno * 2;
            prop_assert_eq!(page[MAP_START + (bit / 8) as usize] >> (bit % 8) & 3, 0);
        }
    }
}
