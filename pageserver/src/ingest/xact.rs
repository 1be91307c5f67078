//! Ends of transactions: status in `pg_xact`, dropped relations, state files of prepared ones.

use pg_types::slru::{clog_page, page_to_segment};
use pg_types::{Key, Lsn, SlruKind, TransactionId};
use wal_decoder::DecodedRecord;
use wal_decoder::effects::{Outcome, TransactionEnd};
use walredo_sidecar::NeonWalRecord;

use super::Ingest;
use super::error::IngestError;
use super::storage::Storage;

impl<S: Storage> Ingest<S> {
    /// `xact_redo_commit`, `xact_redo_abort`.
    pub(super) fn end_transaction(
        &mut self,
        end: &TransactionEnd,
        record: &DecodedRecord,
    ) -> Result<(), IngestError> {
        let lsn = record.next_lsn;
        for xid in end.subxacts.iter().chain([&end.xid]) {
            self.counters.see_xid(*xid, lsn);
        }
        self.set_status(end, lsn)?;
        for rel in &end.dropped {
            self.drop_relation(*rel, lsn)?;
        }
        if end.prepared {
            let full_xid = self.full_xid(end.xid, record)?;
            self.prepared.remove(&full_xid);
            self.batch.remove(Key::two_phase(full_xid), lsn);
        }
        if let Some(origin) = end.origin.filter(|origin| origin.id != 0) {
            self.put_origin(origin.id, origin.remote_lsn, lsn);
        }
        Ok(())
    }

    /// One change for each page of `pg_xact` (`TransactionIdSetTreeStatus`): the transaction's page first, then
    /// those of its subtransactions.
    fn set_status(&mut self, end: &TransactionEnd, lsn: Lsn) -> Result<(), IngestError> {
        let mut pages: Vec<(u32, Vec<TransactionId>)> = Vec::new();
        for xid in std::iter::once(end.xid).chain(end.subxacts.iter().copied()) {
            let page = clog_page(xid);
            match pages.iter_mut().rev().find(|(pageno, _)| *pageno == page) {
                Some((_, xids)) => xids.push(xid),
                None => pages.push((page, vec![xid])),
            }
        }
        for (pageno, xids) in pages {
            self.ensure_slru_page(SlruKind::Clog, pageno, lsn)?;
            let (segno, blkno) = page_to_segment(pageno);
            let change = match end.outcome {
                Outcome::Committed(timestamp) => {
                    NeonWalRecord::ClogSetCommitted { xids, timestamp }
                }
                Outcome::Aborted => NeonWalRecord::ClogSetAborted { xids },
            };
            self.put_change(Key::slru_block(SlruKind::Clog, segno, blkno), lsn, &change);
        }
        Ok(())
    }

    /// `PrepareRedoAdd`: the state file, without the CRC that Postgres puts behind it.
    pub(super) fn prepare_transaction(
        &mut self,
        xid: TransactionId,
        state: &[u8],
        record: &DecodedRecord,
    ) -> Result<(), IngestError> {
        self.counters.see_xid(xid, record.next_lsn);
        let full_xid = self.full_xid(xid, record)?;
        self.prepared.insert(full_xid);
        self.batch.image(Key::two_phase(full_xid), record.next_lsn, state);
        Ok(())
    }

    fn full_xid(&self, xid: TransactionId, record: &DecodedRecord) -> Result<u64, IngestError> {
        let full_xid = self.counters.current().full_xid(xid);
        full_xid.ok_or(IngestError::Xid { lsn: record.start_lsn, xid })
    }

    /// `clog_redo` for `CLOG_TRUNCATE`.
    pub(super) fn truncate_clog(
        &mut self,
        pageno: u32,
        oldest_xid: TransactionId,
        oldest_xid_db: u32,
        lsn: Lsn,
    ) -> Result<(), IngestError> {
        self.counters.see_oldest_xid(oldest_xid, oldest_xid_db, lsn);
        let newest = clog_page(self.counters.next_xid());
        let gone = super::slru::segments_before(pageno, newest, super::slru::clog_page_precedes);
        self.remove_segments(SlruKind::Clog, lsn, gone)
    }
}
