//! Read-only view of a page header (`PageHeaderData` in `storage/bufpage.h`), and stamping of its LSN.

use crate::{BLCKSZ, Lsn};

/// `SizeOfPageHeaderData`.
pub const SIZE_OF_PAGE_HEADER: usize = 24;
const PD_UPPER: usize = 14;

/// An 8 KiB page.
pub type Page = [u8; BLCKSZ];

/// A page of zeros: what a new, never initialised block holds.
pub static ZERO_PAGE: Page = [0; BLCKSZ];

/// `PageGetLSN`: two 32-bit halves, high one first, each in little-endian order.
pub fn lsn(page: &Page) -> Lsn {
    let [a, b, c, d, e, f, g, h, ..] = *page;
    let hi = u32::from_le_bytes([a, b, c, d]);
    let lo = u32::from_le_bytes([e, f, g, h]);
    Lsn(u64::from(hi) << 32 | u64::from(lo))
}

/// `PageSetLSN`. Not for new pages, which must stay all zeros (see [`is_new`]).
pub fn set_lsn(page: &mut Page, lsn: Lsn) {
    let (hi, lo) = page[..8].split_at_mut(4);
    let value = lsn.0.to_be_bytes();
    hi.copy_from_slice(&[value[3], value[2], value[1], value[0]]);
    lo.copy_from_slice(&[value[7], value[6], value[5], value[4]]);
}

/// `PageIsNew`: `pd_upper` is 0.
pub fn is_new(page: &Page) -> bool {
    page[PD_UPPER] == 0 && page[PD_UPPER + 1] == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_round_trips_in_postgres_order() {
        let mut page = ZERO_PAGE;
        set_lsn(&mut page, Lsn(0x0102_0304_0506_0708));
        assert_eq!(page[..8], [4, 3, 2, 1, 8, 7, 6, 5]);
        assert_eq!(lsn(&page), Lsn(0x0102_0304_0506_0708));
        assert!(is_new(&page));
        page[PD_UPPER + 1] = 0x20;
        assert!(!is_new(&page));
    }
}
