//! Finding the end of the log after a start: the process may have died at any line, with bytes half written.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use pg_types::Lsn;
use pg_types::xlog::{
    WAL_SEGMENT_SIZE, XLOG_BLCKSZ, page_header_size, segment_number, segment_offset, segment_start,
};
use wal_decoder::{WalStream, page_header};

use super::segment;
use crate::durable::{Context, FileError};

/// Bytes decoded at a time.
const CHUNK: usize = 1024 * 1024;

/// Where a log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndOfWal {
    /// End of the last whole record; durable.
    pub flush_lsn: Lsn,
    /// Start of that record, when it was seen.
    pub last_record_lsn: Option<Lsn>,
}

/// What is known of a log from its control file.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// First position of the log on this safekeeper, a record boundary; 0 while unknown.
    pub local_start_lsn: Lsn,
    /// Segments wholly below may have been removed.
    pub removal_horizon: Lsn,
    /// Everything below is committed: it must be there.
    pub commit_lsn: Lsn,
}

/// Why a log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A segment between the removal horizon and the commit position is gone.
    #[error("WAL segment of {0} is missing, although committed WAL lies in it")]
    MissingSegment(Lsn),
    /// Committed WAL does not decode.
    #[error(
        "committed WAL is damaged: records end at {end_lsn}, committed up to {commit_lsn}: {reason}"
    )]
    DamagedCommitted {
        /// End of the last record that is right.
        end_lsn: Lsn,
        /// Persisted commit position.
        commit_lsn: Lsn,
        /// What is wrong behind it.
        reason: String,
    },
}

/// Finds the end of the log in `dir` by decoding from a known record boundary until something is no WAL, and
/// makes everything up to there durable: bytes that survived the process in the page cache count only then.
pub fn find_end_of_wal(dir: &Path, known: Known) -> Result<EndOfWal, RecoveryError> {
    segment::remove_leftovers(dir)?;
    let commit_lsn = known.commit_lsn;
    if segment::numbers(dir)?.is_empty() && commit_lsn <= known.local_start_lsn {
        return Ok(EndOfWal { flush_lsn: commit_lsn, last_record_lsn: None });
    }
    check_segments_present(dir, known)?;
    let scan = Scan { dir, commit_lsn };
    let end = scan.run(scan_start(dir, known)?)?;
    sync_from(dir, segment_number(commit_lsn))?;
    Ok(end)
}

/// `[SK6]` Every segment with committed bytes that is not yet allowed to be gone must be there.
fn check_segments_present(dir: &Path, known: Known) -> Result<(), RecoveryError> {
    let first_lsn = known.local_start_lsn.max(known.removal_horizon);
    if known.commit_lsn <= first_lsn {
        return Ok(());
    }
    let present = segment::numbers(dir)?;
    // The byte before the commit position lies in the last segment that must be there.
    for segno in segment_number(first_lsn)..=segment_number(Lsn(known.commit_lsn.0 - 1)) {
        if present.binary_search(&segno).is_err() {
            return Err(RecoveryError::MissingSegment(segment_start(segno)));
        }
    }
    Ok(())
}

/// A record boundary at or below the commit position, so that committed WAL near it is checked, too: the first one
/// of its segment, or of the segment before when its own has none. Failing both, the commit position itself; the
/// page headers before it have been checked then, so that no other segment's records are taken for these.
fn scan_start(dir: &Path, known: Known) -> Result<Lsn, RecoveryError> {
    let commit_segno = segment_number(known.commit_lsn);
    for segno in [Some(commit_segno), commit_segno.checked_sub(1)].into_iter().flatten() {
        if segment_start(segno) <= known.local_start_lsn {
            return Ok(known.local_start_lsn.min(known.commit_lsn));
        }
        let Some(file) = segment::open_any(dir, segno)? else { continue };
        let read = |bytes: &mut [u8], offset| file.read_exact_at(bytes, offset);
        match first_record(read, segment_start(segno), known.commit_lsn) {
            Ok(Some(first)) => return Ok(first),
            Ok(None) => {}
            Err(BadHeader { page, reason }) => {
                let (end_lsn, commit_lsn) = (page, known.commit_lsn);
                return Err(RecoveryError::DamagedCommitted { end_lsn, commit_lsn, reason });
            }
        }
    }
    Ok(known.commit_lsn)
}

/// A page of committed WAL without a right header.
struct BadHeader {
    page: Lsn,
    reason: String,
}

/// Start of the first record below `commit_lsn` that begins in a segment, from the lengths in its page headers. Every
/// page that begins below `commit_lsn` is committed and must have a header that is right. `read` fills a buffer from an
/// offset in the segment.
fn first_record(
    read: impl Fn(&mut [u8], u64) -> io::Result<()>,
    segment_begin: Lsn,
    commit_lsn: Lsn,
) -> Result<Option<Lsn>, BadHeader> {
    let mut page = segment_begin;
    while page < commit_lsn && segment_number(page) == segment_number(segment_begin) {
        let bad = |reason: String| BadHeader { page, reason };
        let size = page_header_size(page);
        let mut header = [0; 64];
        let header = header.get_mut(..usize::try_from(size).unwrap_or(0)).unwrap_or_default();
        read(header, segment_offset(page)).map_err(|error| bad(error.to_string()))?;
        let header = page_header::parse(header, page).map_err(|error| bad(error.to_string()))?;
        let rem_len = if header.is_contrecord() { u64::from(header.rem_len) } else { 0 };
        let end = page.checked_add(size + rem_len);
        let end = end.ok_or_else(|| bad("position overflows".to_owned()))?.align();
        if end < page + XLOG_BLCKSZ {
            return Ok(Some(end).filter(|&first| first < commit_lsn));
        }
        page += XLOG_BLCKSZ;
    }
    Ok(None)
}

/// What is wrong with the beginning of a segment that is all committed, in words; `None` when its page headers and the
/// records that lie wholly in it are right. WAL of the timeline begins at `local_start_lsn`, a record boundary.
pub fn damage(data: &Bytes, segment_begin: Lsn, local_start_lsn: Lsn) -> Option<String> {
    let end = segment_begin.checked_add(data.len() as u64)?;
    let read = |bytes: &mut [u8], offset| {
        let piece = usize::try_from(offset).ok().and_then(|offset| data.get(offset..));
        let piece = piece.and_then(|piece| piece.get(..bytes.len()));
        piece.map(|piece| bytes.copy_from_slice(piece)).ok_or(io::ErrorKind::UnexpectedEof.into())
    };
    let first = if segment_begin <= local_start_lsn {
        Some(local_start_lsn)
    } else {
        match first_record(read, segment_begin, end) {
            Ok(first) => first,
            Err(BadHeader { page, reason }) => return Some(format!("page at {page}: {reason}")),
        }
    };
    let first = first.filter(|&first| first < end)?;
    let mut stream = WalStream::new(first);
    stream.feed(data.slice(usize::try_from(first - segment_begin).ok()?..));
    loop {
        match stream.poll() {
            Ok(Some(_)) => {}
            Ok(None) => return None,
            Err(error) => return Some(error.to_string()),
        }
    }
}

fn sync_from(dir: &Path, first: u64) -> Result<(), FileError> {
    for segno in segment::numbers(dir)?.into_iter().filter(|&segno| segno >= first) {
        if let Some(file) = segment::open_any(dir, segno)? {
            file.sync_all().context("fsync", &segment::complete_path(dir, segno))?;
        }
    }
    crate::durable::fsync_dir(dir)
}

struct Scan<'a> {
    dir: &'a Path,
    commit_lsn: Lsn,
}

impl Scan<'_> {
    fn run(&self, start_lsn: Lsn) -> Result<EndOfWal, RecoveryError> {
        let mut stream = WalStream::new(start_lsn);
        let mut end = EndOfWal { flush_lsn: start_lsn, last_record_lsn: None };
        let reason = loop {
            match stream.poll() {
                Ok(Some(record)) => {
                    end = EndOfWal {
                        flush_lsn: record.next_lsn,
                        last_record_lsn: Some(record.start_lsn),
                    };
                }
                Ok(None) => match self.read(stream.feed_lsn())? {
                    Some(data) => stream.feed(data),
                    None => break "no more WAL on disk".to_owned(),
                },
                Err(error) => break error.to_string(),
            }
        };
        if end.flush_lsn < self.commit_lsn {
            let (end_lsn, commit_lsn) = (end.flush_lsn, self.commit_lsn);
            return Err(RecoveryError::DamagedCommitted { end_lsn, commit_lsn, reason });
        }
        Ok(end)
    }

    /// What is on disk at `lsn`; `None` when nothing is.
    fn read(&self, lsn: Lsn) -> Result<Option<Bytes>, FileError> {
        let segno = segment_number(lsn);
        let Some(file) = segment::open_any(self.dir, segno)? else { return Ok(None) };
        let offset = segment_offset(lsn);
        let left = usize::try_from(WAL_SEGMENT_SIZE - offset).unwrap_or(CHUNK);
        let mut data = BytesMut::zeroed(left.min(CHUNK));
        let count = read_up_to(&file, &mut data, offset)
            .context("read", &segment::complete_path(self.dir, segno))?;
        data.truncate(count);
        Ok(if count == 0 { None } else { Some(data.freeze()) })
    }
}

/// Reads until the buffer is full or the file ends.
fn read_up_to(file: &File, data: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
