//! What the server is told of where it starts. Decisions only.

use layer_store::RecordPosition;
use pg_types::xlog::SIZE_OF_XLOG_RECORD;
use pg_types::{Lsn, PG_TLI};
use wal_decoder::CheckPoint;

use super::BackupKind;

/// `XLR_BLOCK_ID_DATA_SHORT`: main data of less than 256 bytes follows.
const XLR_BLOCK_ID_DATA_SHORT: u8 = 255;
/// `SIZE_OF_CHECKPOINT` as the record has it.
const CHECKPOINT_BYTES: u8 = 88;
const _: () = assert!(CHECKPOINT_BYTES as usize == wal_decoder::checkpoint::SIZE_OF_CHECKPOINT);

/// What is known of the record before the start LSN, which the first new record refers to (`xl_prev`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrevLsn {
    /// It starts here.
    Known(Lsn),
    /// There is none on this timeline: the LSN is its branch point.
    None,
    /// Not known, as the LSN lies in the past: the server must not write WAL.
    Invalid,
}

impl PrevLsn {
    /// For a start at `lsn` on a timeline that stands at `position` and was branched at `branch_lsn`.
    pub fn choose(position: RecordPosition, branch_lsn: Option<Lsn>, lsn: Lsn) -> PrevLsn {
        if lsn == position.last_record_lsn && position.prev_record_lsn.is_valid() {
            PrevLsn::Known(position.prev_record_lsn)
        } else if branch_lsn == Some(lsn) {
            PrevLsn::None
        } else {
            PrevLsn::Invalid
        }
    }

    /// Contents of `neon.signal`.
    pub(super) fn signal(self) -> String {
        match self {
            PrevLsn::Known(lsn) => format!("PREV LSN: {lsn}"),
            PrevLsn::None => "PREV LSN: none".to_owned(),
            PrevLsn::Invalid => "PREV LSN: invalid".to_owned(),
        }
    }
}

/// The checkpoint that the server starts from.
///
/// The stored one is right in all counters. A replica starts at once when nothing was running, which a shutdown
/// checkpoint says by `oldestActiveXid` 0; else it waits for a list of what was. A full backup is a shutdown at the
/// LSN: what ran is aborted.
pub(super) fn checkpoint(
    stored: &CheckPoint,
    start_lsn: Lsn,
    after_shutdown: bool,
    kind: BackupKind,
) -> CheckPoint {
    let nothing_runs = after_shutdown || kind == BackupKind::Full;
    CheckPoint {
        redo: start_lsn,
        this_tli: PG_TLI,
        prev_tli: PG_TLI,
        oldest_active_xid: if nothing_runs { 0 } else { stored.oldest_active_xid },
        ..*stored
    }
}

/// `XLOG_CHECKPOINT_SHUTDOWN` as a server would write it at the start LSN (`CreateCheckPoint`, `XLogRecordAssemble`).
pub(super) fn checkpoint_record(checkpoint: &CheckPoint, prev: PrevLsn) -> Vec<u8> {
    let prev = match prev {
        PrevLsn::Known(lsn) => lsn,
        PrevLsn::None | PrevLsn::Invalid => Lsn::INVALID,
    };
    let total = SIZE_OF_XLOG_RECORD + 2 + usize::from(CHECKPOINT_BYTES);
    let mut record = Vec::with_capacity(total);
    record.extend_from_slice(&u32::try_from(total).unwrap_or(0).to_le_bytes());
    record.extend_from_slice(&[0; 4]); // xl_xid
    record.extend_from_slice(&prev.0.to_le_bytes());
    record.extend_from_slice(&[0; 4]); // xl_info XLOG_CHECKPOINT_SHUTDOWN, xl_rmid RM_XLOG_ID, padding
    let header = record.clone();
    let mut data = vec![XLR_BLOCK_ID_DATA_SHORT, CHECKPOINT_BYTES];
    data.extend_from_slice(&checkpoint.encode());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&data), &header);
    record.extend_from_slice(&crc.to_le_bytes());
    record.extend_from_slice(&data);
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_previous_record_is_known_at_the_tip_only() {
        let position = RecordPosition { last_record_lsn: Lsn(800), prev_record_lsn: Lsn(700) };
        let choose = |position, branch, lsn| PrevLsn::choose(position, branch, Lsn(lsn)).signal();
        assert_eq!(choose(position, None, 800), "PREV LSN: 0/2BC");
        assert_eq!(choose(position, None, 700), "PREV LSN: invalid");
        assert_eq!(choose(position, Some(Lsn(600)), 600), "PREV LSN: none");
        let unknown = RecordPosition { prev_record_lsn: Lsn::INVALID, ..position };
        assert_eq!(choose(unknown, Some(Lsn(800)), 800), "PREV LSN: none");
        assert_eq!(choose(unknown, None, 800), "PREV LSN: invalid");
    }
}
