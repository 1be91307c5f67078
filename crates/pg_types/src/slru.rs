//! SLRUs that storage keeps: `pg_xact` and the two of `pg_multixact`.

use std::fmt;

use crate::{BLCKSZ, MultiXactId, MultiXactOffset, TransactionId};

/// Pages in one segment file (`SLRU_PAGES_PER_SEGMENT` in `access/slru.h`).
pub const SLRU_PAGES_PER_SEGMENT: u32 = 32;

/// The SLRUs whose pages are stored; numbers are those of the pagestream protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum SlruKind {
    /// Transaction status, `pg_xact`.
    Clog = 0,
    /// `pg_multixact/members`.
    MultiXactMembers = 1,
    /// `pg_multixact/offsets`.
    MultiXactOffsets = 2,
}

impl SlruKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [SlruKind; 3] =
        [SlruKind::Clog, SlruKind::MultiXactMembers, SlruKind::MultiXactOffsets];

    /// The kind of a number found on the wire or in a key.
    pub fn from_number(number: u32) -> Option<SlruKind> {
        usize::try_from(number).ok().and_then(|n| SlruKind::ALL.get(n)).copied()
    }

    /// The number used on the wire and in keys.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Directory below PGDATA.
    pub fn directory(self) -> &'static str {
        match self {
            SlruKind::Clog => "pg_xact",
            SlruKind::MultiXactMembers => "pg_multixact/members",
            SlruKind::MultiXactOffsets => "pg_multixact/offsets",
        }
    }
}

impl fmt::Display for SlruKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.directory())
    }
}

/// File name of a segment with short names (`SlruFileName` in `slru.c`): four hex digits, more when needed.
pub fn segment_file_name(segno: u32) -> String {
    format!("{segno:04X}")
}

/// `CLOG_XACTS_PER_PAGE` (`clog.c`): two bits for each transaction.
pub const CLOG_XACTS_PER_PAGE: u32 = 32_768;
const _: () = assert!(CLOG_XACTS_PER_PAGE as usize == BLCKSZ * 4);

/// Page number in `pg_xact` of a transaction (`TransactionIdToPage`).
pub fn clog_page(xid: TransactionId) -> u32 {
    xid / CLOG_XACTS_PER_PAGE
}

/// `MULTIXACT_OFFSETS_PER_PAGE` (`multixact.c`).
pub const MULTIXACT_OFFSETS_PER_PAGE: u32 = 2048;
const _: () = assert!(MULTIXACT_OFFSETS_PER_PAGE as usize == BLCKSZ / 4);

/// Page number in `pg_multixact/offsets` of a multixact (`MultiXactIdToOffsetPage`).
pub fn multixact_offsets_page(multi: MultiXactId) -> u32 {
    multi / MULTIXACT_OFFSETS_PER_PAGE
}

/// Members in one group: four flag bytes, then four transaction ids (`MULTIXACT_MEMBERS_PER_MEMBERGROUP`).
pub const MULTIXACT_MEMBERS_PER_GROUP: u32 = 4;
/// Bytes of one group (`MULTIXACT_MEMBERGROUP_SIZE`).
pub const MULTIXACT_MEMBERGROUP_SIZE: u32 = 20;
/// Groups in one page (`MULTIXACT_MEMBERGROUPS_PER_PAGE`); 12 bytes of a page stay unused.
pub const MULTIXACT_MEMBERGROUPS_PER_PAGE: u32 = 409;
const _: () = assert!(
    MULTIXACT_MEMBERGROUPS_PER_PAGE as usize == BLCKSZ / MULTIXACT_MEMBERGROUP_SIZE as usize
);
/// `MULTIXACT_MEMBERS_PER_PAGE` (`multixact.c`).
pub const MULTIXACT_MEMBERS_PER_PAGE: u32 =
    MULTIXACT_MEMBERGROUPS_PER_PAGE * MULTIXACT_MEMBERS_PER_GROUP;

/// Page number in `pg_multixact/members` of a member offset (`MXOffsetToMemberPage`).
pub fn multixact_members_page(offset: MultiXactOffset) -> u32 {
    offset / MULTIXACT_MEMBERS_PER_PAGE
}

/// Splits a page number into segment number and block within it.
pub fn page_to_segment(pageno: u32) -> (u32, u32) {
    (pageno / SLRU_PAGES_PER_SEGMENT, pageno % SLRU_PAGES_PER_SEGMENT)
}
