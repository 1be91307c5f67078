//! Which records the redo process is willing to apply, decided from their header alone.

use pg_types::RmgrId;
use pg_types::xlog::SIZE_OF_XLOG_RECORD;

/// Why a record is not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordRefusal {
    /// Shorter than the fixed part of a record.
    #[error("WAL record of {0} bytes is shorter than its header")]
    TooShort(usize),
    /// `xl_tot_len` does not say what was received.
    #[error("WAL record claims {claimed} bytes, {received} were received")]
    Length {
        /// `xl_tot_len`.
        claimed: u32,
        /// Bytes that came.
        received: usize,
    },
    /// A resource manager, or kind of record, that changes no relation page.
    #[error(
        "WAL record of resource manager {rmid}, info 0x{info:02X}, is not one that changes a relation page"
    )]
    NotAPageRecord {
        /// `xl_rmid`.
        rmid: RmgrId,
        /// `xl_info`.
        info: u8,
    },
}

const RM_XLOG_ID: RmgrId = 0;
const RM_HEAP2_ID: RmgrId = 9;
const RM_BRIN_ID: RmgrId = 17;
const RM_GENERIC_ID: RmgrId = 20;
const RM_MIN_CUSTOM_ID: RmgrId = 128;
const XLR_RMGR_INFO_MASK: u8 = 0xF0;
const XLOG_FPI_FOR_HINT: u8 = 0xA0;
const XLOG_FPI: u8 = 0xB0;

/// Checks what decoding relies on, and lets pass only resource managers whose redo works on relation pages
/// (`rmgrlist.h`: HEAP2 to BRIN, GENERIC, the two full-page-image records of XLOG, and custom ones). The jail
/// would stop the others at their first system call; refusing them says what was wrong.
pub fn check_record(record: &[u8]) -> Result<RmgrId, RecordRefusal> {
    let header: &[u8; SIZE_OF_XLOG_RECORD] =
        record.first_chunk().ok_or(RecordRefusal::TooShort(record.len()))?;
    let [a, b, c, d, ..] = *header;
    let claimed = u32::from_le_bytes([a, b, c, d]);
    if usize::try_from(claimed) != Ok(record.len()) {
        return Err(RecordRefusal::Length { claimed, received: record.len() });
    }
    let [_, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, info, rmid, ..] = *header;
    let applies = match rmid {
        RM_XLOG_ID => matches!(info & XLR_RMGR_INFO_MASK, XLOG_FPI | XLOG_FPI_FOR_HINT),
        RM_HEAP2_ID..=RM_BRIN_ID | RM_GENERIC_ID | RM_MIN_CUSTOM_ID.. => true,
        _ => false,
    };
    if applies { Ok(rmid) } else { Err(RecordRefusal::NotAPageRecord { rmid, info }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(rmid: u8, info: u8) -> [u8; 24] {
        let mut record = [0; 24];
        record[0] = 24;
        record[16] = info;
        record[17] = rmid;
        record
    }

    #[test]
    fn page_records_pass_and_others_do_not() {
        let passes = |rmid, info| check_record(&record(rmid, info)).is_ok();
        for rmid in (9..=17).chain([20, 128, 134, 255]) {
            assert!(passes(rmid, 0), "{rmid}");
        }
        for rmid in (1..=8).chain([18, 19, 21, 22, 127]) {
            assert!(!passes(rmid, 0), "{rmid}");
        }
        assert!(passes(0, 0xB0) && passes(0, 0xA1), "full page images");
        assert!(!passes(0, 0x10), "an online checkpoint");
    }

    #[test]
    fn lengths_are_checked() {
        assert_eq!(check_record(&[0; 23]), Err(RecordRefusal::TooShort(23)));
        let mut long = record(10, 0).to_vec();
        long.push(0);
        assert_eq!(check_record(&long), Err(RecordRefusal::Length { claimed: 24, received: 25 }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if check_record(&bytes).is_ok() {
                prop_assert!(bytes.len() >= 24);
            }
        }
    }
}
