//! Command ids on a heap page (`storage/bufpage.h`, `storage/itemid.h`, `access/htup_details.h`).

use pg_types::page::{Page, SIZE_OF_PAGE_HEADER};

/// `LP_NORMAL` of `storage/itemid.h`: the line pointer leads to a tuple.
const LP_NORMAL: u32 = 1;
/// Offset of `t_cid` in a tuple header.
const T_CID: usize = 8;
/// Offset of `t_infomask` in a tuple header.
const T_INFOMASK: usize = 20;
/// `HEAP_COMBOCID` of `t_infomask`.
const HEAP_COMBOCID: u16 = 0x0020;
/// `SizeofHeapTupleHeader`.
const SIZE_OF_HEADER: usize = 23;

/// A command id as it stands in a tuple: cmin, cmax or the number of a combination of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cid {
    /// `t_cid`.
    pub raw: u32,
    /// `HEAP_COMBOCID`: the number is known to the backend that made it only.
    pub combo: bool,
}

/// There is no tuple where one is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no tuple at offset number {offnum}")]
pub struct PageError {
    /// Offset number, from 1.
    pub offnum: u16,
}

/// The command id of a tuple.
pub fn cid(page: &Page, offnum: u16) -> Result<Cid, PageError> {
    let header = tuple_header(page, offnum).ok_or(PageError { offnum })?;
    let raw = u32_at(page, header + T_CID).ok_or(PageError { offnum })?;
    let infomask = u16_at(page, header + T_INFOMASK).ok_or(PageError { offnum })?;
    Ok(Cid { raw, combo: infomask & HEAP_COMBOCID != 0 })
}

/// Sets the command id of a tuple.
pub fn set_cid(page: &mut Page, offnum: u16, cid: Cid) -> Result<(), PageError> {
    let header = tuple_header(page, offnum).ok_or(PageError { offnum })?;
    let infomask = u16_at(page, header + T_INFOMASK).ok_or(PageError { offnum })?;
    let infomask = if cid.combo { infomask | HEAP_COMBOCID } else { infomask & !HEAP_COMBOCID };
    page[header + T_CID..][..4].copy_from_slice(&cid.raw.to_le_bytes());
    page[header + T_INFOMASK..][..2].copy_from_slice(&infomask.to_le_bytes());
    Ok(())
}

/// Undoes what `heap_mask` does to command ids: copies those of `original` into `masked`, so that a consistency
/// check compares them.
pub fn keep_cids(masked: &mut Page, original: &Page) {
    let lower = usize::from(u16_at(original, 12).unwrap_or_default());
    for offnum in (1..=u16::MAX).take(lower.saturating_sub(SIZE_OF_PAGE_HEADER) / 4) {
        if let Ok(cid) = cid(original, offnum)
            && set_cid(masked, offnum, cid).is_err()
        {
            // Line pointers are not masked: this cannot be. Where it is, the pages differ anyway.
            return;
        }
    }
}

/// Where the header of a tuple begins; `None` if there is none or it does not fit into the page.
fn tuple_header(page: &Page, offnum: u16) -> Option<usize> {
    let pointer_at = SIZE_OF_PAGE_HEADER + 4 * usize::from(offnum.checked_sub(1)?);
    let lower = usize::from(u16_at(page, 12)?);
    if pointer_at + 4 > lower {
        return None;
    }
    // ItemIdData: lp_off 15 bits, lp_flags 2 bits, lp_len 15 bits.
    let pointer = u32_at(page, pointer_at)?;
    let header = usize::from(u16::try_from(pointer & 0x7FFF).ok()?);
    let fits = header >= lower && header + SIZE_OF_HEADER <= page.len();
    (pointer >> 15 & 3 == LP_NORMAL && fits).then_some(header)
}

fn u16_at(page: &Page, at: usize) -> Option<u16> {
    page.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(page: &Page, at: usize) -> Option<u32> {
    page.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg_types::BLCKSZ;
    use proptest::prelude::*;

    /// A page with tuples of 24 bytes; tuple 2 is dead.
    fn page_with(count: u16) -> Page {
        let mut page = [0; BLCKSZ];
        page[12..14].copy_from_slice(&(24 + 4 * count).to_le_bytes());
        for i in 0..count {
            let at = 8192 - 24 * (i + 1);
            let flags = if i == 1 { 3 } else { LP_NORMAL };
            let pointer = u32::from(at) | flags << 15 | 24 << 17;
            let slot = 24 + 4 * usize::from(i);
            page[slot..slot + 4].copy_from_slice(&pointer.to_le_bytes());
        }
        page
    }

    #[test]
    fn a_command_id_is_where_postgres_has_it() {
        let mut page = page_with(3);
        set_cid(&mut page, 3, Cid { raw: 0x0403_0201, combo: true }).unwrap();
        let header = 8192 - 72;
        assert_eq!(page[header + 8..header + 12], [1, 2, 3, 4]);
        assert_eq!(page[header + 20..header + 22], [0x20, 0]);
        page[header + 21] = 0x08;
        assert_eq!(cid(&page, 3), Ok(Cid { raw: 0x0403_0201, combo: true }));
        set_cid(&mut page, 3, Cid { raw: 5, combo: false }).unwrap();
        assert_eq!(page[header + 20..header + 22], [0, 0x08], "other bits stay");
        for offnum in [0, 2, 4, 2000, u16::MAX] {
            assert_eq!(cid(&page, offnum), Err(PageError { offnum }));
        }
    }

    #[test]
    fn masking_leaves_command_ids() {
        let mut original = page_with(3);
        set_cid(&mut original, 1, Cid { raw: 7, combo: false }).unwrap();
        set_cid(&mut original, 3, Cid { raw: 9, combo: true }).unwrap();
        let mut masked = original;
        for offnum in [1, 3] {
            set_cid(&mut masked, offnum, Cid { raw: 0, combo: false }).unwrap();
        }
        keep_cids(&mut masked, &original);
        assert!(masked == original);
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe(
            header in any::<[u8; 24]>(),
            pointers in prop::collection::vec(any::<u32>(), 8),
            offnum in any::<u16>(),
        ) {
            let mut page = [0; BLCKSZ];
            page[..24].copy_from_slice(&header);
            for (slot, pointer) in page[24..].chunks_exact_mut(4).zip(&pointers) {
                slot.copy_from_slice(&pointer.to_le_bytes());
            }
            let before = page;
            for offnum in [offnum, offnum % 10] {
                let new = Cid { raw: 1, combo: true };
                let there = cid(&page, offnum).is_ok();
                prop_assert_eq!(set_cid(&mut page, offnum, new).is_ok(), there);
                if there {
                    prop_assert_eq!(cid(&page, offnum), Ok(new));
                }
            }
            keep_cids(&mut page, &before);
        }
    }
}
