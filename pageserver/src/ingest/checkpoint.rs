//! The counters that a compute starts from, kept as `CheckPoint` structs in the store.
//!
//! Transactions advance `next_xid` all the time, and a branch can start at any LSN, so the stored struct must be
//! right at every LSN, without a version for each transaction. The struct is written when the first transaction
//! of a batch shows up, but with the value that the *batch* ends with: too high within the batch by what the batch
//! uses itself, exact at its end. It never reaches into the next page of `pg_xact`, which may not exist yet at that
//! LSN and which a starting server would read (`TrimCLOG`): there a new version begins.

use pg_types::slru::CLOG_XACTS_PER_PAGE;
use pg_types::{Key, Lsn, MultiXactId, MultiXactOffset, Oid, TransactionId};
use wal_decoder::CheckPoint;
use wal_decoder::checkpoint::{FIRST_NORMAL_XID, modulo_precedes, xid_precedes};

use super::batch::Batch;
use super::error::IngestError;
use super::storage::Storage;

/// The struct as of the newest record, and the versions that the open batch will write.
#[derive(Debug)]
pub(super) struct Counters {
    current: CheckPoint,
    pending: Vec<(Lsn, CheckPoint)>,
}

impl Counters {
    pub(super) fn load(storage: &impl Storage, lsn: Lsn) -> Result<Counters, IngestError> {
        let stored = storage.get_image(Key::CHECKPOINT, lsn)?;
        let stored = stored.ok_or(IngestError::NoCheckpoint { lsn })?;
        let current = CheckPoint::decode(&stored)
            .map_err(|_| IngestError::StoredValue { key: Key::CHECKPOINT, lsn })?;
        Ok(Counters { current, pending: Vec::new() })
    }

    pub(super) fn current(&self) -> &CheckPoint {
        &self.current
    }

    /// The next transaction id without its epoch.
    pub(super) fn next_xid(&self) -> TransactionId {
        let [.., a, b, c, d] = self.current.next_xid.to_be_bytes();
        u32::from_be_bytes([a, b, c, d])
    }

    /// Changes the struct from `lsn` on.
    pub(super) fn change(&mut self, lsn: Lsn, change: impl FnOnce(&mut CheckPoint)) {
        let before = self.current;
        change(&mut self.current);
        if self.current != before {
            self.note(lsn);
        }
    }

    fn note(&mut self, lsn: Lsn) {
        match self.pending.last_mut() {
            Some((last_lsn, checkpoint)) if *last_lsn == lsn => *checkpoint = self.current,
            _ => self.pending.push((lsn, self.current)),
        }
    }

    /// A transaction id that occurs in WAL.
    pub(super) fn see_xid(&mut self, xid: TransactionId, lsn: Lsn) {
        if self.current.advance_next_xid_past(xid)
            && self.pending.last().is_none_or(|(_, last)| self.current.next_xid > limit(last))
        {
            self.note(lsn);
        }
    }

    /// `xlog_redo` for checkpoint records.
    pub(super) fn see_checkpoint(
        &mut self,
        record: &CheckPoint,
        shutdown: bool,
        lsn: Lsn,
        oldest_prepared: Option<&u64>,
    ) {
        self.change(lsn, |current| {
            let previous = *current;
            *current = *record;
            // Whoever makes a basebackup recognises a clean shutdown at its LSN by this.
            current.redo = if shutdown { lsn } else { Lsn::INVALID };
            // A compute starts as if other transactions ran: after a shutdown only prepared ones can.
            if shutdown {
                let next = previous.next_xid.max(record.next_xid);
                let oldest = oldest_prepared.copied().unwrap_or(next).min(next);
                let [.., a, b, c, d] = oldest.to_be_bytes();
                current.oldest_active_xid = u32::from_be_bytes([a, b, c, d]);
                return;
            }
            // An online checkpoint's counters are of the time it began.
            current.next_xid = previous.next_xid.max(record.next_xid);
            current.next_oid = previous.next_oid;
            if modulo_precedes(record.next_multi, previous.next_multi) {
                current.next_multi = previous.next_multi;
            }
            if modulo_precedes(record.next_multi_offset, previous.next_multi_offset) {
                current.next_multi_offset = previous.next_multi_offset;
            }
            if xid_precedes(record.oldest_xid, previous.oldest_xid) {
                current.oldest_xid = previous.oldest_xid;
                current.oldest_xid_db = previous.oldest_xid_db;
            }
            if modulo_precedes(record.oldest_multi, previous.oldest_multi) {
                current.oldest_multi = previous.oldest_multi;
                current.oldest_multi_db = previous.oldest_multi_db;
            }
            if record.oldest_active_xid < FIRST_NORMAL_XID {
                current.oldest_active_xid = previous.oldest_active_xid;
            }
        });
    }

    pub(super) fn see_running_xacts(
        &mut self,
        next_xid: TransactionId,
        oldest_running_xid: TransactionId,
        lsn: Lsn,
    ) {
        if next_xid > FIRST_NORMAL_XID {
            self.see_xid(next_xid - 1, lsn);
        }
        self.change(lsn, |c| c.oldest_active_xid = oldest_running_xid);
    }

    /// `MultiXactAdvanceNextMXact`.
    pub(super) fn see_multixact(
        &mut self,
        next_multi: MultiXactId,
        next_multi_offset: MultiXactOffset,
        lsn: Lsn,
    ) {
        self.change(lsn, |c| {
            if modulo_precedes(c.next_multi, next_multi) {
                c.next_multi = next_multi;
            }
            if modulo_precedes(c.next_multi_offset, next_multi_offset) {
                c.next_multi_offset = next_multi_offset;
            }
        });
    }

    pub(super) fn see_oldest_xid(&mut self, oldest_xid: TransactionId, db: Oid, lsn: Lsn) {
        self.change(lsn, |c| {
            if xid_precedes(c.oldest_xid, oldest_xid) {
                c.oldest_xid = oldest_xid;
                c.oldest_xid_db = db;
            }
        });
    }

    pub(super) fn see_oldest_multi(&mut self, oldest_multi: MultiXactId, db: Oid, lsn: Lsn) {
        self.change(lsn, |c| {
            if modulo_precedes(c.oldest_multi, oldest_multi) {
                c.oldest_multi = oldest_multi;
                c.oldest_multi_db = db;
            }
        });
    }

    /// Adds the versions of the open batch to it.
    pub(super) fn write(&mut self, batch: &mut Batch) {
        let last = self.current.next_xid;
        for (lsn, mut checkpoint) in self.pending.drain(..) {
            checkpoint.next_xid = last.min(limit(&checkpoint)).max(checkpoint.next_xid);
            batch.image(Key::CHECKPOINT, lsn, &checkpoint.encode());
        }
    }
}

/// The greatest `next_xid` of a version that begins with this one: the end of its page of `pg_xact`.
fn limit(checkpoint: &CheckPoint) -> u64 {
    let per_page = u64::from(CLOG_XACTS_PER_PAGE);
    checkpoint.next_xid.div_ceil(per_page).saturating_mul(per_page)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(next_xid: u64) -> Counters {
        let current = CheckPoint { next_xid, ..CheckPoint::default() };
        Counters { current, pending: Vec::new() }
    }

    fn written(counters: &mut Counters) -> Vec<(u64, u64)> {
        let last = counters.current.next_xid;
        counters
            .pending
            .drain(..)
            .map(|(lsn, c)| (lsn.0, last.min(limit(&c)).max(c.next_xid)))
            .collect()
    }

    #[test]
    fn one_version_serves_a_batch() {
        let mut counters = counters(1000);
        for (lsn, xid) in [(8, 999), (16, 1000), (24, 1005), (32, 1003), (40, 1010)] {
            counters.see_xid(xid, Lsn(lsn));
        }
        assert_eq!(written(&mut counters), [(16, 1011)]);
        counters.see_xid(1011, Lsn(48));
        assert_eq!(written(&mut counters), [(48, 1012)]);
    }

    #[test]
    fn a_version_ends_with_its_page_of_pg_xact() {
        let mut counters = counters(32_766);
        for (lsn, xid) in [(8, 32_766), (16, 32_767), (24, 32_768), (32, 32_900)] {
            counters.see_xid(xid, Lsn(lsn));
        }
        assert_eq!(written(&mut counters), [(8, 32_768), (24, 32_901)]);
    }

    #[test]
    fn an_online_checkpoint_never_takes_back() {
        let mut counters = counters(5000);
        counters.current.next_oid = 20_000;
        counters.current.oldest_active_xid = 4000;
        let record = CheckPoint { next_xid: 4900, next_oid: 16_384, ..CheckPoint::default() };
        counters.see_checkpoint(&record, false, Lsn(80), None);
        assert_eq!((counters.current.next_xid, counters.current.next_oid), (5000, 20_000));
        assert_eq!((counters.current.redo, counters.current.oldest_active_xid), (Lsn(0), 4000));
    }

    #[test]
    fn a_shutdown_checkpoint_leaves_prepared_transactions() {
        let mut counters = counters(5000);
        let record = CheckPoint { next_xid: 5000, next_oid: 16_384, ..CheckPoint::default() };
        counters.see_checkpoint(&record, true, Lsn(80), Some(&4321));
        assert_eq!((counters.current.redo, counters.current.oldest_active_xid), (Lsn(80), 4321));
        counters.see_checkpoint(&record, true, Lsn(96), None);
        assert_eq!(counters.current.oldest_active_xid, 5000);
    }
}
