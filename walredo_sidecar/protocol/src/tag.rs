//! Which page a request is about.

use std::fmt;

use pg_types::{BlockNumber, ForkNumber, RelFileLocator, RelTag};

/// Bytes of a tag on the wire (L047).
pub const BUFFER_TAG_SIZE: usize = 17;

/// A page of the cluster, as `BufferTag` of `storage/buf_internals.h` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferTag {
    /// The relation fork.
    pub rel: RelTag,
    /// Block within the fork.
    pub blkno: BlockNumber,
}

/// A tag whose fork number is no fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("buffer tag has unknown fork number {0}")]
pub struct UnknownFork(pub u8);

impl BufferTag {
    /// The bytes sent (L091): fork, tablespace, database, relation, block.
    pub fn to_bytes(self) -> [u8; BUFFER_TAG_SIZE] {
        let RelFileLocator { spc_oid, db_oid, rel_number } = self.rel.locator;
        let mut bytes = [0; BUFFER_TAG_SIZE];
        let (fork, words) = bytes.split_at_mut(1);
        fork.copy_from_slice(&[self.rel.fork.number()]);
        for (slot, word) in
            words.as_chunks_mut().0.iter_mut().zip([spc_oid, db_oid, rel_number, self.blkno])
        {
            *slot = word.to_be_bytes();
        }
        bytes
    }

    /// Reads what [`BufferTag::to_bytes`] made.
    pub fn from_bytes(bytes: [u8; BUFFER_TAG_SIZE]) -> Result<BufferTag, UnknownFork> {
        let [fork, a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3] = bytes;
        let fork = ForkNumber::from_number(u32::from(fork)).ok_or(UnknownFork(fork))?;
        let locator = RelFileLocator {
            spc_oid: u32::from_be_bytes([a0, a1, a2, a3]),
            db_oid: u32::from_be_bytes([b0, b1, b2, b3]),
            rel_number: u32::from_be_bytes([c0, c1, c2, c3]),
        };
        Ok(BufferTag { rel: locator.fork(fork), blkno: u32::from_be_bytes([d0, d1, d2, d3]) })
    }
}

impl fmt::Display for BufferTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} block {}", self.rel, self.blkno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn seventeen_bytes_in_a_fixed_order() {
        let locator =
            RelFileLocator { spc_oid: 0x0102_0304, db_oid: 0x0506_0708, rel_number: 0x090A_0B0C };
        let tag = BufferTag { rel: locator.fork(ForkNumber::Vm), blkno: 0x0D0E_0F10 };
        assert_eq!(tag.to_bytes(), [2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
    }

    proptest! {
        #[test]
        fn any_bytes_read_back_or_name_the_fork(bytes: [u8; BUFFER_TAG_SIZE]) {
            match BufferTag::from_bytes(bytes) {
                Ok(tag) => prop_assert_eq!(tag.to_bytes(), bytes),
                Err(error) => prop_assert_eq!(error, UnknownFork(bytes[0])),
            }
        }
    }
}
