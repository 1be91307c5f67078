//! Where WAL ends: behind the shutdown checkpoint that `pg_control` names.

use std::path::Path;

use bytes::Bytes;
use pg_types::xlog::{normalize, segment_file_name, segment_number, segment_start};
use pg_types::{Lsn, PG_TLI};
use wal_decoder::rmgr::{RM_XLOG_ID, XLR_INFO_MASK, xlog};
use wal_decoder::{CheckPoint, DecodedRecord, RawRecord, WalStream};

use super::{ImportError, files};
use crate::control_file::ControlFile;

/// Where the record after the shutdown checkpoint will start. The record is read and compared, so that a
/// `pg_control` that does not belong to its WAL is noticed.
pub(super) fn end_of_wal(data_dir: &Path, control: &ControlFile) -> Result<Lsn, ImportError> {
    let lsn = control.checkpoint_lsn();
    let segno = segment_number(lsn);
    let path = data_dir.join("pg_wal").join(segment_file_name(PG_TLI, segno));
    let missing = |source| ImportError::NoCheckpoint { lsn, path: path.clone(), source };
    let mut stream = WalStream::new(lsn);
    stream.feed(segment_from(&path, segno, stream.feed_lsn())?);
    let mut record = stream.poll().map_err(|error| missing(Some(error)))?;
    // The record may go on in the next segment.
    let next = data_dir.join("pg_wal").join(segment_file_name(PG_TLI, segno + 1));
    if record.is_none() && next.exists() {
        stream.feed(segment_from(&next, segno + 1, segment_start(segno + 1))?);
        record = stream.poll().map_err(|error| missing(Some(error)))?;
    }
    let record = record.filter(|record| is_shutdown_checkpoint(record, control.checkpoint()));
    record.map(|record| normalize(record.next_lsn)).ok_or_else(|| missing(None))
}

/// A segment's bytes from a position in it on.
fn segment_from(path: &Path, segno: u64, from: Lsn) -> Result<Bytes, ImportError> {
    let bytes = Bytes::from(files::read(path)?);
    let offset = from.checked_sub(segment_start(segno)).and_then(|skip| usize::try_from(skip).ok());
    let offset = offset.filter(|offset| *offset <= bytes.len());
    offset
        .map(|offset| bytes.slice(offset..))
        .ok_or_else(|| ImportError::damaged(path, "too short"))
}

fn is_shutdown_checkpoint(record: &RawRecord, expected: &CheckPoint) -> bool {
    let Ok(decoded) = DecodedRecord::decode(record) else { return false };
    decoded.rmid == RM_XLOG_ID
        && decoded.info & !XLR_INFO_MASK == xlog::XLOG_CHECKPOINT_SHUTDOWN
        && CheckPoint::decode(decoded.main_data()) == Ok(*expected)
}
