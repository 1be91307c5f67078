//! Storage keys: one 18-byte key for everything a timeline stores.
//!
//! A key is six big-endian fields, compared as bytes, so that the blocks of a fork are adjacent and its size
//! sorts right behind them. The table below is the only place that gives keys their meaning:
//!
//! | what | f1 | f2 | f3 | f4 | f5 | f6 |
//! |---|---|---|---|---|---|---|
//! | database directory entry | 00 | spc | db | 0 | 0 | 2 |
//! | relation map file | 00 | spc | db | 0 | 0 | 0 |
//! | relation block | 00 | spc | db | rel | fork | block |
//! | relation size | 00 | spc | db | rel | fork | FFFFFFFF |
//! | SLRU block | 01 | kind | 1 | segment | 0 | block |
//! | SLRU segment size | 01 | kind | 1 | segment | 0 | FFFFFFFF |
//! | two-phase state file | 02 | 0 | 0 | xid bits 63..40 | xid bits 39..32 | xid bits 31..0 |
//! | pg_control | 03 | 0 | 0 | 0 | 0 | 0 |
//! | checkpoint | 03 | 0 | 0 | 0 | 0 | 1 |
//! | auxiliary file | 62 | directory | hash | hash | hash | hash |
//! | replication origin | 63 | 0 | 0 | 0 | 0 | origin |
//! | relation directory entry | 65 | spc | db | rel | fork | 1 |
//!
//! Directories are sparse ranges (one key for each member), never one big value.

use std::fmt;

use crate::{BlockNumber, ForkNumber, Oid, RelFileLocator, RelTag, SlruKind};

/// Bytes of a key.
pub const KEY_SIZE: usize = 18;

const SIZE_SLOT: u32 = 0xFFFF_FFFF;
const F1_RELATION: u8 = 0x00;
const F1_SLRU: u8 = 0x01;
const F1_TWOPHASE: u8 = 0x02;
const F1_CONTROL: u8 = 0x03;
const F1_AUX_FILE: u8 = 0x62;
const F1_ORIGIN: u8 = 0x63;
const F1_RELDIR: u8 = 0x65;

/// Name of one stored thing; ordered as its bytes are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; KEY_SIZE]);

/// A key that is not of the kind that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("key {key} is not {wanted}")]
pub struct WrongKeyKind {
    /// The key.
    pub key: Key,
    /// What it should have been.
    pub wanted: &'static str,
}

/// What a key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// Existence of a database in a tablespace.
    Database {
        /// Tablespace.
        spc_oid: Oid,
        /// Database.
        db_oid: Oid,
    },
    /// `pg_filenode.map` of a database.
    RelMap {
        /// Tablespace.
        spc_oid: Oid,
        /// Database.
        db_oid: Oid,
    },
    /// A block of a relation fork.
    RelBlock(RelTag, BlockNumber),
    /// Number of blocks of a relation fork.
    RelSize(RelTag),
    /// A block of an SLRU segment.
    SlruBlock(SlruKind, u32, BlockNumber),
    /// Number of blocks of an SLRU segment.
    SlruSegmentSize(SlruKind, u32),
    /// State file of a prepared transaction, by full transaction id.
    TwoPhase(u64),
    /// `pg_control` as imported.
    ControlFile,
    /// Latest checkpoint state.
    Checkpoint,
    /// Part of an auxiliary file bucket.
    AuxFile,
    /// Progress of a replication origin.
    ReplOrigin(u16),
    /// Existence of a relation fork.
    RelDirEntry(RelTag),
}

impl Key {
    /// The smallest key.
    pub const MIN: Key = Key([0; KEY_SIZE]);
    /// The greatest key; names nothing.
    pub const MAX: Key = Key([0xFF; KEY_SIZE]);

    /// Key of six fields.
    pub const fn from_fields(f1: u8, f2: u32, f3: u32, f4: u32, f5: u8, f6: u32) -> Key {
        let (b, c, d, e) = (f2.to_be_bytes(), f3.to_be_bytes(), f4.to_be_bytes(), f6.to_be_bytes());
        Key([
            f1, b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3], f5, e[0],
            e[1], e[2], e[3],
        ])
    }

    /// The six fields.
    pub fn fields(self) -> (u8, u32, u32, u32, u8, u32) {
        let [a, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3, e, f0, f1, f2, f3] = self.0;
        (
            a,
            u32::from_be_bytes([b0, b1, b2, b3]),
            u32::from_be_bytes([c0, c1, c2, c3]),
            u32::from_be_bytes([d0, d1, d2, d3]),
            e,
            u32::from_be_bytes([f0, f1, f2, f3]),
        )
    }

    /// The key that follows in byte order; [`Key::MAX`] has no successor and stays.
    pub fn next(self) -> Key {
        let mut bytes = self.0;
        for byte in bytes.iter_mut().rev() {
            let (sum, carry) = byte.overflowing_add(1);
            *byte = sum;
            if !carry {
                return Key(bytes);
            }
        }
        Key::MAX
    }

    /// Whether a missing value is normal for keys of this range, and an empty value means "removed".
    pub fn is_sparse(self) -> bool {
        (0x60..0x80).contains(&self.0[0])
    }

    /// A block of a relation fork.
    pub fn rel_block(rel: RelTag, blkno: BlockNumber) -> Key {
        let l = rel.locator;
        Key::from_fields(F1_RELATION, l.spc_oid, l.db_oid, l.rel_number, rel.fork.number(), blkno)
    }

    /// The number of blocks of a relation fork.
    pub fn rel_size(rel: RelTag) -> Key {
        Key::rel_block(rel, SIZE_SLOT)
    }

    /// The directory entry of a relation fork.
    pub fn rel_dir_entry(rel: RelTag) -> Key {
        let l = rel.locator;
        Key::from_fields(F1_RELDIR, l.spc_oid, l.db_oid, l.rel_number, rel.fork.number(), 1)
    }

    /// All directory entries of a database: start inclusive, end exclusive.
    pub fn rel_dir_range(spc_oid: Oid, db_oid: Oid) -> std::ops::Range<Key> {
        let start = Key::from_fields(F1_RELDIR, spc_oid, db_oid, 0, 0, 0);
        start..Key::from_fields(F1_RELDIR, spc_oid, db_oid, u32::MAX, u8::MAX, u32::MAX)
    }

    /// All blocks, sizes, relation map and database entry of a database.
    pub fn database_range(spc_oid: Oid, db_oid: Oid) -> std::ops::Range<Key> {
        let start = Key::from_fields(F1_RELATION, spc_oid, db_oid, 0, 0, 0);
        start..Key::from_fields(F1_RELATION, spc_oid, db_oid, u32::MAX, u8::MAX, u32::MAX)
    }

    /// The directory entry of a database.
    pub fn database(spc_oid: Oid, db_oid: Oid) -> Key {
        Key::from_fields(F1_RELATION, spc_oid, db_oid, 0, 0, 2)
    }

    /// `pg_filenode.map` of a database.
    pub fn rel_map(spc_oid: Oid, db_oid: Oid) -> Key {
        Key::from_fields(F1_RELATION, spc_oid, db_oid, 0, 0, 0)
    }

    /// A block of an SLRU segment.
    pub fn slru_block(kind: SlruKind, segno: u32, blkno: BlockNumber) -> Key {
        Key::from_fields(F1_SLRU, u32::from(kind.number()), 1, segno, 0, blkno)
    }

    /// The number of blocks of an SLRU segment.
    pub fn slru_segment_size(kind: SlruKind, segno: u32) -> Key {
        Key::slru_block(kind, segno, SIZE_SLOT)
    }

    /// All keys of an SLRU.
    pub fn slru_range(kind: SlruKind) -> std::ops::Range<Key> {
        let f2 = u32::from(kind.number());
        Key::from_fields(F1_SLRU, f2, 1, 0, 0, 0)..Key::from_fields(F1_SLRU, f2, 2, 0, 0, 0)
    }

    /// State file of a prepared transaction, by full (64-bit) transaction id.
    pub fn two_phase(full_xid: u64) -> Key {
        let [a, b, c, d, e, f, g, h] = full_xid.to_be_bytes();
        let f4 = u32::from_be_bytes([0, a, b, c]);
        Key::from_fields(F1_TWOPHASE, 0, 0, f4, d, u32::from_be_bytes([e, f, g, h]))
    }

    /// All two-phase state files.
    pub fn two_phase_range() -> std::ops::Range<Key> {
        Key::from_fields(F1_TWOPHASE, 0, 0, 0, 0, 0)..Key::from_fields(F1_CONTROL, 0, 0, 0, 0, 0)
    }

    /// `pg_control` as imported.
    pub const CONTROL_FILE: Key = Key::from_fields(F1_CONTROL, 0, 0, 0, 0, 0);
    /// Latest checkpoint state.
    pub const CHECKPOINT: Key = Key::from_fields(F1_CONTROL, 0, 0, 0, 0, 1);

    /// A bucket of auxiliary files, from the low 13 bytes of a hash and two directory bytes.
    pub fn aux_file(directory: [u8; 2], hash: [u8; 13]) -> Key {
        let [d0, d1] = directory;
        let mut bytes = [0; KEY_SIZE];
        bytes[0] = F1_AUX_FILE;
        bytes[3] = d0;
        bytes[4] = d1;
        bytes[5..].copy_from_slice(&hash);
        Key(bytes)
    }

    /// All auxiliary files.
    pub fn aux_file_range() -> std::ops::Range<Key> {
        Key::from_fields(F1_AUX_FILE, 0, 0, 0, 0, 0)..Key::from_fields(F1_ORIGIN, 0, 0, 0, 0, 0)
    }

    /// Progress of a replication origin.
    pub fn repl_origin(id: u16) -> Key {
        Key::from_fields(F1_ORIGIN, 0, 0, 0, 0, u32::from(id))
    }

    /// All replication origins.
    pub fn repl_origin_range() -> std::ops::Range<Key> {
        Key::from_fields(F1_ORIGIN, 0, 0, 0, 0, 0)..Key::from_fields(F1_ORIGIN + 1, 0, 0, 0, 0, 0)
    }

    /// Whether a child branch reads this key from its ancestor. Logical replication state does not follow a
    /// branch.
    pub fn is_inherited(self) -> bool {
        !matches!(self.0[0], F1_AUX_FILE | F1_ORIGIN)
    }

    /// What this key names; `None` for bytes that no function above makes.
    pub fn kind(self) -> Option<KeyKind> {
        let (f1, f2, f3, f4, f5, f6) = self.fields();
        let tag = || {
            let locator = RelFileLocator { spc_oid: f2, db_oid: f3, rel_number: f4 };
            ForkNumber::from_number(u32::from(f5)).map(|fork| locator.fork(fork))
        };
        match (f1, f4, f6) {
            (F1_RELATION, 0, 0) => Some(KeyKind::RelMap { spc_oid: f2, db_oid: f3 }),
            (F1_RELATION, 0, 2) => Some(KeyKind::Database { spc_oid: f2, db_oid: f3 }),
            (F1_RELATION, 0, _) => None,
            (F1_RELATION, _, SIZE_SLOT) => tag().map(KeyKind::RelSize),
            (F1_RELATION, _, blkno) => tag().map(|rel| KeyKind::RelBlock(rel, blkno)),
            (F1_SLRU, segno, blkno) => {
                let kind = SlruKind::from_number(f2)?;
                Some(match blkno {
                    SIZE_SLOT => KeyKind::SlruSegmentSize(kind, segno),
                    _ => KeyKind::SlruBlock(kind, segno, blkno),
                })
            }
            (F1_TWOPHASE, hi, lo) => {
                Some(KeyKind::TwoPhase(u64::from(hi) << 40 | u64::from(f5) << 32 | u64::from(lo)))
            }
            (F1_CONTROL, _, 0) => Some(KeyKind::ControlFile),
            (F1_CONTROL, _, 1) => Some(KeyKind::Checkpoint),
            (F1_AUX_FILE, ..) => Some(KeyKind::AuxFile),
            (F1_ORIGIN, _, id) => u16::try_from(id).ok().map(KeyKind::ReplOrigin),
            (F1_RELDIR, _, 1) => tag().map(KeyKind::RelDirEntry),
            _ => None,
        }
    }

    /// The relation block that a key names, or an error for any other key (L160).
    pub fn to_rel_block(self) -> Result<(RelTag, BlockNumber), WrongKeyKind> {
        match self.kind() {
            Some(KeyKind::RelBlock(rel, blkno)) => Ok((rel, blkno)),
            _ => Err(WrongKeyKind { key: self, wanted: "a relation block" }),
        }
    }

    /// The SLRU block that a key names, or an error for any other key (L160).
    pub fn to_slru_block(self) -> Result<(SlruKind, u32, BlockNumber), WrongKeyKind> {
        match self.kind() {
            Some(KeyKind::SlruBlock(kind, segno, blkno)) => Ok((kind, segno, blkno)),
            _ => Err(WrongKeyKind { key: self, wanted: "an SLRU block" }),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02X}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REL: RelTag = RelTag {
        locator: RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: 16384 },
        fork: ForkNumber::Vm,
    };

    #[test]
    fn every_constructor_maps_back() {
        let cases = [
            (Key::rel_block(REL, 7), KeyKind::RelBlock(REL, 7)),
            (Key::rel_size(REL), KeyKind::RelSize(REL)),
            (Key::rel_dir_entry(REL), KeyKind::RelDirEntry(REL)),
            (Key::database(1663, 5), KeyKind::Database { spc_oid: 1663, db_oid: 5 }),
            (Key::rel_map(1664, 0), KeyKind::RelMap { spc_oid: 1664, db_oid: 0 }),
            (Key::slru_block(SlruKind::Clog, 3, 31), KeyKind::SlruBlock(SlruKind::Clog, 3, 31)),
            (
                Key::slru_segment_size(SlruKind::MultiXactOffsets, 9),
                KeyKind::SlruSegmentSize(SlruKind::MultiXactOffsets, 9),
            ),
            (Key::two_phase(0x0102_0304_0506_0708), KeyKind::TwoPhase(0x0102_0304_0506_0708)),
            (Key::CONTROL_FILE, KeyKind::ControlFile),
            (Key::CHECKPOINT, KeyKind::Checkpoint),
            (Key::repl_origin(65535), KeyKind::ReplOrigin(65535)),
            (Key::aux_file([1, 2], [9; 13]), KeyKind::AuxFile),
        ];
        for (key, kind) in cases {
            assert_eq!(key.kind(), Some(kind), "{key}");
            assert_eq!(key.to_rel_block().is_ok(), matches!(kind, KeyKind::RelBlock(..)));
            assert_eq!(key.to_slru_block().is_ok(), matches!(kind, KeyKind::SlruBlock(..)));
        }
    }

    #[test]
    fn a_size_sorts_right_behind_the_last_block() {
        assert!(Key::rel_block(REL, u32::MAX - 1) < Key::rel_size(REL));
        assert_eq!(Key::rel_block(REL, u32::MAX - 1).next(), Key::rel_size(REL));
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_kind_or_none(bytes: [u8; KEY_SIZE]) {
            let key = Key(bytes);
            let (f1, f2, f3, f4, f5, f6) = key.fields();
            prop_assert_eq!(Key::from_fields(f1, f2, f3, f4, f5, f6), key);
            let _ = key.kind();
            prop_assert!(key.next() > key || key == Key::MAX);
        }
    }
}
