//! Multixacts (`multixact_redo` in `multixact.c`).

use pg_types::slru::{
    MULTIXACT_MEMBERS_PER_PAGE, SLRU_PAGES_PER_SEGMENT, multixact_members_page,
    multixact_offsets_page, page_to_segment,
};
use pg_types::{Key, Lsn, MultiXactId, MultiXactOffset, SlruKind};
use wal_decoder::effects::{MultiXactMember, MultiXactTruncate};
use walredo_sidecar::{NeonWalRecord, next_multixact_offset};

use super::Ingest;
use super::error::IngestError;
use super::slru::{offsets_page_precedes, segments_before};
use super::storage::Storage;

impl<S: Storage> Ingest<S> {
    /// `RecordNewMultiXact`: where the members begin, where the next multixact's will, and the members.
    pub(super) fn create_multixact(
        &mut self,
        mid: MultiXactId,
        moff: MultiXactOffset,
        members: &[MultiXactMember],
        lsn: Lsn,
    ) -> Result<(), IngestError> {
        let nmembers = u32::try_from(members.len()).unwrap_or(u32::MAX);
        let (next_mid, next_moff) = next_multixact_offset(mid, moff, nmembers);
        self.put_offset(mid, moff, lsn)?;
        let next_page = multixact_offsets_page(next_mid);
        if next_page != multixact_offsets_page(mid)
            && self.ensure_slru_page(SlruKind::MultiXactOffsets, next_page, lsn)?
        {
            self.pre_initialized_offsets_page = Some(next_page);
        }
        self.put_offset(next_mid, next_moff, lsn)?;
        self.put_members(moff, members, lsn)?;

        self.counters.see_multixact(mid.wrapping_add(1), moff.wrapping_add(nmembers), lsn);
        for member in members {
            self.counters.see_xid(member.xid, lsn);
        }
        Ok(())
    }

    fn put_offset(
        &mut self,
        mid: MultiXactId,
        moff: MultiXactOffset,
        lsn: Lsn,
    ) -> Result<(), IngestError> {
        let pageno = multixact_offsets_page(mid);
        self.ensure_slru_page(SlruKind::MultiXactOffsets, pageno, lsn)?;
        let (segno, blkno) = page_to_segment(pageno);
        let change = NeonWalRecord::MultixactOffsetCreate { mid, moff };
        self.put_change(Key::slru_block(SlruKind::MultiXactOffsets, segno, blkno), lsn, &change);
        Ok(())
    }

    /// One change for each page of `pg_multixact/members`; offsets wrap around.
    fn put_members(
        &mut self,
        moff: MultiXactOffset,
        members: &[MultiXactMember],
        lsn: Lsn,
    ) -> Result<(), IngestError> {
        let mut moff = moff;
        let mut rest = members;
        while !rest.is_empty() {
            let pageno = multixact_members_page(moff);
            let room = MULTIXACT_MEMBERS_PER_PAGE - moff % MULTIXACT_MEMBERS_PER_PAGE;
            // The last page ends where offsets wrap around, before it is full.
            let room = room.min((u32::MAX - moff).saturating_add(1));
            let count = rest.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            let (part, tail) = rest.split_at(count);
            self.ensure_slru_page(SlruKind::MultiXactMembers, pageno, lsn)?;
            let (segno, blkno) = page_to_segment(pageno);
            let members = part
                .iter()
                .map(|m| walredo_sidecar::MultiXactMember { xid: m.xid, status: m.status })
                .collect();
            let change = NeonWalRecord::MultixactMembersCreate { moff, members };
            self.put_change(
                Key::slru_block(SlruKind::MultiXactMembers, segno, blkno),
                lsn,
                &change,
            );
            moff = moff.wrapping_add(u32::try_from(count).unwrap_or(u32::MAX));
            rest = tail;
        }
        Ok(())
    }

    /// `PerformMembersTruncation`, `PerformOffsetsTruncation`.
    pub(super) fn truncate_multixacts(
        &mut self,
        truncate: &MultiXactTruncate,
        lsn: Lsn,
    ) -> Result<(), IngestError> {
        self.counters.see_oldest_multi(truncate.end_trunc_off, truncate.oldest_multi_db, lsn);
        let segment = |moff| multixact_members_page(moff) / SLRU_PAGES_PER_SEGMENT;
        let (start, end) = (segment(truncate.start_trunc_memb), segment(truncate.end_trunc_memb));
        self.remove_segments(SlruKind::MultiXactMembers, lsn, |segno| {
            in_circle(segno, start, end)
        })?;

        // One step back, so that the cutoff page exists even when the oldest multixact is the next one.
        let oldest = match truncate.end_trunc_off {
            0 | 1 => MultiXactId::MAX,
            multi => multi - 1,
        };
        let newest = multixact_offsets_page(self.counters.current().next_multi);
        let gone = segments_before(multixact_offsets_page(oldest), newest, offsets_page_precedes);
        self.remove_segments(SlruKind::MultiXactOffsets, lsn, gone)
    }
}

/// Whether walking from `start` up, and from the last segment on to 0, meets `segno` before `end`.
fn in_circle(segno: u32, start: u32, end: u32) -> bool {
    if start <= end { (start..end).contains(&segno) } else { segno >= start || segno < end }
}

#[cfg(test)]
mod tests {
    use super::in_circle;

    #[test]
    fn a_range_of_segments_may_wrap() {
        let hits = |start, end| (0..5).filter(|s| in_circle(*s, start, end)).collect::<Vec<_>>();
        assert_eq!(hits(1, 3), [1, 2]);
        assert_eq!(hits(3, 1), [0, 3, 4]);
        assert!(hits(2, 2).is_empty());
    }
}
