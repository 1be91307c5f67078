//! Transaction status (`clog.c`): two bits for each transaction, no page header.
//!
//! A page that a commit has been applied to is 8200 bytes long: the page, then the time of the last commit as
//! 8 big-endian bytes (L072). Whoever hands the page out cuts it at 8192.

use bytes::{BufMut, BytesMut};
use pg_types::slru::{CLOG_XACTS_PER_PAGE, clog_page};
use pg_types::{BLCKSZ, Key, Lsn, SlruKind, TimestampTz, TransactionId};
use tracing::{error, warn};

use super::check_slru_page;
use crate::WalRedoError;

/// `TRANSACTION_STATUS_COMMITTED`.
const COMMITTED: u8 = 1;
/// `TRANSACTION_STATUS_ABORTED`.
const ABORTED: u8 = 2;
/// `CLOG_XACTS_PER_BYTE`.
const XACTS_PER_BYTE: u32 = 4;
const BITS_PER_XACT: u32 = 2;
const XACT_BITMASK: u8 = 0b11;
/// A page with a commit time behind it.
const TIMED: usize = BLCKSZ + size_of::<TimestampTz>();

/// Sets the transactions to committed and notes the time (L071, L072).
pub(super) fn set_committed(
    key: Key,
    page: &mut BytesMut,
    xids: &[TransactionId],
    timestamp: TimestampTz,
    lsn: Lsn,
) -> Result<(), WalRedoError> {
    check(key, page, xids, "ClogSetCommitted", lsn)?;
    xids.iter().for_each(|xid| set_status(page, *xid, COMMITTED));
    if page.len() == BLCKSZ || page.len() == TIMED {
        page.truncate(BLCKSZ);
        page.put_i64(timestamp);
    } else {
        let (_, segno, blkno) = key.to_slru_block().map_err(|_| WalRedoError::InvalidRecord)?;
        warn!("CLOG blk {blkno} in seg {segno} has invalid size {}", page.len());
    }
    Ok(())
}

/// Sets the transactions to aborted (L073).
pub(super) fn set_aborted(
    key: Key,
    page: &mut BytesMut,
    xids: &[TransactionId],
    lsn: Lsn,
) -> Result<(), WalRedoError> {
    check(key, page, xids, "ClogSetAborted", lsn)?;
    xids.iter().for_each(|xid| set_status(page, *xid, ABORTED));
    Ok(())
}

/// The key is the page of every transaction (L076), and the page is all there.
fn check(
    key: Key,
    page: &[u8],
    xids: &[TransactionId],
    record: &str,
    lsn: Lsn,
) -> Result<(), WalRedoError> {
    for xid in xids {
        check_slru_page(key, SlruKind::Clog, clog_page(*xid), record, lsn)?;
    }
    if xids.is_empty() && !matches!(key.to_slru_block(), Ok((SlruKind::Clog, ..))) {
        error!(%key, %lsn, "{record} record with a key that is no CLOG page");
        return Err(WalRedoError::InvalidRecord);
    }
    if page.len() < BLCKSZ {
        error!(%key, %lsn, "CLOG page has {} bytes instead of {BLCKSZ}", page.len());
        return Err(WalRedoError::InvalidRequest);
    }
    Ok(())
}

/// `TransactionIdSetStatusBit`.
fn set_status(page: &mut [u8], xid: TransactionId, status: u8) {
    let index = xid % CLOG_XACTS_PER_PAGE;
    let shift = index % XACTS_PER_BYTE * BITS_PER_XACT;
    if let Some(byte) = page.get_mut((index / XACTS_PER_BYTE) as usize) {
        *byte = *byte & !(XACT_BITMASK << shift) | status << shift;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LSN: Lsn = Lsn(8);

    fn key(xid: u32) -> Key {
        let (segno, blkno) = pg_types::slru::page_to_segment(clog_page(xid));
        Key::slru_block(SlruKind::Clog, segno, blkno)
    }

    #[test]
    fn golden_bytes() {
        let mut page = BytesMut::zeroed(BLCKSZ);
        set_committed(key(0), &mut page, &[4, 7], 0x0102_0304_0506_0708, LSN).unwrap();
        set_aborted(key(0), &mut page, &[5], LSN).unwrap();
        assert_eq!(page[1], 0b0100_1001);
        assert_eq!(page.len(), 8200);
        assert_eq!(page[8192..], [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn the_last_commit_time_replaces_the_one_before() {
        let mut page = BytesMut::zeroed(BLCKSZ);
        set_committed(key(9), &mut page, &[9], 1, LSN).unwrap();
        set_committed(key(9), &mut page, &[10], -2, LSN).unwrap();
        assert_eq!(page.len(), 8200);
        assert_eq!(page[8192..], (-2i64).to_be_bytes());
        set_aborted(key(9), &mut page, &[11], LSN).unwrap();
        assert_eq!(page[8192..], (-2i64).to_be_bytes());
    }

    #[test]
    fn an_aborted_transaction_leaves_the_length_alone() {
        let mut page = BytesMut::zeroed(BLCKSZ);
        set_aborted(key(3), &mut page, &[3], LSN).unwrap();
        assert_eq!(page.len(), BLCKSZ);
    }

    #[test]
    fn a_page_of_odd_length_keeps_it() {
        let mut page = BytesMut::zeroed(BLCKSZ + 3);
        set_committed(key(0), &mut page, &[4], 1, LSN).unwrap();
        assert_eq!((page.len(), page[1]), (BLCKSZ + 3, 1));
        let mut short = BytesMut::zeroed(10);
        assert!(set_committed(key(0), &mut short, &[4], 1, LSN).is_err());
    }

    #[test]
    fn a_transaction_of_another_page_is_refused_before_anything_changes() {
        let mut page = BytesMut::zeroed(BLCKSZ);
        let result = set_committed(key(0), &mut page, &[4, CLOG_XACTS_PER_PAGE], 1, LSN);
        assert!(matches!(result, Err(WalRedoError::InvalidRecord)));
        assert_eq!(page, BytesMut::zeroed(BLCKSZ));
    }

    proptest! {
        #[test]
        fn sets_two_bits(xid: u32, committed: bool, fill: u8) {
            let mut page = BytesMut::from(&[fill; BLCKSZ][..]);
            if committed {
                set_committed(key(xid), &mut page, &[xid], 5, LSN).unwrap();
            } else {
                set_aborted(key(xid), &mut page, &[xid], LSN).unwrap();
            }
            let index = (xid % CLOG_XACTS_PER_PAGE / 4) as usize;
            let shift = xid % 4 * 2;
            prop_assert_eq!(page[index] >> shift & 3, if committed { 1 } else { 2 });
            page[index] = page[index] & !(3 << shift) | fill & (3 << shift);
            prop_assert!(page[..BLCKSZ].iter().all(|byte| *byte == fill));
        }
    }
}
