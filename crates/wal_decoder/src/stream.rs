//! WAL bytes to records: page headers off, continuations joined, CRC checked.
//!
//! The rules are those of `XLogDecodeNextRecord` (`xlogreader.c`), without its file access:
//!
//! ```text
//!            feed                     poll
//!   bytes ───────►  input  ──┬─ page header ──► checked against the state
//!                            ├─ record within one page ──► sliced, not copied
//!                            ├─ record over several pages ──► copied as it arrives, never ahead of the bytes
//!                            └─ tail of a segment after XLOG_SWITCH ──► skipped
//! ```

use bytes::{Bytes, BytesMut};
use pg_types::xlog::{
    SIZE_OF_XLOG_RECORD, WAL_SEGMENT_SIZE, XLOG_BLCKSZ, page_offset, segment_offset,
};
use pg_types::{Lsn, PG_TLI};

use crate::page_header::{self, PageHeader, PageHeaderError};
use crate::rmgr::{RM_XLOG_ID, XLR_INFO_MASK, xlog};

/// `XLogRecordMaxSize` of `access/xlogrecord.h`.
pub const XLOG_RECORD_MAX_SIZE: u32 = 1020 * 1024 * 1024;

/// A record as it stands in WAL, page headers taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawRecord {
    /// Where the record begins (`ReadRecPtr`); the next record's `xl_prev`.
    pub start_lsn: Lsn,
    /// `EndRecPtr`: the aligned end of the record, which is what Postgres writes to `pd_lsn`. At the end of a
    /// WAL page it is the page boundary, *before* the next page's header; after `XLOG_SWITCH` it is the start of
    /// the next segment.
    pub next_lsn: Lsn,
    /// `xl_tot_len` bytes from `xl_tot_len` on; the CRC is right.
    pub bytes: Bytes,
}

/// Why the stream cannot go on, and where. The stream stays at the error: poll again and it is returned again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid WAL at {lsn}: {kind}")]
pub struct StreamError {
    /// Start of the page or record that is wrong.
    pub lsn: Lsn,
    /// What is wrong with it.
    pub kind: StreamErrorKind,
}

/// What can be wrong with a stream of WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamErrorKind {
    /// The page header.
    #[error(transparent)]
    PageHeader(#[from] PageHeaderError),
    /// WAL of another Postgres timeline: a promoted copy wrote it.
    #[error("page of timeline {found}, only timeline {PG_TLI} exists here")]
    Timeline {
        /// `xlp_tli`.
        found: u32,
    },
    /// Two segments of different clusters.
    #[error("page of cluster {found}, earlier ones are of cluster {expected}")]
    SystemIdentifier {
        /// `xlp_sysid`.
        found: u64,
        /// What the stream began with.
        expected: u64,
    },
    /// A record should start here but the page continues one.
    #[error("page continues a record ({rem_len} bytes) where a new one was expected")]
    UnexpectedContrecord {
        /// `xlp_rem_len`.
        rem_len: u32,
    },
    /// A record should continue here and does not.
    #[error("page does not continue the record that began at {record}")]
    MissingContrecord {
        /// The record's start.
        record: Lsn,
    },
    /// The page continues some other record.
    #[error("page continues a record with {found} bytes, expected {expected}")]
    ContrecordLength {
        /// `xlp_rem_len`.
        found: u32,
        /// What the record that began earlier has left.
        expected: u32,
    },
    /// `xl_tot_len` is no length of a record.
    #[error("record length {found}")]
    RecordLength {
        /// `xl_tot_len`.
        found: u32,
    },
    /// `xl_prev` is not the start of the record before.
    #[error("record with previous-link {found}, expected {expected}")]
    PrevLink {
        /// `xl_prev`.
        found: Lsn,
        /// Start of the record before; for a stream's first record, anything before the record itself.
        expected: Lsn,
    },
    /// The checksum is wrong.
    #[error("record CRC {found:08X}, computed {computed:08X}")]
    Crc {
        /// `xl_crc`.
        found: u32,
        /// From the bytes.
        computed: u32,
    },
    /// A record was given up in the middle, but what follows does not say so.
    #[error("record at {record} was overwritten, but the next record does not name it")]
    UnexplainedOverwrite {
        /// Start of the record that was given up.
        record: Lsn,
    },
    /// The position would not fit 64 bits.
    #[error("position overflows")]
    Overflow,
}

#[derive(Debug)]
enum State {
    /// The next byte belongs to padding, a page header or a record's start.
    Between,
    /// In the middle of a record that spans pages.
    Within { start_lsn: Lsn, tot_len: u32, data: BytesMut },
    /// In the tail of a segment that `XLOG_SWITCH` left.
    Skipping { until: Lsn },
}

/// Assembles records from WAL that arrives in pieces of any size.
#[derive(Debug)]
pub struct WalStream {
    /// Position of the first byte of `input`.
    lsn: Lsn,
    input: Bytes,
    state: State,
    /// Start of the last record that was returned.
    prev_lsn: Option<Lsn>,
    check_prev: bool,
    system_identifier: Option<u64>,
    /// A record that was given up in the middle and has not been explained by `XLOG_OVERWRITE_CONTRECORD` yet.
    overwritten: Option<Lsn>,
    failed: Option<StreamError>,
}

impl WalStream {
    /// Starts where a record starts, or at the start of a page whose first byte behind the header starts one.
    pub fn new(start_lsn: Lsn) -> WalStream {
        WalStream {
            lsn: start_lsn,
            input: Bytes::new(),
            state: State::Between,
            prev_lsn: None,
            check_prev: true,
            system_identifier: None,
            overwritten: None,
            failed: None,
        }
    }

    /// Gives the start of the record before the first one, so that the first `xl_prev` is checked, too.
    pub fn with_prev_lsn(mut self, prev_lsn: Lsn) -> WalStream {
        self.prev_lsn = Some(prev_lsn);
        self
    }

    /// Does not compare `xl_prev` with the record before.
    pub fn without_prev_check(mut self) -> WalStream {
        self.check_prev = false;
        self
    }

    /// Position of the next byte that [`WalStream::feed`] expects.
    pub fn feed_lsn(&self) -> Lsn {
        Lsn(self.lsn.0.saturating_add(self.input.len() as u64))
    }

    /// Appends WAL that follows what was fed before. Cheap when everything before was polled: the bytes are kept,
    /// not copied.
    pub fn feed(&mut self, data: Bytes) {
        if self.input.is_empty() {
            self.input = data;
        } else if !data.is_empty() {
            let mut joined = BytesMut::with_capacity(self.input.len() + data.len());
            joined.extend_from_slice(&self.input);
            joined.extend_from_slice(&data);
            self.input = joined.freeze();
        }
    }

    /// The next record, or `None` until more is fed.
    pub fn poll(&mut self) -> Result<Option<RawRecord>, StreamError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.advance();
        if let Err(error) = result {
            self.failed = Some(error);
        }
        result
    }

    fn fail<T>(lsn: Lsn, kind: impl Into<StreamErrorKind>) -> Result<T, StreamError> {
        Err(StreamError { lsn, kind: kind.into() })
    }

    /// Takes `len` bytes, which the caller knows to be there.
    fn take(&mut self, len: usize) -> Result<Bytes, StreamError> {
        let len = len.min(self.input.len());
        let Some(lsn) = self.lsn.checked_add(len as u64) else {
            return WalStream::fail(self.lsn, StreamErrorKind::Overflow);
        };
        self.lsn = lsn;
        Ok(self.input.split_to(len))
    }

    fn left_on_page(&self) -> usize {
        usize::try_from(XLOG_BLCKSZ - page_offset(self.lsn)).unwrap_or(0)
    }

    fn advance(&mut self) -> Result<Option<RawRecord>, StreamError> {
        loop {
            if let State::Skipping { until } = self.state {
                let wanted = usize::try_from(until.saturating_sub(self.lsn)).unwrap_or(usize::MAX);
                self.take(wanted)?;
                if self.lsn < until {
                    return Ok(None);
                }
                self.state = State::Between;
            }
            if page_offset(self.lsn) == 0 && !self.cross_page_header()? {
                return Ok(None);
            }
            match &self.state {
                State::Between => {
                    let padding = usize::try_from(self.lsn.align().saturating_sub(self.lsn));
                    let padding = padding.unwrap_or(0);
                    if self.input.len() < padding {
                        return Ok(None);
                    }
                    self.take(padding)?;
                    if page_offset(self.lsn) == 0 {
                        continue;
                    }
                    match self.begin_record()? {
                        Begun::Complete(record) => return Ok(Some(record)),
                        Begun::Partial => {}
                        Begun::NeedMore => return Ok(None),
                    }
                }
                State::Within { .. } => {
                    if let Some(record) = self.continue_record()? {
                        return Ok(Some(record));
                    }
                }
                State::Skipping { .. } => {}
            }
            if self.input.is_empty() {
                return Ok(None);
            }
        }
    }

    /// Consumes the page header at the current position; false when it is not all there yet.
    fn cross_page_header(&mut self) -> Result<bool, StreamError> {
        let page_start = self.lsn;
        let size = page_header::size_at(page_start);
        let Some(bytes) = self.input.get(..size) else { return Ok(false) };
        let header = match page_header::parse(bytes, page_start) {
            Ok(header) => header,
            Err(error) => return WalStream::fail(page_start, error),
        };
        self.check_identity(page_start, &header)?;
        self.check_continuation(page_start, &header)?;
        self.take(size)?;
        Ok(true)
    }

    fn check_identity(&mut self, page: Lsn, header: &PageHeader) -> Result<(), StreamError> {
        if header.tli != PG_TLI {
            return WalStream::fail(page, StreamErrorKind::Timeline { found: header.tli });
        }
        if let Some(found) = header.system_identifier {
            let expected = *self.system_identifier.get_or_insert(found);
            if found != expected {
                let kind = StreamErrorKind::SystemIdentifier { found, expected };
                return WalStream::fail(page, kind);
            }
        }
        Ok(())
    }

    fn check_continuation(&mut self, page: Lsn, header: &PageHeader) -> Result<(), StreamError> {
        let State::Within { start_lsn, tot_len, data } = &self.state else {
            if header.is_contrecord() {
                let kind = StreamErrorKind::UnexpectedContrecord { rem_len: header.rem_len };
                return WalStream::fail(page, kind);
            }
            return Ok(());
        };
        if header.is_overwrite_contrecord() {
            self.overwritten = Some(*start_lsn);
            self.state = State::Between;
            return Ok(());
        }
        if !header.is_contrecord() {
            return WalStream::fail(
                page,
                StreamErrorKind::MissingContrecord { record: *start_lsn },
            );
        }
        let have = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let expected = tot_len.saturating_sub(have);
        if header.rem_len != expected {
            let kind = StreamErrorKind::ContrecordLength { found: header.rem_len, expected };
            return WalStream::fail(page, kind);
        }
        Ok(())
    }

    fn begin_record(&mut self) -> Result<Begun, StreamError> {
        let start_lsn = self.lsn;
        // Records are 8-byte aligned and so are pages: the length never straddles a page boundary.
        let Some(length) = self.input.first_chunk::<4>() else { return Ok(Begun::NeedMore) };
        let tot_len = u32::from_le_bytes(*length);
        let len = usize::try_from(tot_len).unwrap_or(usize::MAX);
        if len < SIZE_OF_XLOG_RECORD || tot_len > XLOG_RECORD_MAX_SIZE {
            return WalStream::fail(start_lsn, StreamErrorKind::RecordLength { found: tot_len });
        }
        if len <= self.left_on_page() {
            if self.input.len() < len {
                return Ok(Begun::NeedMore);
            }
            let bytes = self.take(len)?;
            return self.finish_record(start_lsn, bytes).map(Begun::Complete);
        }
        self.state = State::Within { start_lsn, tot_len, data: BytesMut::new() };
        Ok(Begun::Partial)
    }

    /// Moves what is there on this page to the record under assembly.
    fn continue_record(&mut self) -> Result<Option<RawRecord>, StreamError> {
        let State::Within { start_lsn, tot_len, data } = &self.state else { return Ok(None) };
        let start_lsn = *start_lsn;
        let tot_len = usize::try_from(*tot_len).unwrap_or(usize::MAX);
        let wanted = tot_len.saturating_sub(data.len()).min(self.left_on_page());
        let part = self.take(wanted)?;
        let State::Within { data, .. } = &mut self.state else { return Ok(None) };
        data.extend_from_slice(&part);
        if data.len() < tot_len {
            return Ok(None);
        }
        let bytes = std::mem::take(data).freeze();
        self.state = State::Between;
        self.finish_record(start_lsn, bytes).map(Some)
    }

    fn finish_record(&mut self, start_lsn: Lsn, bytes: Bytes) -> Result<RawRecord, StreamError> {
        let Some(header) = bytes.first_chunk::<SIZE_OF_XLOG_RECORD>() else {
            let found = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            return WalStream::fail(start_lsn, StreamErrorKind::RecordLength { found });
        };
        check_crc(start_lsn, header, &bytes)?;
        let (prev, info, rmid) = prev_info_rmid(header);
        let expected = self.prev_lsn.filter(|_| self.check_prev);
        if expected.is_some_and(|expected| expected != prev) || prev >= start_lsn {
            let kind =
                StreamErrorKind::PrevLink { found: prev, expected: expected.unwrap_or(start_lsn) };
            return WalStream::fail(start_lsn, kind);
        }
        if let Some(record) = self.overwritten.take() {
            let names = rmid == RM_XLOG_ID
                && info & !XLR_INFO_MASK == xlog::XLOG_OVERWRITE_CONTRECORD
                && xlog::overwritten_lsn(&bytes) == Some(record);
            if !names {
                return WalStream::fail(
                    start_lsn,
                    StreamErrorKind::UnexplainedOverwrite { record },
                );
            }
        }
        self.prev_lsn = Some(start_lsn);
        let mut next_lsn = self.lsn.align();
        if rmid == RM_XLOG_ID && info & !XLR_INFO_MASK == xlog::XLOG_SWITCH {
            next_lsn = round_up_to_segment(next_lsn)
                .ok_or(StreamError { lsn: start_lsn, kind: StreamErrorKind::Overflow })?;
            self.state = State::Skipping { until: next_lsn };
        }
        Ok(RawRecord { start_lsn, next_lsn, bytes })
    }
}

enum Begun {
    Complete(RawRecord),
    Partial,
    NeedMore,
}

fn round_up_to_segment(lsn: Lsn) -> Option<Lsn> {
    match segment_offset(lsn) {
        0 => Some(lsn),
        offset => lsn.checked_add(WAL_SEGMENT_SIZE - offset),
    }
}

/// `ValidXLogRecord`: CRC-32C of everything behind the header, then of the header up to `xl_crc`.
fn check_crc(
    lsn: Lsn,
    header: &[u8; SIZE_OF_XLOG_RECORD],
    bytes: &[u8],
) -> Result<(), StreamError> {
    let [covered @ .., c0, c1, c2, c3] = header;
    let found = u32::from_le_bytes([*c0, *c1, *c2, *c3]);
    let payload = bytes.get(SIZE_OF_XLOG_RECORD..).unwrap_or_default();
    let computed = crc32c::crc32c_append(crc32c::crc32c(payload), covered);
    if found == computed {
        Ok(())
    } else {
        WalStream::fail(lsn, StreamErrorKind::Crc { found, computed })
    }
}

fn prev_info_rmid(header: &[u8; SIZE_OF_XLOG_RECORD]) -> (Lsn, u8, u8) {
    let [_, _, _, _, _, _, _, _, p0, p1, p2, p3, p4, p5, p6, p7, info, rmid, ..] = *header;
    (Lsn(u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7])), info, rmid)
}
