//! Which tuples a heap record is about, read from its stock main data (`access/heapam_xlog.h`).

use pg_types::{ForkNumber, INVALID_BLOCK_NUMBER, RelFileLocator, RelTag, RmgrId};

use crate::{RM_HEAP_ID, RM_HEAP2_ID};

/// `XLOG_HEAP_OPMASK`.
const OPMASK: u8 = 0x70;
/// `XLOG_HEAP_INIT_PAGE`: the record makes the page anew.
const INIT_PAGE: u8 = 0x80;

/// Offset number of a tuple on its page, from 1.
type OffsetNumber = u16;

/// Heap records that change command ids. The numbers are those of `RM_HEAP_ID` and, for `MultiInsert`, of
/// `RM_HEAP2_ID`; resource manager 134 has all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum HeapOp {
    /// `XLOG_HEAP_INSERT`
    Insert = 0x00,
    /// `XLOG_HEAP_DELETE`
    Delete = 0x10,
    /// `XLOG_HEAP_UPDATE`
    Update = 0x20,
    /// `XLOG_HEAP_HOT_UPDATE`
    HotUpdate = 0x40,
    /// `XLOG_HEAP2_MULTI_INSERT`
    MultiInsert = 0x50,
    /// `XLOG_HEAP_LOCK`
    Lock = 0x60,
}

/// A record that cannot be what it claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Main data shorter than its kind needs.
    #[error("main data of {len} bytes are too short for {op:?}")]
    TooShort {
        /// Kind of the record.
        op: HeapOp,
        /// Bytes there are.
        len: usize,
    },
    /// Not a relation extension.
    #[error("malformed relation extension record")]
    RelationExtend,
}

/// Tuples of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tuples<'a> {
    /// One tuple.
    One(OffsetNumber),
    /// Those from the first one on.
    First(u16),
    /// An array of offset numbers as it stands in WAL.
    List(&'a [u8]),
}

/// The tuples whose command ids a record sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touched<'a> {
    /// New tuples, or the only one, on the page of block reference 0.
    pub new: Tuples<'a>,
    /// The old version of an update, on the page of block reference 1 or, without that, of 0.
    pub old: Option<OffsetNumber>,
}

impl HeapOp {
    /// The kind of a record that a stock resource manager would log; `None` if it changes no command id.
    pub fn of_stock(rmid: RmgrId, info: u8) -> Option<HeapOp> {
        match rmid {
            RM_HEAP_ID => HeapOp::of_neon(info).filter(|op| *op != HeapOp::MultiInsert),
            RM_HEAP2_ID => HeapOp::of_neon(info).filter(|op| *op == HeapOp::MultiInsert),
            _ => None,
        }
    }

    /// The kind of a record of resource manager 134; `None` if it is not a heap record.
    pub fn of_neon(info: u8) -> Option<HeapOp> {
        use HeapOp::{Delete, HotUpdate, Insert, Lock, MultiInsert, Update};
        [Insert, Delete, Update, HotUpdate, MultiInsert, Lock]
            .into_iter()
            .find(|op| *op as u8 == info & OPMASK)
    }

    /// The resource manager whose routines replay, decode and describe the record.
    pub fn stock_rmgr(self) -> RmgrId {
        if self == HeapOp::MultiInsert { RM_HEAP2_ID } else { RM_HEAP_ID }
    }

    /// The tuples that a record of this kind touches. `main_data` begins with the stock main data and may go on
    /// behind it.
    pub fn touched(self, info: u8, main_data: &[u8]) -> Result<Touched<'_>, RecordError> {
        let short = RecordError::TooShort { op: self, len: main_data.len() };
        let u16_at = |at: usize| {
            let bytes = main_data.get(at..)?.first_chunk()?;
            Some(u16::from_le_bytes(*bytes))
        };
        let one = |at| u16_at(at).map(|new| Touched { new: Tuples::One(new), old: None });
        match self {
            // xl_heap_insert: offnum u16, flags u8
            HeapOp::Insert => one(0),
            // xl_heap_delete and xl_heap_lock: xmax u32, offnum u16, infobits u8, flags u8
            HeapOp::Delete | HeapOp::Lock => one(4),
            // xl_heap_update: old_xmax u32, old_offnum u16, old_infobits u8, flags u8, new_xmax u32, new_offnum u16
            HeapOp::Update | HeapOp::HotUpdate => u16_at(12)
                .zip(u16_at(4))
                .map(|(new, old)| Touched { new: Tuples::One(new), old: Some(old) }),
            // xl_heap_multi_insert: flags u8, pad u8, ntuples u16, offsets u16[ntuples] unless the page is new
            HeapOp::MultiInsert => u16_at(2).and_then(|ntuples| {
                let new = if info & INIT_PAGE != 0 {
                    Tuples::First(ntuples)
                } else {
                    Tuples::List(main_data.get(4..4 + 2 * usize::from(ntuples))?)
                };
                Some(Touched { new, old: None })
            }),
        }
        .ok_or(short)
    }
}

impl Tuples<'_> {
    /// The offset numbers.
    pub fn iter(&self) -> impl Iterator<Item = OffsetNumber> {
        let (one, first, list): (_, _, &[u8]) = match *self {
            Tuples::One(offnum) => (Some(offnum), 0, &[]),
            Tuples::First(count) => (None, count, &[]),
            Tuples::List(bytes) => (None, 0, bytes),
        };
        let list = list.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes));
        one.into_iter().chain(1..=first).chain(list)
    }
}

/// The record "this fork has at least so many blocks": five little-endian words of main data, no block
/// reference. It stands in for images of the zero pages that a relation is extended by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationExtend {
    /// Which fork.
    pub rel: RelTag,
    /// Its size in blocks, or less.
    pub nblocks: u32,
}

impl RelationExtend {
    /// `info` of the record. The nibble is `XLOG_HEAP_TRUNCATE` of `RM_HEAP_ID`, which is never logged under 134.
    pub const INFO: u8 = 0x30;

    /// The main data.
    pub fn encode(&self) -> [u8; 20] {
        let RelFileLocator { spc_oid, db_oid, rel_number } = self.rel.locator;
        let words = [spc_oid, db_oid, rel_number, self.rel.fork.number().into(), self.nblocks];
        let mut bytes = [0; 20];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads the main data.
    pub fn decode(main_data: &[u8]) -> Result<RelationExtend, RecordError> {
        let ([spc_oid, db_oid, rel_number, fork, nblocks], []) = main_data.as_chunks::<4>() else {
            return Err(RecordError::RelationExtend);
        };
        let locator = RelFileLocator {
            spc_oid: u32::from_le_bytes(*spc_oid),
            db_oid: u32::from_le_bytes(*db_oid),
            rel_number: u32::from_le_bytes(*rel_number),
        };
        let fork = ForkNumber::from_number(u32::from_le_bytes(*fork));
        let nblocks = u32::from_le_bytes(*nblocks);
        match fork {
            Some(fork) if nblocks != INVALID_BLOCK_NUMBER => {
                Ok(RelationExtend { rel: locator.fork(fork), nblocks })
            }
            _ => Err(RecordError::RelationExtend),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn offsets(touched: Touched<'_>) -> (Vec<u16>, Option<u16>) {
        (touched.new.iter().collect(), touched.old)
    }

    #[test]
    fn only_records_that_set_command_ids_are_taken() {
        let of = |rmid| (0..8).map(|op| HeapOp::of_stock(rmid, op << 4)).collect::<Vec<_>>();
        use HeapOp::{Delete, HotUpdate, Insert, Lock, MultiInsert, Update};
        let heap = [
            Some(Insert),
            Some(Delete),
            Some(Update),
            None,
            Some(HotUpdate),
            None,
            Some(Lock),
            None,
        ];
        assert_eq!(of(RM_HEAP_ID), heap);
        assert_eq!(of(RM_HEAP2_ID), [None, None, None, None, None, Some(MultiInsert), None, None]);
        assert_eq!(of(0), [None; 8]);
        assert_eq!(HeapOp::of_stock(RM_HEAP_ID, 0x80), Some(Insert));
        assert_eq!(HeapOp::of_neon(RelationExtend::INFO), None);
    }

    #[test]
    fn offsets_are_where_stock_has_them() {
        let main: Vec<u8> = (1..=14).collect();
        let read = |op: HeapOp, info| offsets(op.touched(info, &main).unwrap());
        assert_eq!(read(HeapOp::Insert, 0), (vec![0x0201], None));
        assert_eq!(read(HeapOp::Delete, 0), (vec![0x0605], None));
        assert_eq!(read(HeapOp::Lock, 0), (vec![0x0605], None));
        assert_eq!(read(HeapOp::Update, 0), (vec![0x0E0D], Some(0x0605)));
        assert_eq!(read(HeapOp::HotUpdate, 0x80), (vec![0x0E0D], Some(0x0605)));
        let multi = [0, 0, 3, 0, 5, 0, 7, 0, 9, 0, 99, 99];
        let read = |info| offsets(HeapOp::MultiInsert.touched(info, &multi).unwrap());
        assert_eq!(read(0), (vec![5, 7, 9], None));
        assert_eq!(read(0x80), (vec![1, 2, 3], None));
    }

    #[test]
    fn extension_bytes_are_fixed() {
        let rel = RelFileLocator { spc_oid: 1, db_oid: 2, rel_number: 0x0403 }.fork(ForkNumber::Vm);
        let expected = [1, 0, 0, 0, 2, 0, 0, 0, 3, 4, 0, 0, 2, 0, 0, 0, 9, 0, 0, 0];
        assert_eq!(RelationExtend { rel, nblocks: 9 }.encode(), expected);
    }

    proptest! {
        #[test]
        fn reading_is_total(info in any::<u8>(), main in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(op) = HeapOp::of_neon(info)
                && let Ok(touched) = op.touched(info, &main)
            {
                prop_assert!(touched.new.iter().count() <= usize::from(u16::MAX));
            }
            if let Ok(extend) = RelationExtend::decode(&main) {
                prop_assert_eq!(extend.encode().to_vec(), main);
            }
        }
    }
}
