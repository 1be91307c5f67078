//! WAL of one timeline on disk: segment files of 16 MiB under Postgres' names, the unfinished ones with the suffix
//! `.partial`, all zero-filled in advance so that a write changes no metadata and a commit costs one write
//! past the kernel's cache, or one `fdatasync`.
//!
//! ```text
//! 000000010000000000000001            complete, durable before it got this name
//! 000000010000000000000002.partial    the one being written; zeros behind the end
//! next-segment.tmp                    zero-filled by another thread while the current one fills
//! ```

mod pages;
mod reader;
mod recent;
mod recovery;
mod segment;
#[cfg(test)]
#[path = "../tests/common/wal_builder.rs"]
pub(crate) mod wal_builder;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use pg_types::Lsn;
use pg_types::xlog::{WAL_SEGMENT_SIZE, segment_number, segment_offset, segment_start};
use wal_decoder::WalStream;
use wal_decoder::stream::StreamError;

pub use reader::{ReadError, WalReader};
pub use recent::RecentWal;
pub use recovery::{EndOfWal, Known, RecoveryError, damage, find_end_of_wal};

use crate::durable::FileError;
use segment::{Segment, SparePreparation};

/// The spare segment is prepared once the current one is this full: an idle timeline then costs one segment of
/// disk, and a busy one still never waits for zeros.
const PREPARE_SPARE_AT: u64 = WAL_SEGMENT_SIZE / 4;

/// What a flush made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flushed {
    /// End of the last whole record at or below `synced_lsn`.
    pub flush_lsn: Lsn,
    /// All bytes below are durable.
    pub synced_lsn: Lsn,
}

/// The writing end of a timeline's WAL.
///
/// After an error nothing is known about what is on disk: throw it away and recover.
#[derive(Debug)]
pub struct WalStorage {
    dir: PathBuf,
    /// End of the bytes written.
    write_lsn: Lsn,
    /// End of the bytes known to be durable.
    synced_lsn: Lsn,
    /// End of the last whole record at or below `write_lsn`.
    record_lsn: Lsn,
    /// A record that was seen whole, but ends (with its padding, or the tail of its segment) beyond `write_lsn`.
    pending_record_end: Option<Lsn>,
    decoder: WalStream,
    /// The decoder met bytes that are no WAL; nothing behind them counts.
    invalid: Option<StreamError>,
    segment: Option<Segment>,
    spare: SparePreparation,
    recent: Arc<RecentWal>,
}

impl WalStorage {
    /// Continues behind `end`, which [`find_end_of_wal`] found in `dir`.
    pub fn new(dir: &Path, end: EndOfWal) -> WalStorage {
        WalStorage {
            dir: dir.to_owned(),
            write_lsn: end.flush_lsn,
            synced_lsn: end.flush_lsn,
            record_lsn: end.flush_lsn,
            pending_record_end: None,
            decoder: decoder_at(end),
            invalid: None,
            segment: None,
            spare: SparePreparation::default(),
            recent: Arc::default(),
        }
    }

    /// The end of the log in memory, for its readers.
    pub fn recent(&self) -> Arc<RecentWal> {
        Arc::clone(&self.recent)
    }

    /// End of the bytes written.
    pub fn write_lsn(&self) -> Lsn {
        self.write_lsn
    }

    /// Why the bytes behind the last whole record are no WAL, if they are not.
    pub fn invalid_wal(&self) -> Option<StreamError> {
        self.invalid
    }

    /// Makes `end_lsn` the durable end of the log: whole segments behind it go, last ones first, so that a crash
    /// leaves no hole; the rest of its own segment becomes zeros, so that a scan stops there.
    pub fn truncate(&mut self, end_lsn: Lsn) -> Result<(), FileError> {
        // What is below the cut and only in memory so far becomes part of the durable log, too.
        self.flush()?;
        self.segment = None;
        self.recent.forget();
        let cut = segment_offset(end_lsn) != 0;
        let first_removed = segment_number(end_lsn) + u64::from(cut);
        segment::remove_from(&self.dir, first_removed)?;
        if cut {
            self.segment = Segment::reopen_cut(&self.dir, end_lsn)?;
        }
        let known = EndOfWal { flush_lsn: end_lsn, last_record_lsn: None };
        self.write_lsn = end_lsn;
        self.synced_lsn = end_lsn;
        self.record_lsn = end_lsn;
        self.pending_record_end = None;
        self.decoder = decoder_at(known);
        self.invalid = None;
        Ok(())
    }

    /// Appends `wal`, which must begin at the end of the log. It is not durable before [`Self::flush`], except
    /// for segments that it completes.
    pub fn write(&mut self, mut wal: Bytes) -> Result<(), FileError> {
        self.decode(&wal);
        while !wal.is_empty() {
            let offset = segment_offset(self.write_lsn);
            let room = usize::try_from(WAL_SEGMENT_SIZE - offset).unwrap_or(usize::MAX);
            let piece = wal.split_to(room.min(wal.len()));
            let segment = self.current_segment()?;
            segment.append(&piece)?;
            self.recent.push(self.write_lsn, &piece);
            self.write_lsn += piece.len() as u64;
            if segment_offset(self.write_lsn) == 0 {
                self.complete_segment()?;
            } else if offset + piece.len() as u64 >= PREPARE_SPARE_AT {
                self.spare.begin(&self.dir);
            }
        }
        self.settle_record_end();
        Ok(())
    }

    /// Makes everything written durable.
    pub fn flush(&mut self) -> Result<Flushed, FileError> {
        if self.synced_lsn < self.write_lsn {
            if let Some(segment) = &mut self.segment {
                segment.sync()?;
            }
            self.synced_lsn = self.write_lsn;
        }
        Ok(Flushed { flush_lsn: self.record_lsn, synced_lsn: self.synced_lsn })
    }

    fn current_segment(&mut self) -> Result<&mut Segment, FileError> {
        let segno = segment_number(self.write_lsn);
        let segment = match self.segment.take() {
            Some(segment) if segment.number() == segno => segment,
            _ => {
                let offset = segment_offset(self.write_lsn);
                match Segment::open_partial(&self.dir, segno, offset)? {
                    Some(segment) => segment,
                    None => Segment::create(&self.dir, segno, offset, &mut self.spare)?,
                }
            }
        };
        Ok(self.segment.insert(segment))
    }

    /// A segment is durable before it gets the name of a complete one.
    fn complete_segment(&mut self) -> Result<(), FileError> {
        if let Some(segment) = self.segment.take() {
            segment.complete()?;
            self.synced_lsn = self.write_lsn;
        }
        Ok(())
    }

    /// Follows the bytes to learn where records end. Bytes that are no WAL do not stop the writing, but no
    /// position behind them is ever reported as flushed.
    fn decode(&mut self, wal: &Bytes) {
        if self.invalid.is_some() {
            return;
        }
        self.decoder.feed(wal.clone());
        loop {
            match self.decoder.poll() {
                Ok(Some(record)) => {
                    // The record before this one ended before it, so it is whole now.
                    self.pending_record_end = Some(record.next_lsn);
                    if record.next_lsn <= self.write_lsn + wal.len() as u64 {
                        self.record_lsn = record.next_lsn;
                        self.pending_record_end = None;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    self.invalid = Some(error);
                    return;
                }
            }
        }
    }

    /// The end of the last record may arrive later than the record: padding, or the tail after XLOG_SWITCH.
    fn settle_record_end(&mut self) {
        if let Some(end) = self.pending_record_end.filter(|&end| end <= self.write_lsn) {
            self.record_lsn = end;
            self.pending_record_end = None;
        }
    }

    /// Removes complete segments that lie wholly below `horizon`; returns how many.
    pub fn remove_below(&mut self, horizon: Lsn) -> Result<u64, FileError> {
        segment::remove_below(&self.dir, segment_number(horizon))
    }
}

fn decoder_at(end: EndOfWal) -> WalStream {
    let decoder = WalStream::new(end.flush_lsn);
    match end.last_record_lsn {
        Some(prev_lsn) => decoder.with_prev_lsn(prev_lsn),
        None => decoder,
    }
}

/// Where a copied segment belongs in `dir`, by its name without suffix; `None` when the name is not a segment's.
pub fn segment_path_for_copy(dir: &Path, name: &str, unfinished: bool) -> Option<PathBuf> {
    let segno = segment::parse_name(name).filter(|_| !name.contains('.'))?;
    let path = if unfinished { segment::partial_path } else { segment::complete_path };
    Some(path(dir, segno))
}

/// Number of a whole segment from its file name; `None` for every other name.
pub fn segment_number_of_name(name: &str) -> Option<u64> {
    segment::parse_name(name).filter(|_| name.len() == 24)
}

/// First position of the oldest segment in `dir`; `None` when there is no WAL.
pub fn oldest_wal(dir: &Path) -> Result<Option<Lsn>, FileError> {
    Ok(segment::numbers(dir)?.first().copied().map(segment_start))
}

#[cfg(test)]
mod tests;
