//! Multixacts (`multixact.c`): offsets of four bytes each, and members in groups of four.

use pg_types::page::Page;
use pg_types::slru::{
    MULTIXACT_MEMBERGROUP_SIZE, MULTIXACT_MEMBERGROUPS_PER_PAGE, MULTIXACT_MEMBERS_PER_GROUP,
    MULTIXACT_OFFSETS_PER_PAGE, multixact_members_page, multixact_offsets_page,
};
use pg_types::{Key, Lsn, MultiXactId, MultiXactOffset, SlruKind};

use super::{check_slru_page, invalid};
use crate::{MultiXactMember, WalRedoError};

/// Flag bytes in front of the transaction ids of a group; one for each member.
const FLAG_BYTES: u32 = 4;

/// Writes `moff` at the entry of `mid` (L074).
pub(super) fn set_offset(
    key: Key,
    page: &mut Page,
    mid: MultiXactId,
    moff: MultiXactOffset,
    lsn: Lsn,
) -> Result<(), WalRedoError> {
    let pageno = multixact_offsets_page(mid);
    check_slru_page(key, SlruKind::MultiXactOffsets, pageno, "MultixactOffsetCreate", lsn)?;
    let entry = (mid % MULTIXACT_OFFSETS_PER_PAGE) as usize;
    if let Some(slot) = page.as_chunks_mut().0.get_mut(entry) {
        *slot = moff.to_le_bytes();
    }
    Ok(())
}

/// Writes members from `moff` on (L075).
pub(super) fn set_members(
    key: Key,
    page: &mut Page,
    moff: MultiXactOffset,
    members: &[MultiXactMember],
    lsn: Lsn,
) -> Result<(), WalRedoError> {
    const RECORD: &str = "MultixactMembersCreate";
    let offsets = || (0u32..).map(|i| moff.wrapping_add(i)).zip(members);
    check_slru_page(key, SlruKind::MultiXactMembers, multixact_members_page(moff), RECORD, lsn)?;
    for (offset, _) in offsets() {
        let pageno = multixact_members_page(offset);
        check_slru_page(key, SlruKind::MultiXactMembers, pageno, RECORD, lsn)?;
    }
    for (offset, member) in offsets() {
        set_member(page, offset, *member)
            .ok_or_else(|| invalid(key, lsn, "MultixactMembersCreate record outside its page"))?;
    }
    Ok(())
}

/// One member: its byte of the flags word, and its transaction id (`MXOffsetToFlagsOffset`,
/// `MXOffsetToMemberOffset`). The word is little-endian, so member `n` of a group has byte `n`.
fn set_member(page: &mut Page, offset: MultiXactOffset, member: MultiXactMember) -> Option<()> {
    let group = offset / MULTIXACT_MEMBERS_PER_GROUP % MULTIXACT_MEMBERGROUPS_PER_PAGE;
    let within = offset % MULTIXACT_MEMBERS_PER_GROUP;
    let start = (group * MULTIXACT_MEMBERGROUP_SIZE) as usize;
    let xid = start + (FLAG_BYTES + within * 4) as usize;
    *page.get_mut(start + within as usize)? = member.status;
    *page.get_mut(xid..)?.first_chunk_mut()? = member.xid.to_le_bytes();
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg_types::BLCKSZ;
    use pg_types::slru::{MULTIXACT_MEMBERS_PER_PAGE, page_to_segment};
    use proptest::prelude::*;

    const LSN: Lsn = Lsn(8);

    fn key(kind: SlruKind, pageno: u32) -> Key {
        let (segno, blkno) = page_to_segment(pageno);
        Key::slru_block(kind, segno, blkno)
    }

    #[test]
    fn an_offset_is_a_little_endian_word() {
        let mut page = [0; BLCKSZ];
        let mid = MULTIXACT_OFFSETS_PER_PAGE * 40 + 3;
        set_offset(key(SlruKind::MultiXactOffsets, 40), &mut page, mid, 0x0102_0304, LSN).unwrap();
        assert_eq!(page[12..16], [4, 3, 2, 1]);
        assert_eq!(page.iter().filter(|byte| **byte != 0).count(), 4);
    }

    #[test]
    fn members_golden_bytes() {
        let mut page = [0; BLCKSZ];
        page[2] = 0xFF;
        let members = [
            MultiXactMember { xid: 0x0A0B_0C0D, status: 5 },
            MultiXactMember { xid: 7, status: 1 },
            MultiXactMember { xid: 8, status: 2 },
        ];
        // Members 2 and 3 of the first group, member 0 of the second.
        set_members(key(SlruKind::MultiXactMembers, 0), &mut page, 2, &members, LSN).unwrap();
        assert_eq!(page[..4], [0, 0, 5, 1]);
        assert_eq!(page[12..20], [0x0D, 0x0C, 0x0B, 0x0A, 7, 0, 0, 0]);
        assert_eq!(page[20..28], [2, 0, 0, 0, 8, 0, 0, 0]);
    }

    #[test]
    fn members_of_two_pages_are_refused_before_anything_changes() {
        let mut page = [0; BLCKSZ];
        let members = [MultiXactMember { xid: 7, status: 1 }; 2];
        let last = MULTIXACT_MEMBERS_PER_PAGE - 1;
        let result =
            set_members(key(SlruKind::MultiXactMembers, 0), &mut page, last, &members, LSN);
        assert!(matches!(result, Err(WalRedoError::InvalidRecord)));
        assert_eq!(page, [0; BLCKSZ]);
    }

    proptest! {
        #[test]
        fn members_read_back_by_postgres_rules(offset: u32, xid: u32, status: u8, fill: u8) {
            let mut page = [fill; BLCKSZ];
            let member = MultiXactMember { xid, status };
            let pageno = offset / MULTIXACT_MEMBERS_PER_PAGE;
            set_members(key(SlruKind::MultiXactMembers, pageno), &mut page, offset, &[member], LSN).unwrap();
            // MXOffsetToFlagsOffset, MXOffsetToFlagsBitShift and MXOffsetToMemberOffset, literally.
            let group = offset / 4;
            let flagsoff = (group % 409 * 20) as usize;
            let flags = u32::from_le_bytes(page[flagsoff..flagsoff + 4].try_into().unwrap());
            prop_assert_eq!(flags >> (offset % 4 * 8) & 0xFF, u32::from(status));
            let memberoff = flagsoff + 4 + (offset % 4 * 4) as usize;
            prop_assert_eq!(&page[memberoff..memberoff + 4], &xid.to_le_bytes());
        }
    }
}
