//! Pages and segments of `pg_xact` and `pg_multixact`.

use pg_types::key::KeyKind;
use pg_types::page::ZERO_PAGE;
use pg_types::slru::{
    CLOG_XACTS_PER_PAGE, MULTIXACT_OFFSETS_PER_PAGE, SLRU_PAGES_PER_SEGMENT, page_to_segment,
};
use pg_types::{Key, Lsn, SlruKind};
use wal_decoder::checkpoint::{modulo_precedes, xid_precedes};

use super::Ingest;
use super::error::IngestError;
use super::storage::Storage;

impl<S: Storage> Ingest<S> {
    /// A page of zeros (`SimpleLruZeroPage`); the segment grows to hold it.
    pub(super) fn zero_slru_page(
        &mut self,
        kind: SlruKind,
        pageno: u32,
        lsn: Lsn,
    ) -> Result<(), IngestError> {
        if kind == SlruKind::MultiXactOffsets
            && self.pre_initialized_offsets_page.take() == Some(pageno)
        {
            return Ok(());
        }
        self.ensure_slru_page(kind, pageno, lsn)?;
        let (segno, blkno) = page_to_segment(pageno);
        self.batch.image(Key::slru_block(kind, segno, blkno), lsn, &ZERO_PAGE);
        Ok(())
    }

    /// Makes the page exist; pages between the segment's end and it are zeros. True when it had to be made.
    pub(super) fn ensure_slru_page(
        &mut self,
        kind: SlruKind,
        pageno: u32,
        lsn: Lsn,
    ) -> Result<bool, IngestError> {
        let (segno, blkno) = page_to_segment(pageno);
        let size = self.sizes.segment(&self.storage, kind, segno)?;
        if size.is_some_and(|size| blkno < size) {
            return Ok(false);
        }
        for gap in size.unwrap_or(0)..=blkno {
            self.batch.image(Key::slru_block(kind, segno, gap), lsn, &ZERO_PAGE);
        }
        self.batch.size(Key::slru_segment_size(kind, segno), lsn, blkno + 1);
        self.sizes.set_segment(kind, segno, Some(blkno + 1));
        Ok(true)
    }

    /// Removes the segments that `gone` says may go. The open batch must have been put.
    pub(super) fn remove_segments(
        &mut self,
        kind: SlruKind,
        lsn: Lsn,
        gone: impl Fn(u32) -> bool,
    ) -> Result<(), IngestError> {
        for key in self.storage.scan_keys(Key::slru_range(kind), self.stored_lsn())? {
            if let Some(KeyKind::SlruSegmentSize(kind, segno)) = key.kind()
                && gone(segno)
            {
                self.batch.remove(key, lsn);
                self.sizes.set_segment(kind, segno, None);
            }
        }
        Ok(())
    }
}

/// `SlruMayDeleteSegment`: first and last page precede the cutoff.
fn may_delete(segno: u32, cutoff: u32, precedes: impl Fn(u32, u32) -> bool) -> bool {
    let first = segno.wrapping_mul(SLRU_PAGES_PER_SEGMENT);
    precedes(first, cutoff) && precedes(first.wrapping_add(SLRU_PAGES_PER_SEGMENT - 1), cutoff)
}

/// Which segments `SimpleLruTruncate` removes; none when the newest page would go ("apparent wraparound").
pub(super) fn segments_before(
    cutoff: u32,
    newest: u32,
    precedes: impl Fn(u32, u32) -> bool + Copy,
) -> impl Fn(u32) -> bool {
    let wrapped = precedes(newest, cutoff);
    move |segno| !wrapped && may_delete(segno, cutoff, precedes)
}

/// `CLOGPagePrecedes` (`clog.c`).
pub(super) fn clog_page_precedes(a: u32, b: u32) -> bool {
    let first = |page: u32| page.wrapping_mul(CLOG_XACTS_PER_PAGE).wrapping_add(4);
    xid_precedes(first(a), first(b))
        && xid_precedes(first(a), first(b).wrapping_add(CLOG_XACTS_PER_PAGE - 1))
}

/// `MultiXactOffsetPagePrecedes` (`multixact.c`).
pub(super) fn offsets_page_precedes(a: u32, b: u32) -> bool {
    let first = |page: u32| page.wrapping_mul(MULTIXACT_OFFSETS_PER_PAGE).wrapping_add(2);
    modulo_precedes(first(a), first(b))
        && modulo_precedes(first(a), first(b).wrapping_add(MULTIXACT_OFFSETS_PER_PAGE - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncation_keeps_the_segment_of_the_cutoff() {
        let gone = segments_before(70, 200, clog_page_precedes);
        assert_eq!((0..5).map(gone).collect::<Vec<_>>(), [true, true, false, false, false]);
    }

    #[test]
    fn an_apparent_wraparound_removes_nothing() {
        let gone = segments_before(70, 69, clog_page_precedes);
        assert!(!(0..5).any(gone));
    }

    #[test]
    fn pages_wrap() {
        let pages = u32::MAX / MULTIXACT_OFFSETS_PER_PAGE;
        assert!(offsets_page_precedes(pages, 0));
        assert!(!offsets_page_precedes(0, pages));
        assert!(clog_page_precedes(131_071, 0));
    }
}
