//! Arithmetic of the visibility map (`visibilitymap.c`) and the free space map (`freespace.c`, `fsmpage.c`).

use pg_types::page::{Page, SIZE_OF_PAGE_HEADER};
use pg_types::{BLCKSZ, BlockNumber};

/// `MAPSIZE`: bytes of a map page behind its header.
const MAPSIZE: u32 = 8168;
const _: () = assert!(MAPSIZE as usize == BLCKSZ - SIZE_OF_PAGE_HEADER);
/// `HEAPBLOCKS_PER_BYTE`.
const HEAPBLOCKS_PER_BYTE: u32 = 4;
/// `HEAPBLOCKS_PER_PAGE`: heap blocks that one visibility map page covers.
pub const VM_HEAPBLOCKS_PER_PAGE: u32 = MAPSIZE * HEAPBLOCKS_PER_BYTE;

/// `HEAPBLK_TO_MAPBLOCK`.
pub fn vm_block(heap_blkno: BlockNumber) -> BlockNumber {
    heap_blkno / VM_HEAPBLOCKS_PER_PAGE
}

/// Where a heap block's bits are in its map page: byte and bit (`HEAPBLK_TO_MAPBYTE`, `HEAPBLK_TO_OFFSET`).
pub fn vm_position(heap_blkno: BlockNumber) -> (u16, u8) {
    let byte = heap_blkno % VM_HEAPBLOCKS_PER_PAGE / HEAPBLOCKS_PER_BYTE;
    let bit = heap_blkno % HEAPBLOCKS_PER_BYTE * 2;
    // Below MAPSIZE and below 8.
    (u16::try_from(byte).unwrap_or(u16::MAX), u8::try_from(bit).unwrap_or(0))
}

/// `offsetof(FSMPageData, fp_nodes)` from the start of the page.
const FP_NODES: usize = SIZE_OF_PAGE_HEADER + 4;
const NODES_PER_PAGE: usize = BLCKSZ - FP_NODES;
const NON_LEAF_NODES: usize = BLCKSZ / 2 - 1;
/// `SlotsPerFSMPage`: heap blocks that one bottom page of a free space map covers.
pub const FSM_SLOTS_PER_PAGE: u32 = 4069;
const _: () = assert!(FSM_SLOTS_PER_PAGE as usize == NODES_PER_PAGE - NON_LEAF_NODES);
/// `FSM_TREE_DEPTH`.
const FSM_TREE_DEPTH: u32 = 3;

/// The free space map's block with a heap block's slot, and the slot (`fsm_get_location`,
/// `fsm_logical_to_physical` for the bottom level).
pub fn fsm_location(heap_blkno: BlockNumber) -> (BlockNumber, usize) {
    let mut leafno = heap_blkno / FSM_SLOTS_PER_PAGE;
    let mut pages = 0;
    for _ in 0..FSM_TREE_DEPTH {
        pages += leafno + 1;
        leafno /= FSM_SLOTS_PER_PAGE;
    }
    let slot = usize::try_from(heap_blkno % FSM_SLOTS_PER_PAGE).unwrap_or(0);
    (pages - 1, slot)
}

/// `fsm_truncate_avail` with `fsm_rebuild_page`: clears the slots from `first_slot` on and mends the tree above.
pub fn fsm_truncate_page(page: &mut Page, first_slot: usize) {
    let Some(nodes) = page.get_mut(FP_NODES..) else { return };
    if let Some(tail) = nodes.get_mut(NON_LEAF_NODES.saturating_add(first_slot)..) {
        tail.fill(0);
    }
    for node in (0..NON_LEAF_NODES).rev() {
        let left = nodes.get(2 * node + 1).copied().unwrap_or(0);
        let right = nodes.get(2 * node + 2).copied().unwrap_or(0);
        if let Some(slot) = nodes.get_mut(node) {
            *slot = left.max(right);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg_types::page::ZERO_PAGE;

    #[test]
    fn physical_fsm_blocks_interleave_the_levels() {
        // Root, its first child, then bottom pages; a new middle page after 4069 bottom pages.
        assert_eq!(fsm_location(0), (2, 0));
        assert_eq!(fsm_location(4068), (2, 4068));
        assert_eq!(fsm_location(4069), (3, 0));
        assert_eq!(fsm_location(4069 * 4069 - 1), (2 + 4068, 4068));
        assert_eq!(fsm_location(4069 * 4069), (2 + 4069 + 1, 0));
    }

    #[test]
    fn truncation_lowers_the_root() {
        let mut page = ZERO_PAGE;
        page[FP_NODES + NON_LEAF_NODES + 10] = 7;
        page[FP_NODES + NON_LEAF_NODES + 20] = 200;
        fsm_truncate_page(&mut page, 4000);
        assert_eq!(page[FP_NODES], 200);
        fsm_truncate_page(&mut page, 11);
        assert_eq!(page[FP_NODES], 7);
        fsm_truncate_page(&mut page, 0);
        assert_eq!(page, ZERO_PAGE);
    }

    #[test]
    fn vm_positions() {
        assert_eq!((vm_block(32_671), vm_position(32_671)), (0, (8167, 6)));
        assert_eq!((vm_block(32_672), vm_position(32_672)), (1, (0, 0)));
        assert_eq!(vm_position(5), (1, 2));
    }
}
