//! What the page server stores as a change of a page (L159), and its bytes.
//!
//! Ingest makes these out of Postgres' WAL; redo turns a base image and a list of them into a page.
//!
//! ```text
//! byte 0: version (high nibble, 1) and kind (low nibble); then, little-endian:
//!   0 Postgres                 raw record as in WAL, xl_tot_len bytes
//!   1 Postgres, will_init      the same; the record needs no base image
//!   2 ClearVisibilityMapFlags  u8 flags, u8 which (1 = new, 2 = old), u32 for each one given, new first
//!   3 ClogSetCommitted         i64 timestamp, u32 xid ...
//!   4 ClogSetAborted           u32 xid ...
//!   5 MultixactOffsetCreate    u32 mid, u32 moff
//!   6 MultixactMembersCreate   u32 moff, (u32 xid, u8 status) ...
//!   7 TruncateVisibilityMap    u16 byte, u8 bits
//! ```
//!
//! There is no length or checksum: whoever stores the bytes frames and checks them.

use bytes::{BufMut, Bytes, BytesMut};
use pg_types::{BlockNumber, MultiXactId, MultiXactOffset, TimestampTz, TransactionId};

/// Version of the byte format above; it sits in the high nibble of the first byte.
pub const RECORD_FORMAT_VERSION: u8 = 1;

const POSTGRES: u8 = 0;
const POSTGRES_WILL_INIT: u8 = 1;
const CLEAR_VM: u8 = 2;
const CLOG_COMMITTED: u8 = 3;
const CLOG_ABORTED: u8 = 4;
const MX_OFFSET: u8 = 5;
const MX_MEMBERS: u8 = 6;
const TRUNCATE_VM: u8 = 7;

/// `MultiXactMember` of `access/multixact.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MultiXactMember {
    /// The locking or updating transaction.
    pub xid: TransactionId,
    /// `MultiXactStatus`, at most `MultiXactStatusUpdate` (5) when a real server wrote it.
    pub status: u8,
}

/// One change of one page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NeonWalRecord {
    /// A WAL record as Postgres wrote it; replayed by Postgres' own redo routine.
    Postgres {
        /// The record makes the whole page, so a chain may begin with it.
        will_init: bool,
        /// The record from `xl_tot_len` on, `xl_tot_len` bytes, without WAL page headers.
        rec: Bytes,
    },
    /// Clears bits of a visibility map page (`visibilitymap_clear`).
    ClearVisibilityMapFlags {
        /// Heap block of the new tuple version.
        new_heap_blkno: Option<BlockNumber>,
        /// Heap block of the old tuple version.
        old_heap_blkno: Option<BlockNumber>,
        /// Bits of `VISIBILITYMAP_VALID_BITS` to clear.
        flags: u8,
    },
    /// Marks transactions of one `pg_xact` page as committed.
    ClogSetCommitted {
        /// The transactions; all on one page.
        xids: Vec<TransactionId>,
        /// Commit time.
        timestamp: TimestampTz,
    },
    /// Marks transactions of one `pg_xact` page as aborted.
    ClogSetAborted {
        /// The transactions; all on one page.
        xids: Vec<TransactionId>,
    },
    /// Sets one entry of `pg_multixact/offsets`. Creation of a multixact makes two of these: one for the
    /// multixact, one for where the next one's members will begin (`RecordNewMultiXact` does both since 17.7);
    /// see [`next_multixact_offset`].
    MultixactOffsetCreate {
        /// The multixact.
        mid: MultiXactId,
        /// Where its members begin.
        moff: MultiXactOffset,
    },
    /// Sets consecutive entries of one page of `pg_multixact/members`.
    MultixactMembersCreate {
        /// Offset of the first member; all are on its page.
        moff: MultiXactOffset,
        /// The members.
        members: Vec<MultiXactMember>,
    },
    /// Clears the tail of the last page that a truncated visibility map keeps
    /// (`visibilitymap_prepare_truncate`).
    TruncateVisibilityMap {
        /// First byte of the map (page header not counted) that loses bits (`truncByte`).
        trunc_byte: u16,
        /// Bits of that byte that stay (`truncOffset`), 0 to 7.
        trunc_offs: u8,
    },
}

/// Where and why bytes are no [`NeonWalRecord`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordDecodeError {
    /// No byte at all.
    #[error("empty page record")]
    Empty,
    /// Written by a version this program does not know.
    #[error("page record has format version {0}, this program reads {RECORD_FORMAT_VERSION}")]
    Version(u8),
    /// No such kind.
    #[error("page record has unknown kind {0}")]
    Kind(u8),
    /// The bytes behind the first one do not fit the kind.
    #[error("page record of kind {kind} has a malformed body of {len} bytes")]
    Body {
        /// Kind from the first byte.
        kind: u8,
        /// Bytes behind the first one.
        len: usize,
    },
}

/// The entry that creation of a multixact also writes: its successor, whose members begin behind its own.
/// Both skip zero, which means "invalid" (`RecordNewMultiXact` in `multixact.c`).
pub fn next_multixact_offset(
    mid: MultiXactId,
    moff: MultiXactOffset,
    nmembers: u32,
) -> (MultiXactId, MultiXactOffset) {
    (mid.wrapping_add(1).max(1), moff.wrapping_add(nmembers).max(1))
}

impl NeonWalRecord {
    /// Whether this change makes the whole page, so that nothing older is needed to rebuild it.
    pub fn will_init(&self) -> bool {
        matches!(self, NeonWalRecord::Postgres { will_init: true, .. })
    }

    /// Whether Postgres' redo routines apply this (L048): true for [`NeonWalRecord::Postgres`] alone.
    pub fn is_postgres(&self) -> bool {
        matches!(self, NeonWalRecord::Postgres { .. })
    }

    /// The bytes to store.
    pub fn encode(&self) -> Bytes {
        let mut buf = BytesMut::new();
        self.encode_to(&mut buf);
        buf.freeze()
    }

    /// Appends the bytes to store.
    pub fn encode_to(&self, buf: &mut BytesMut) {
        let kind = |kind: u8| RECORD_FORMAT_VERSION << 4 | kind;
        match self {
            NeonWalRecord::Postgres { will_init, rec } => {
                buf.put_u8(kind(if *will_init { POSTGRES_WILL_INIT } else { POSTGRES }));
                buf.put_slice(rec);
            }
            NeonWalRecord::ClearVisibilityMapFlags { new_heap_blkno, old_heap_blkno, flags } => {
                buf.put_u8(kind(CLEAR_VM));
                buf.put_u8(*flags);
                buf.put_u8(
                    u8::from(new_heap_blkno.is_some()) | u8::from(old_heap_blkno.is_some()) << 1,
                );
                [new_heap_blkno, old_heap_blkno]
                    .into_iter()
                    .flatten()
                    .for_each(|blkno| buf.put_u32_le(*blkno));
            }
            NeonWalRecord::ClogSetCommitted { xids, timestamp } => {
                buf.put_u8(kind(CLOG_COMMITTED));
                buf.put_i64_le(*timestamp);
                xids.iter().for_each(|xid| buf.put_u32_le(*xid));
            }
            NeonWalRecord::ClogSetAborted { xids } => {
                buf.put_u8(kind(CLOG_ABORTED));
                xids.iter().for_each(|xid| buf.put_u32_le(*xid));
            }
            NeonWalRecord::MultixactOffsetCreate { mid, moff } => {
                buf.put_u8(kind(MX_OFFSET));
                buf.put_u32_le(*mid);
                buf.put_u32_le(*moff);
            }
            NeonWalRecord::MultixactMembersCreate { moff, members } => {
                buf.put_u8(kind(MX_MEMBERS));
                buf.put_u32_le(*moff);
                for member in members {
                    buf.put_u32_le(member.xid);
                    buf.put_u8(member.status);
                }
            }
            NeonWalRecord::TruncateVisibilityMap { trunc_byte, trunc_offs } => {
                buf.put_u8(kind(TRUNCATE_VM));
                buf.put_u16_le(*trunc_byte);
                buf.put_u8(*trunc_offs);
            }
        }
    }

    /// Reads what [`NeonWalRecord::encode`] wrote. A Postgres record shares the memory of `bytes`.
    pub fn decode(bytes: &Bytes) -> Result<NeonWalRecord, RecordDecodeError> {
        let (first, body) = bytes.split_first().ok_or(RecordDecodeError::Empty)?;
        let (version, kind) = (first >> 4, first & 0x0F);
        if version != RECORD_FORMAT_VERSION {
            return Err(RecordDecodeError::Version(version));
        }
        let malformed = RecordDecodeError::Body { kind, len: body.len() };
        match kind {
            POSTGRES | POSTGRES_WILL_INIT => Ok(NeonWalRecord::Postgres {
                will_init: kind == POSTGRES_WILL_INIT,
                rec: bytes.slice(1..),
            }),
            CLEAR_VM => decode_clear_vm(body).ok_or(malformed),
            CLOG_COMMITTED => decode_clog_committed(body).ok_or(malformed),
            CLOG_ABORTED => {
                xids(body).map(|xids| NeonWalRecord::ClogSetAborted { xids }).ok_or(malformed)
            }
            MX_OFFSET => decode_mx_offset(body).ok_or(malformed),
            MX_MEMBERS => decode_mx_members(body).ok_or(malformed),
            TRUNCATE_VM => decode_truncate_vm(body).ok_or(malformed),
            unknown => Err(RecordDecodeError::Kind(unknown)),
        }
    }
}

fn take_u32(body: &[u8]) -> Option<(u32, &[u8])> {
    let (value, rest) = body.split_first_chunk()?;
    Some((u32::from_le_bytes(*value), rest))
}

/// The whole of `body` as transaction ids.
fn xids(body: &[u8]) -> Option<Vec<TransactionId>> {
    let (chunks, rest) = body.as_chunks();
    rest.is_empty().then(|| chunks.iter().map(|chunk| u32::from_le_bytes(*chunk)).collect())
}

fn decode_clear_vm(body: &[u8]) -> Option<NeonWalRecord> {
    let ([flags, which], mut rest) = body.split_first_chunk()?;
    let mut block = |bit: u8| -> Option<Option<BlockNumber>> {
        if which & bit == 0 {
            return Some(None);
        }
        let (blkno, tail) = take_u32(rest)?;
        rest = tail;
        Some(Some(blkno))
    };
    let (new_heap_blkno, old_heap_blkno) = (block(1)?, block(2)?);
    (rest.is_empty() && *which <= 3).then_some(NeonWalRecord::ClearVisibilityMapFlags {
        new_heap_blkno,
        old_heap_blkno,
        flags: *flags,
    })
}

fn decode_clog_committed(body: &[u8]) -> Option<NeonWalRecord> {
    let (timestamp, rest) = body.split_first_chunk()?;
    let timestamp = i64::from_le_bytes(*timestamp);
    Some(NeonWalRecord::ClogSetCommitted { xids: xids(rest)?, timestamp })
}

fn decode_mx_offset(body: &[u8]) -> Option<NeonWalRecord> {
    let (mid, rest) = take_u32(body)?;
    let (moff, rest) = take_u32(rest)?;
    rest.is_empty().then_some(NeonWalRecord::MultixactOffsetCreate { mid, moff })
}

fn decode_mx_members(body: &[u8]) -> Option<NeonWalRecord> {
    let (moff, rest) = take_u32(body)?;
    let (chunks, rest) = rest.as_chunks();
    let members = chunks
        .iter()
        .map(|[a, b, c, d, status]| MultiXactMember {
            xid: u32::from_le_bytes([*a, *b, *c, *d]),
            status: *status,
        })
        .collect();
    rest.is_empty().then_some(NeonWalRecord::MultixactMembersCreate { moff, members })
}

fn decode_truncate_vm(body: &[u8]) -> Option<NeonWalRecord> {
    let ([a, b, trunc_offs], rest) = body.split_first_chunk()?;
    (rest.is_empty() && *trunc_offs < 8).then_some(NeonWalRecord::TruncateVisibilityMap {
        trunc_byte: u16::from_le_bytes([*a, *b]),
        trunc_offs: *trunc_offs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_record() -> impl Strategy<Value = NeonWalRecord> {
        let bytes = proptest::collection::vec(any::<u8>(), 0..200);
        let xids = proptest::collection::vec(any::<u32>(), 0..20);
        let member =
            (any::<u32>(), any::<u8>()).prop_map(|(xid, status)| MultiXactMember { xid, status });
        prop_oneof![
            (any::<bool>(), bytes).prop_map(|(will_init, rec)| NeonWalRecord::Postgres {
                will_init,
                rec: rec.into()
            }),
            (any::<Option<u32>>(), any::<Option<u32>>(), any::<u8>()).prop_map(
                |(new_heap_blkno, old_heap_blkno, flags)| NeonWalRecord::ClearVisibilityMapFlags {
                    new_heap_blkno,
                    old_heap_blkno,
                    flags
                }
            ),
            (xids.clone(), any::<i64>()).prop_map(|(xids, timestamp)| {
                NeonWalRecord::ClogSetCommitted { xids, timestamp }
            }),
            xids.prop_map(|xids| NeonWalRecord::ClogSetAborted { xids }),
            (any::<u32>(), any::<u32>())
                .prop_map(|(mid, moff)| NeonWalRecord::MultixactOffsetCreate { mid, moff }),
            (any::<u32>(), proptest::collection::vec(member, 0..20)).prop_map(|(moff, members)| {
                NeonWalRecord::MultixactMembersCreate { moff, members }
            }),
            (any::<u16>(), 0u8..8).prop_map(|(trunc_byte, trunc_offs)| {
                NeonWalRecord::TruncateVisibilityMap { trunc_byte, trunc_offs }
            }),
        ]
    }

    #[test]
    fn a_postgres_record_costs_one_byte_more() {
        let rec = NeonWalRecord::Postgres { will_init: true, rec: Bytes::from_static(b"wal") };
        assert_eq!(rec.encode(), Bytes::from_static(b"\x11wal"));
        assert!(rec.will_init());
    }

    #[test]
    fn foreign_versions_and_kinds_are_named() {
        let decode = |bytes: &'static [u8]| NeonWalRecord::decode(&Bytes::from_static(bytes));
        assert_eq!(decode(b""), Err(RecordDecodeError::Empty));
        assert_eq!(decode(b"\x21"), Err(RecordDecodeError::Version(2)));
        assert_eq!(decode(b"\x1F"), Err(RecordDecodeError::Kind(15)));
        assert_eq!(decode(b"\x14abc"), Err(RecordDecodeError::Body { kind: 4, len: 3 }));
    }

    #[test]
    fn successors_skip_zero() {
        assert_eq!(next_multixact_offset(7, 100, 3), (8, 103));
        assert_eq!(next_multixact_offset(u32::MAX, u32::MAX - 1, 2), (1, 1));
    }

    proptest! {
        #[test]
        fn round_trips(record in any_record()) {
            prop_assert_eq!(NeonWalRecord::decode(&record.encode()), Ok(record));
        }

        #[test]
        fn any_bytes_decode_or_fail(mut bytes in proptest::collection::vec(any::<u8>(), 0..64), tag in 0x10u8..0x18) {
            let _ = NeonWalRecord::decode(&Bytes::from(bytes.clone()));
            if let Some(first) = bytes.first_mut() { *first = tag; }
            if let Ok(record) = NeonWalRecord::decode(&Bytes::from(bytes.clone())) {
                prop_assert_eq!(record.encode().to_vec(), bytes, "one value has one encoding");
            }
        }
    }
}
