//! Records applied in Rust: changes of pages whose WAL does not name them as block references.
//!
//! Whatever comes from storage is checked: a record that does not fit its key is an error, where the system
//! this one follows panics (design.md invariant 8).

mod clog;
mod multixact;
mod visibility_map;

use bytes::BytesMut;
use pg_types::page::Page;
use pg_types::slru::page_to_segment;
use pg_types::{BLCKSZ, Key, Lsn, SlruKind};
use tracing::error;

use crate::{NeonWalRecord, WalRedoError};

/// Applies one record to `page`, which a commit makes 8 bytes longer (L072).
pub fn apply_record(
    key: Key,
    page: &mut BytesMut,
    record: &NeonWalRecord,
    lsn: Lsn,
) -> Result<(), WalRedoError> {
    match record {
        NeonWalRecord::Postgres { .. } => {
            error!(%key, %lsn, "tried to pass postgres wal record to neon WAL redo");
            Err(WalRedoError::InvalidRequest)
        }
        NeonWalRecord::ClearVisibilityMapFlags { new_heap_blkno, old_heap_blkno, flags } => {
            let blocks = [*new_heap_blkno, *old_heap_blkno];
            visibility_map::clear(key, whole_page(page, key, lsn)?, blocks, *flags, lsn)
        }
        NeonWalRecord::TruncateVisibilityMap { trunc_byte, trunc_offs } => {
            let page = whole_page(page, key, lsn)?;
            visibility_map::truncate(key, page, *trunc_byte, *trunc_offs, lsn)
        }
        NeonWalRecord::ClogSetCommitted { xids, timestamp } => {
            clog::set_committed(key, page, xids, *timestamp, lsn)
        }
        NeonWalRecord::ClogSetAborted { xids } => clog::set_aborted(key, page, xids, lsn),
        NeonWalRecord::MultixactOffsetCreate { mid, moff } => {
            multixact::set_offset(key, whole_page(page, key, lsn)?, *mid, *moff, lsn)
        }
        NeonWalRecord::MultixactMembersCreate { moff, members } => {
            multixact::set_members(key, whole_page(page, key, lsn)?, *moff, members, lsn)
        }
    }
}

fn invalid(key: Key, lsn: Lsn, what: &str) -> WalRedoError {
    error!(%key, %lsn, "{what}");
    WalRedoError::InvalidRecord
}

/// The image as a page of BLCKSZ bytes.
fn whole_page(page: &mut [u8], key: Key, lsn: Lsn) -> Result<&mut Page, WalRedoError> {
    let len = page.len();
    page.try_into().map_err(|_| {
        error!(%key, %lsn, "base image has {len} bytes instead of {BLCKSZ}");
        WalRedoError::InvalidRequest
    })
}

/// Checks that `key` is the page `pageno` of an SLRU (L076).
fn check_slru_page(
    key: Key,
    kind: SlruKind,
    pageno: u32,
    record: &str,
    lsn: Lsn,
) -> Result<(), WalRedoError> {
    let (segno, blkno) = page_to_segment(pageno);
    match key.to_slru_block() {
        Ok(found) if found == (kind, segno, blkno) => Ok(()),
        Ok((kind, segno, blkno)) => Err(invalid(
            key,
            lsn,
            &format!("{record} record with unexpected page: {kind} segment {segno} block {blkno}"),
        )),
        Err(wrong) => Err(invalid(key, lsn, &wrong.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn a_postgres_record_is_refused() {
        let record = NeonWalRecord::Postgres { will_init: false, rec: Bytes::new() };
        let mut page = BytesMut::zeroed(BLCKSZ);
        let result = apply_record(Key::MIN, &mut page, &record, Lsn(8));
        assert!(matches!(result, Err(WalRedoError::InvalidRequest)));
    }

    #[test]
    fn a_page_of_another_size_is_refused() {
        let record = NeonWalRecord::MultixactOffsetCreate { mid: 1, moff: 1 };
        let key = Key::slru_block(SlruKind::MultiXactOffsets, 0, 0);
        let mut page = BytesMut::zeroed(BLCKSZ + 8);
        let result = apply_record(key, &mut page, &record, Lsn(8));
        assert!(matches!(result, Err(WalRedoError::InvalidRequest)));
    }

    #[test]
    fn slru_records_refuse_other_keys() {
        let rel = pg_types::RelFileLocator { spc_oid: 1, db_oid: 2, rel_number: 3 };
        let keys = [
            Key::rel_block(rel.fork(pg_types::ForkNumber::Main), 0),
            Key::slru_block(SlruKind::Clog, 9, 9),
            Key::slru_block(SlruKind::MultiXactOffsets, 9, 9),
            Key::slru_block(SlruKind::MultiXactMembers, 9, 9),
        ];
        let records = [
            NeonWalRecord::ClogSetCommitted { xids: vec![7], timestamp: 1 },
            NeonWalRecord::ClogSetAborted { xids: vec![7] },
            NeonWalRecord::MultixactOffsetCreate { mid: 7, moff: 1 },
            NeonWalRecord::MultixactMembersCreate {
                moff: 7,
                members: vec![crate::MultiXactMember { xid: 1, status: 1 }],
            },
        ];
        for key in keys {
            for record in &records {
                let mut page = BytesMut::zeroed(BLCKSZ);
                let result = apply_record(key, &mut page, record, Lsn(8));
                assert!(matches!(result, Err(WalRedoError::InvalidRecord)), "{key} {record:?}");
                assert!(page.iter().all(|byte| *byte == 0), "a refused record changes nothing");
            }
        }
    }
}
