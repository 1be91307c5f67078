//! Makes valid WAL: records of resource manager XLOG, kind NOOP, of any size, laid out on pages and segments as
//! Postgres does (`xlog.c`, `CopyXLogRecordToWAL` and `GetXLogBuffer`).

use pg_types::Lsn;
use pg_types::xlog::{
    SIZE_OF_XLOG_RECORD, WAL_SEGMENT_SIZE, XLOG_BLCKSZ, XLOG_PAGE_MAGIC, XLP_FIRST_IS_CONTRECORD,
    XLP_LONG_HEADER, page_header_size, page_offset, segment_offset,
};

const RM_XLOG_ID: u8 = 0;
const XLOG_NOOP: u8 = 0x20;
const XLOG_SWITCH: u8 = 0x40;
const XLR_BLOCK_ID_DATA_LONG: u8 = 254;
const SYSTEM_ID: u64 = 0x5EED_5EED;

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn u32_of(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Appends records to a growing stretch of WAL.
#[derive(Debug, Clone)]
pub struct WalBuilder {
    begin_lsn: Lsn,
    bytes: Vec<u8>,
    /// Start of each record so far.
    starts: Vec<Lsn>,
    /// End of each record so far.
    pub ends: Vec<Lsn>,
}

impl WalBuilder {
    /// Starts at a position where a record can start.
    pub fn new(begin_lsn: Lsn) -> WalBuilder {
        assert!(begin_lsn.is_aligned());
        WalBuilder { begin_lsn, bytes: Vec::new(), starts: Vec::new(), ends: Vec::new() }
    }

    /// Starts another history: it shares the bytes so far.
    pub fn fork_at(&self, lsn: Lsn) -> WalBuilder {
        let mut fork = self.clone();
        fork.bytes.truncate(index(lsn - self.begin_lsn));
        fork.starts.retain(|&start| start < lsn);
        fork.ends.retain(|&end| end <= lsn);
        fork
    }

    /// Position behind the last byte.
    pub fn end_lsn(&self) -> Lsn {
        self.begin_lsn + self.bytes.len() as u64
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes of a range.
    pub fn slice(&self, begin: Lsn, end: Lsn) -> &[u8] {
        let at = |lsn: Lsn| index(lsn - self.begin_lsn);
        &self.bytes[at(begin)..at(end)]
    }

    /// Appends a record with `len` bytes of payload made from `seed`.
    pub fn record(&mut self, len: usize, seed: u8) -> Lsn {
        let payload: Vec<u8> =
            (0u8..251).cycle().take(len).map(|byte| seed.wrapping_add(byte)).collect();
        self.append(XLOG_NOOP, &payload)
    }

    /// Appends an XLOG_SWITCH record and the empty rest of its segment.
    pub fn switch(&mut self) -> Lsn {
        self.append(XLOG_SWITCH, &[]);
        // Postgres writes the page headers of the skipped pages as zeros as well.
        while segment_offset(self.end_lsn()) != 0 {
            self.bytes.push(0);
        }
        let end_lsn = self.end_lsn();
        self.ends.pop();
        self.ends.push(end_lsn);
        self.end_lsn()
    }

    fn append(&mut self, info: u8, payload: &[u8]) -> Lsn {
        let mut body = Vec::new();
        if !payload.is_empty() {
            body.push(XLR_BLOCK_ID_DATA_LONG);
            body.extend_from_slice(&u32_of(payload.len()).to_le_bytes());
            body.extend_from_slice(payload);
        }
        self.pad_to_record_start();
        // The first one points to a record that is not here.
        let prev_lsn = self.starts.last().copied().unwrap_or(Lsn(8));
        self.starts.push(self.end_lsn());
        let mut record = Vec::new();
        let tot_len = u32_of(SIZE_OF_XLOG_RECORD + body.len());
        record.extend_from_slice(&tot_len.to_le_bytes());
        record.extend_from_slice(&0u32.to_le_bytes());
        record.extend_from_slice(&prev_lsn.0.to_le_bytes());
        record.extend_from_slice(&[info, RM_XLOG_ID, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&body), &record);
        record.extend_from_slice(&crc.to_le_bytes());
        record.extend_from_slice(&body);
        self.lay_out(&record);
        while !self.end_lsn().is_aligned() {
            self.bytes.push(0);
        }
        self.ends.push(self.end_lsn());
        self.end_lsn()
    }

    fn pad_to_record_start(&mut self) {
        if page_offset(self.end_lsn()) == 0 {
            self.page_header(0);
        }
    }

    fn lay_out(&mut self, mut rest: &[u8]) {
        while !rest.is_empty() {
            if page_offset(self.end_lsn()) == 0 {
                self.page_header(rest.len());
            }
            let room = index(XLOG_BLCKSZ - page_offset(self.end_lsn()));
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.bytes.extend_from_slice(now);
            rest = later;
        }
    }

    fn page_header(&mut self, rem_len: usize) {
        let page = self.end_lsn();
        let long = segment_offset(page) == 0;
        let info = if rem_len > 0 { XLP_FIRST_IS_CONTRECORD } else { 0 }
            | if long { XLP_LONG_HEADER } else { 0 };
        self.bytes.extend_from_slice(&XLOG_PAGE_MAGIC.to_le_bytes());
        self.bytes.extend_from_slice(&info.to_le_bytes());
        self.bytes.extend_from_slice(&1u32.to_le_bytes());
        self.bytes.extend_from_slice(&page.0.to_le_bytes());
        self.bytes.extend_from_slice(&u32_of(rem_len).to_le_bytes());
        self.bytes.extend_from_slice(&0u32.to_le_bytes());
        if long {
            self.bytes.extend_from_slice(&SYSTEM_ID.to_le_bytes());
            self.bytes.extend_from_slice(&u32_of(index(WAL_SEGMENT_SIZE)).to_le_bytes());
            self.bytes.extend_from_slice(&u32_of(index(XLOG_BLCKSZ)).to_le_bytes());
        }
        assert_eq!(self.end_lsn(), page + page_header_size(page));
    }
}
