//! Which pages a cache holds, as bytes that outlive it: a compute that starts asks for them before anybody needs them
//! (L031).
//!
//! ```text
//! header    "neonLFC1" │ u32 number of spans
//! span      u32 tablespace, database, file number │ u32 fork │ u32 first block │ u128 blocks, from the first
//! end       u32 CRC-32C of all that is before
//! ```
//!
//! All numbers are little-endian. Nothing depends on the size of a chunk or of the cache that was saved, and no page is in
//! it: a list that is old, or of another branch, costs time and is never wrong.

use pg_types::{BlockNumber, ForkNumber, RelFileLocator, RelTag};

use super::BlockSet;

const MAGIC: &[u8; 8] = b"neonLFC1";
const HEADER_BYTES: usize = 12;
const SPAN_BYTES: usize = 36;
const CRC_BYTES: usize = 4;

/// Cached blocks of a fork that lie near each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedSpan {
    /// The fork.
    pub rel: RelTag,
    /// Block number of the set's 0.
    pub first: BlockNumber,
    /// The blocks.
    pub blocks: BlockSet,
}

impl SavedSpan {
    /// The block numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = BlockNumber> + use<> {
        let first = self.first;
        self.blocks.iter().filter_map(move |at| first.checked_add(at))
    }
}

/// Why bytes are no saved list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SavedError {
    /// Not what [`encode`] makes, or of another version.
    #[error("it does not begin as a list of cached pages does")]
    Magic,
    /// Cut, or with something behind it.
    #[error("it has {found} bytes, and by its header {wanted}")]
    Length {
        /// Bytes there are.
        found: usize,
        /// Bytes there should be.
        wanted: usize,
    },
    /// Damaged.
    #[error("its checksum is wrong")]
    Checksum,
    /// A fork that does not exist, although the checksum is right.
    #[error("it names a fork {0}, which does not exist")]
    Fork(u32),
}

/// Makes the bytes. Who reads them asks for the spans in this order, so the most useful come first.
pub fn encode(spans: &[SavedSpan]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + spans.len() * SPAN_BYTES + CRC_BYTES);
    bytes.extend_from_slice(MAGIC);
    // A cache has fewer chunks than 2^32.
    bytes.extend_from_slice(&u32::try_from(spans.len()).unwrap_or(u32::MAX).to_le_bytes());
    for SavedSpan { rel: RelTag { locator, fork }, first, blocks } in spans {
        let fork = u32::from(fork.number());
        for number in [locator.spc_oid, locator.db_oid, locator.rel_number, fork, *first] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&blocks.bits().to_le_bytes());
    }
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

/// Reads what [`encode`] made.
pub fn decode(bytes: &[u8]) -> Result<Vec<SavedSpan>, SavedError> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(SavedError::Magic)?;
    let length = |wanted| SavedError::Length { found: bytes.len(), wanted };
    let (count, rest) = rest.split_first_chunk().ok_or(length(HEADER_BYTES + CRC_BYTES))?;
    let body = (u32::from_le_bytes(*count) as usize).saturating_mul(SPAN_BYTES);
    let wanted = body.saturating_add(HEADER_BYTES + CRC_BYTES);
    let (body, crc) = rest.split_at_checked(body).ok_or(length(wanted))?;
    let crc: [u8; CRC_BYTES] = crc.try_into().map_err(|_| length(wanted))?;
    let covered = bytes.get(..HEADER_BYTES + body.len()).unwrap_or_default();
    if crc32c::crc32c(covered) != u32::from_le_bytes(crc) {
        return Err(SavedError::Checksum);
    }
    body.as_chunks().0.iter().map(decode_span).collect()
}

fn decode_span(bytes: &[u8; SPAN_BYTES]) -> Result<SavedSpan, SavedError> {
    let mut words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
    let [spc_oid, db_oid, rel_number, fork, first] =
        std::array::from_fn(|_| words.next().unwrap_or_default());
    let bits = words.rev().fold(0u128, |bits, word| bits << 32 | u128::from(word));
    let fork = ForkNumber::from_number(fork).ok_or(SavedError::Fork(fork))?;
    let rel = RelFileLocator { spc_oid, db_oid, rel_number }.fork(fork);
    Ok(SavedSpan { rel, first, blocks: BlockSet::of_bits(bits) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn span() -> impl Strategy<Value = SavedSpan> {
        (any::<[u32; 4]>(), 0u32..4, any::<u128>()).prop_map(|(numbers, fork, bits)| {
            let [spc_oid, db_oid, rel_number, first] = numbers;
            let fork = ForkNumber::from_number(fork).unwrap();
            let rel = RelFileLocator { spc_oid, db_oid, rel_number }.fork(fork);
            SavedSpan { rel, first, blocks: BlockSet::of_bits(bits) }
        })
    }

    proptest! {
        #[test]
        fn survives_a_round_trip(spans in prop::collection::vec(span(), 0..20)) {
            prop_assert_eq!(decode(&encode(&spans)), Ok(spans));
        }

        #[test]
        fn damage_is_noticed(
            spans in prop::collection::vec(span(), 0..20), at: prop::sample::Index, bit in 0u8..8,
        ) {
            let mut bytes = encode(&spans);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(decode(&bytes).is_err());
            bytes.truncate(at);
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = decode(&bytes);
            let with_magic = [&MAGIC[..], &bytes].concat();
            prop_assert!(decode(&with_magic).is_err() || decode(&with_magic) == Ok(Vec::new()));
        }
    }

    #[test]
    fn a_fork_that_does_not_exist_is_named() {
        let rel = RelFileLocator { spc_oid: 1, db_oid: 2, rel_number: 3 }.fork(ForkNumber::Main);
        let mut bytes = encode(&[SavedSpan { rel, first: 0, blocks: BlockSet::one(7) }]);
        bytes[HEADER_BYTES + 12] = 9;
        let end = bytes.len() - CRC_BYTES;
        let crc = crc32c::crc32c(&bytes[..end]);
        bytes[end..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode(&bytes), Err(SavedError::Fork(9)));
        assert_eq!(
            decode(&bytes[..bytes.len() - 1]).unwrap_err().to_string(),
            format!("it has {} bytes, and by its header {}", bytes.len() - 1, bytes.len())
        );
    }
}
