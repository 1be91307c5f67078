//! Positions in WAL pages and segments (`access/xlog_internal.h`, `access/xlogdefs.h`).

use crate::Lsn;

/// `XLOG_BLCKSZ`.
pub const XLOG_BLCKSZ: u64 = 8192;
/// WAL segment size; the default of `initdb` and the only one this system makes.
pub const WAL_SEGMENT_SIZE: u64 = 16 * 1024 * 1024;
/// `XLOG_PAGE_MAGIC` of PostgreSQL 17.
pub const XLOG_PAGE_MAGIC: u16 = 0xD116;
/// `SizeOfXLogShortPHD`: header of every WAL page but a segment's first.
pub const SIZE_OF_XLOG_SHORT_PHD: u64 = 24;
/// `SizeOfXLogLongPHD`: header of a segment's first page.
pub const SIZE_OF_XLOG_LONG_PHD: u64 = 40;
/// `SizeOfXLogRecord`: fixed part of a record.
pub const SIZE_OF_XLOG_RECORD: usize = 24;
/// `XLP_FIRST_IS_CONTRECORD`: the page starts inside a record.
pub const XLP_FIRST_IS_CONTRECORD: u16 = 0x0001;
/// `XLP_LONG_HEADER`.
pub const XLP_LONG_HEADER: u16 = 0x0002;
/// `XLP_BKP_REMOVABLE`.
pub const XLP_BKP_REMOVABLE: u16 = 0x0004;
/// `XLP_FIRST_IS_OVERWRITE_CONTRECORD`.
pub const XLP_FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;
/// `XLP_ALL_FLAGS`.
pub const XLP_ALL_FLAGS: u16 = 0x000F;

/// Offset of a position within its WAL page.
pub fn page_offset(lsn: Lsn) -> u64 {
    lsn.0 % XLOG_BLCKSZ
}

/// Offset of a position within its segment.
pub fn segment_offset(lsn: Lsn) -> u64 {
    lsn.0 % WAL_SEGMENT_SIZE
}

/// Number of the segment that holds a position (`XLByteToSeg`).
pub fn segment_number(lsn: Lsn) -> u64 {
    lsn.0 / WAL_SEGMENT_SIZE
}

/// First position of a segment.
pub fn segment_start(segno: u64) -> Lsn {
    Lsn(segno * WAL_SEGMENT_SIZE)
}

/// Name of a segment file on timeline `tli` (`XLogFileName`).
pub fn segment_file_name(tli: u32, segno: u64) -> String {
    let per_id = 0x1_0000_0000 / WAL_SEGMENT_SIZE;
    format!("{tli:08X}{:08X}{:08X}", segno / per_id, segno % per_id)
}

/// Bytes of header at the start of the WAL page that begins at `page_start`.
pub fn page_header_size(page_start: Lsn) -> u64 {
    if segment_offset(page_start) == 0 { SIZE_OF_XLOG_LONG_PHD } else { SIZE_OF_XLOG_SHORT_PHD }
}

/// Moves a position that is exactly at the start of a WAL page past its header, and aligns any other to
/// 8 bytes: the position where the next record really starts.
///
/// Basebackup, `pg_control`, streaming start and leases all use this one function, because a difference of
/// 24 or 40 bytes between two of them makes one wait for bytes that never come.
pub fn normalize(lsn: Lsn) -> Lsn {
    let aligned = lsn.align();
    if page_offset(aligned) == 0 { aligned + page_header_size(aligned) } else { aligned }
}

/// The reverse for positions just behind a page header: `GetXLogInsertRecPtr` returns them, but no record
/// ever *ends* there, so a wait for one must be for the page's start.
pub fn before_page_header(lsn: Lsn) -> Lsn {
    let offset = page_offset(lsn);
    let page_start = Lsn(lsn.0 - offset);
    if offset != 0 && offset == page_header_size(page_start) { page_start } else { lsn }
}

/// Most WAL that is sent in one piece: `MAX_SEND_SIZE` of `walsender.c`.
pub const SEND_BYTES_MAX: u64 = 16 * XLOG_BLCKSZ;

/// Bytes of the next piece of `available` ones, as `XLogSendPhysical`: at most [`SEND_BYTES_MAX`], cut at a page boundary
/// unless that is all there is.
pub fn send_len(start_lsn: Lsn, available: u64) -> u64 {
    if available <= SEND_BYTES_MAX {
        return available;
    }
    SEND_BYTES_MAX - page_offset(start_lsn + SEND_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_advance_and_end_at_pages_or_at_the_end(start in 0u64..1 << 40, available in 1u64..1 << 30) {
            let len = send_len(Lsn(start), available);
            prop_assert!(0 < len && len <= available.min(SEND_BYTES_MAX));
            prop_assert!(len == available || (start + len).is_multiple_of(XLOG_BLCKSZ));
        }
    }

    #[test]
    fn names_segments_as_postgres_does() {
        assert_eq!(segment_file_name(1, 1), "000000010000000000000001");
        assert_eq!(segment_file_name(1, 0x1_23), "000000010000000100000023");
    }

    #[test]
    fn normalizes_page_and_segment_starts() {
        assert_eq!(normalize(Lsn(0x100_0000)), Lsn(0x100_0028));
        assert_eq!(normalize(Lsn(0x100_2000)), Lsn(0x100_2018));
        assert_eq!(normalize(Lsn(0x100_2018)), Lsn(0x100_2018));
        assert_eq!(normalize(Lsn(0x100_2019)), Lsn(0x100_2020));
        assert_eq!(normalize(Lsn(0x100_1FFF)), Lsn(0x100_2018));
    }

    proptest! {
        #[test]
        fn normalize_is_idempotent_and_undone(value in 0u64..1 << 60) {
            let lsn = normalize(Lsn(value));
            prop_assert_eq!(normalize(lsn), lsn);
            prop_assert!(lsn.0 - value <= 7 + 40);
            prop_assert_eq!(normalize(before_page_header(lsn)), lsn);
        }
    }
}
