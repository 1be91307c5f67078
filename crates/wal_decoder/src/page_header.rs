//! WAL page headers (`XLogPageHeaderData` and `XLogLongPageHeaderData` in `access/xlog_internal.h`).

use pg_types::Lsn;
use pg_types::xlog::{
    SIZE_OF_XLOG_LONG_PHD, SIZE_OF_XLOG_SHORT_PHD, WAL_SEGMENT_SIZE, XLOG_BLCKSZ, XLOG_PAGE_MAGIC,
    XLP_ALL_FLAGS, XLP_FIRST_IS_CONTRECORD, XLP_FIRST_IS_OVERWRITE_CONTRECORD, XLP_LONG_HEADER,
    segment_offset,
};

use crate::reader::{Reader, ShortRead};

/// What a reader needs to know of a page header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// `xlp_info`.
    pub info: u16,
    /// `xlp_tli`.
    pub tli: u32,
    /// `xlp_rem_len`: bytes of the record that continues here, counted from this page on.
    pub rem_len: u32,
    /// `xlp_sysid`; only the first page of a segment has it.
    pub system_identifier: Option<u64>,
}

impl PageHeader {
    /// The page starts inside a record.
    pub fn is_contrecord(&self) -> bool {
        self.info & XLP_FIRST_IS_CONTRECORD != 0
    }

    /// The record that should continue here was given up; another one starts.
    pub fn is_overwrite_contrecord(&self) -> bool {
        self.info & XLP_FIRST_IS_OVERWRITE_CONTRECORD != 0
    }
}

/// Why a page header is refused; the conditions of `XLogReaderValidatePageHeader` (`xlogreader.c`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PageHeaderError {
    /// Fewer bytes than a header has.
    #[error("page header is cut off: {0}")]
    Short(#[from] ShortRead),
    /// Not WAL, or of another major version.
    #[error("magic number {found:04X}, expected {XLOG_PAGE_MAGIC:04X} (PostgreSQL 17)")]
    Magic {
        /// What is there.
        found: u16,
    },
    /// Unknown flag bits, or a segment's first page without a long header.
    #[error("invalid info bits {info:04X}")]
    Info {
        /// `xlp_info`.
        info: u16,
    },
    /// The page belongs elsewhere: a recycled segment.
    #[error("page address {found}")]
    Address {
        /// `xlp_pageaddr`.
        found: Lsn,
    },
    /// Another `wal_segment_size`.
    #[error("segment size {found}, expected {WAL_SEGMENT_SIZE}")]
    SegmentSize {
        /// `xlp_seg_size`.
        found: u32,
    },
    /// Another `wal_block_size`.
    #[error("WAL block size {found}, expected {XLOG_BLCKSZ}")]
    BlockSize {
        /// `xlp_xlog_blcksz`.
        found: u32,
    },
}

/// Bytes of the header that the page at `page_start` must have.
pub fn size_at(page_start: Lsn) -> usize {
    let size = if segment_offset(page_start) == 0 {
        SIZE_OF_XLOG_LONG_PHD
    } else {
        SIZE_OF_XLOG_SHORT_PHD
    };
    usize::try_from(size).unwrap_or(usize::MAX)
}

/// Reads and checks the header of the page at `page_start`.
pub fn parse(bytes: &[u8], page_start: Lsn) -> Result<PageHeader, PageHeaderError> {
    let mut reader = Reader::new(bytes);
    let magic = reader.u16()?;
    let info = reader.u16()?;
    let tli = reader.u32()?;
    let address = Lsn(reader.u64()?);
    let rem_len = reader.u32()?;
    let _padding = reader.u32()?;
    if magic != XLOG_PAGE_MAGIC {
        return Err(PageHeaderError::Magic { found: magic });
    }
    let long = info & XLP_LONG_HEADER != 0;
    if info & !XLP_ALL_FLAGS != 0 || long != (segment_offset(page_start) == 0) {
        return Err(PageHeaderError::Info { info });
    }
    if address != page_start {
        return Err(PageHeaderError::Address { found: address });
    }
    let mut system_identifier = None;
    if long {
        system_identifier = Some(reader.u64()?);
        let segment_size = reader.u32()?;
        if u64::from(segment_size) != WAL_SEGMENT_SIZE {
            return Err(PageHeaderError::SegmentSize { found: segment_size });
        }
        let block_size = reader.u32()?;
        if u64::from(block_size) != XLOG_BLCKSZ {
            return Err(PageHeaderError::BlockSize { found: block_size });
        }
    }
    Ok(PageHeader { info, tli, rem_len, system_identifier })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_parse_or_fail(bytes: Vec<u8>, start: u64) {
            let _ = parse(&bytes, Lsn(start));
        }
    }
}
