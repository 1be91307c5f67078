//! Numbers of the layer file; drawn in the README.

use std::path::Path;

use pg_types::key::KEY_SIZE;
use pg_types::{Key, Lsn};

use crate::error::Corrupt;

pub(crate) const MAGIC: [u8; 8] = *b"pglayer\n";
pub(crate) const VERSION: u32 = 1;

pub(crate) const HEADER_SIZE: usize = 16;
pub(crate) const FOOTER_SIZE: usize = 32;
pub(crate) const BLOCK_HEADER_SIZE: usize = 16;
pub(crate) const INDEX_ENTRY_SIZE: usize = KEY_SIZE + 8 + 8 + 4;
pub(crate) const GROUP_HEADER_SIZE: usize = KEY_SIZE + 4;
pub(crate) const VERSION_HEADER_SIZE: usize = 12;

const _: () = assert!(INDEX_ENTRY_SIZE == 38);
const _: () = assert!(GROUP_HEADER_SIZE == 22);

/// A block is closed when it has this many bytes before compression: two pages, or some hundred small changes.
pub(crate) const BLOCK_BYTES: usize = 16 * 1024;

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum BlockKind {
    Data = 1,
    Filter = 2,
    Index = 3,
    Root = 4,
}

/// Place of a block in its file, with the block's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockPlace {
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

/// First version in a block, and where the block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fence {
    pub(crate) key: Key,
    pub(crate) lsn: Lsn,
    pub(crate) place: BlockPlace,
}

impl Fence {
    pub(crate) fn write(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.key.0);
        into.extend_from_slice(&self.lsn.0.to_be_bytes());
        into.extend_from_slice(&self.place.offset.to_le_bytes());
        into.extend_from_slice(&self.place.len.to_le_bytes());
    }

    pub(crate) fn read(bytes: &mut Fields<'_>) -> Option<Fence> {
        let key = bytes.key()?;
        let lsn = Lsn(u64::from_be_bytes(bytes.take()?));
        let place = BlockPlace { offset: bytes.u64()?, len: bytes.u32()? };
        Some(Fence { key, lsn, place })
    }

    pub(crate) fn position(&self) -> (Key, Lsn) {
        (self.key, self.lsn)
    }
}

/// Name of the layer file with a sequence number.
pub(crate) fn file_name(sequence: u64) -> String {
    format!("{sequence:016x}.layer")
}

/// The sequence number of a name that [`file_name`] makes.
pub(crate) fn parse_file_name(name: &str) -> Option<u64> {
    let sequence = u64::from_str_radix(name.strip_suffix(".layer")?, 16).ok()?;
    (file_name(sequence) == name).then_some(sequence)
}

/// Reads fields from foreign bytes; `None` when they end too early.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    pub(crate) fn slice(&mut self, len: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(field)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    pub(crate) fn lsn(&mut self) -> Option<Lsn> {
        self.u64().map(Lsn)
    }

    pub(crate) fn key(&mut self) -> Option<Key> {
        self.take().map(Key)
    }
}

/// A [`Corrupt`] in `path`.
pub(crate) fn corrupt(path: &Path, offset: u64, what: impl Into<String>) -> Corrupt {
    Corrupt { path: path.to_owned(), offset, what: what.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_others() {
        for sequence in [0, 0xabc, u64::MAX] {
            assert_eq!(parse_file_name(&file_name(sequence)), Some(sequence));
        }
        for other in ["MANIFEST", "1.layer", "+000000000000001.layer", "000000000000000A.layer"] {
            assert_eq!(parse_file_name(other), None, "{other}");
        }
    }
}
