//! `CheckPoint` of `catalog/pg_control.h`: the counters that a server starts from.

use pg_types::{Lsn, MultiXactId, MultiXactOffset, Oid, TransactionId};

use crate::reader::{Reader, ShortRead};

/// `sizeof(CheckPoint)` with the 64-bit ABI's padding.
pub const SIZE_OF_CHECKPOINT: usize = 88;

/// `FirstNormalTransactionId` of `access/transam.h`.
pub const FIRST_NORMAL_XID: TransactionId = 3;

/// The counters, fields and order of the C struct.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CheckPoint {
    /// Where redo starts.
    pub redo: Lsn,
    /// `ThisTimeLineID`.
    pub this_tli: u32,
    /// `PrevTimeLineID`.
    pub prev_tli: u32,
    /// `full_page_writes`.
    pub full_page_writes: bool,
    /// `wal_level` as a number.
    pub wal_level: i32,
    /// Next transaction id, with its epoch in the upper half.
    pub next_xid: u64,
    /// Next object id.
    pub next_oid: Oid,
    /// Next multixact.
    pub next_multi: MultiXactId,
    /// Where the next multixact's members begin.
    pub next_multi_offset: MultiXactOffset,
    /// Cluster-wide least `datfrozenxid`.
    pub oldest_xid: TransactionId,
    /// The database that has it.
    pub oldest_xid_db: Oid,
    /// Cluster-wide least `datminmxid`.
    pub oldest_multi: MultiXactId,
    /// The database that has it.
    pub oldest_multi_db: Oid,
    /// Seconds since the Unix epoch.
    pub time: i64,
    /// Oldest transaction with a commit timestamp.
    pub oldest_commit_ts_xid: TransactionId,
    /// Newest one.
    pub newest_commit_ts_xid: TransactionId,
    /// Oldest transaction that still runs; 0 in a shutdown checkpoint.
    pub oldest_active_xid: TransactionId,
}

impl CheckPoint {
    /// Reads the struct; bytes behind it are ignored.
    pub fn decode(bytes: &[u8]) -> Result<CheckPoint, ShortRead> {
        let mut reader = Reader::new(bytes);
        let r = &mut reader;
        let checkpoint = CheckPoint {
            redo: Lsn(r.u64()?),
            this_tli: r.u32()?,
            prev_tli: r.u32()?,
            full_page_writes: r.array::<4>()?[0] != 0,
            wal_level: r.i32()?,
            next_xid: r.u64()?,
            next_oid: r.u32()?,
            next_multi: r.u32()?,
            next_multi_offset: r.u32()?,
            oldest_xid: r.u32()?,
            oldest_xid_db: r.u32()?,
            oldest_multi: r.u32()?,
            oldest_multi_db: r.u32()?,
            time: {
                r.take(4)?;
                r.i64()?
            },
            oldest_commit_ts_xid: r.u32()?,
            newest_commit_ts_xid: r.u32()?,
            oldest_active_xid: r.u32()?,
        };
        Ok(checkpoint)
    }

    /// The struct as Postgres lays it out, padding zero.
    pub fn encode(&self) -> [u8; SIZE_OF_CHECKPOINT] {
        let mut bytes = Vec::with_capacity(SIZE_OF_CHECKPOINT);
        bytes.extend_from_slice(&self.redo.0.to_le_bytes());
        bytes.extend_from_slice(&self.this_tli.to_le_bytes());
        bytes.extend_from_slice(&self.prev_tli.to_le_bytes());
        bytes.extend_from_slice(&[u8::from(self.full_page_writes), 0, 0, 0]);
        bytes.extend_from_slice(&self.wal_level.to_le_bytes());
        bytes.extend_from_slice(&self.next_xid.to_le_bytes());
        for word in [
            self.next_oid,
            self.next_multi,
            self.next_multi_offset,
            self.oldest_xid,
            self.oldest_xid_db,
            self.oldest_multi,
            self.oldest_multi_db,
            0,
        ] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&self.time.to_le_bytes());
        for word in
            [self.oldest_commit_ts_xid, self.newest_commit_ts_xid, self.oldest_active_xid, 0]
        {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        let mut array = [0; SIZE_OF_CHECKPOINT];
        array.copy_from_slice(&bytes);
        array
    }

    /// `AdvanceNextFullTransactionIdPastXid` (`varsup.c`): makes `next_xid` exceed `xid`. True when it changed.
    pub fn advance_next_xid_past(&mut self, xid: TransactionId) -> bool {
        let [.., a, b, c, d] = self.next_xid.to_be_bytes();
        let next = u32::from_be_bytes([a, b, c, d]);
        if xid < FIRST_NORMAL_XID || xid_precedes(xid, next) {
            return false;
        }
        let mut epoch = self.next_xid >> 32;
        let mut xid = xid.wrapping_add(1);
        if xid < next {
            epoch = epoch.saturating_add(1);
        }
        xid = xid.max(FIRST_NORMAL_XID);
        self.next_xid = epoch << 32 | u64::from(xid);
        true
    }

    /// The 64-bit id of a transaction that is not newer than `next_xid` (`FullTransactionIdFromAllowableAt`).
    /// `None` when that would lie before epoch 0.
    pub fn full_xid(&self, xid: TransactionId) -> Option<u64> {
        let [.., a, b, c, d] = self.next_xid.to_be_bytes();
        let mut epoch = self.next_xid >> 32;
        if xid > u32::from_be_bytes([a, b, c, d]) {
            epoch = epoch.checked_sub(1)?;
        }
        Some(epoch << 32 | u64::from(xid))
    }
}

/// `TransactionIdPrecedes` (`transam.c`): modulo-2^32 comparison; special ids precede all normal ones.
pub fn xid_precedes(a: TransactionId, b: TransactionId) -> bool {
    if a < FIRST_NORMAL_XID || b < FIRST_NORMAL_XID {
        return a < b;
    }
    modulo_precedes(a, b)
}

/// `MultiXactIdPrecedes` and `MultiXactOffsetPrecedes` (`multixact.c`): modulo-2^32 comparison.
pub fn modulo_precedes(a: u32, b: u32) -> bool {
    // The sign bit of the difference.
    a.wrapping_sub(b) & 0x8000_0000 != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn next_xid_wraps_into_the_next_epoch() {
        let mut checkpoint = CheckPoint { next_xid: 0xFFFF_FFF0, ..CheckPoint::default() };
        assert!(checkpoint.advance_next_xid_past(0xFFFF_FFFF));
        assert_eq!(checkpoint.next_xid, 1 << 32 | 3);
        assert!(!checkpoint.advance_next_xid_past(0xFFFF_FFFE));
        assert!(!checkpoint.advance_next_xid_past(2));
        assert!(checkpoint.advance_next_xid_past(3));
        assert_eq!(checkpoint.next_xid, 1 << 32 | 4);
        assert_eq!(checkpoint.full_xid(0xFFFF_FFFF), Some(0xFFFF_FFFF));
        assert_eq!(checkpoint.full_xid(3), Some(1 << 32 | 3));
        let fresh = CheckPoint { next_xid: 10, ..CheckPoint::default() };
        assert_eq!(fresh.full_xid(11), None);
    }

    proptest! {
        #[test]
        fn bytes_round_trip(bytes in proptest::collection::vec(any::<u8>(), SIZE_OF_CHECKPOINT)) {
            let checkpoint = CheckPoint::decode(&bytes).unwrap();
            prop_assert_eq!(CheckPoint::decode(&checkpoint.encode()), Ok(checkpoint));
        }

        #[test]
        fn advancing_never_goes_back(next in 3u64.., xid: u32) {
            let mut checkpoint = CheckPoint { next_xid: next, ..CheckPoint::default() };
            checkpoint.advance_next_xid_past(xid);
            prop_assert!(checkpoint.next_xid >= next || next >> 32 == u64::from(u32::MAX));
        }
    }
}
