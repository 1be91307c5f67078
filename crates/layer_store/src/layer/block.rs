//! A block: header with checksum, then payload, compressed when that makes it smaller.

use std::path::Path;

use bytes::Bytes;

use super::format::{BLOCK_BYTES, BLOCK_HEADER_SIZE, BlockKind, BlockPlace, Fields, corrupt};
use crate::error::Corrupt;
use crate::limits::VALUE_BYTES_MAX;

const PLAIN: u8 = 0;
const LZ4: u8 = 1;

/// Bytes of a payload at most: one value of the greatest size in a block that was nearly full, with headers.
const PAYLOAD_BYTES_MAX: usize = VALUE_BYTES_MAX + 2 * BLOCK_BYTES;

/// Where a block belongs. Its checksum covers this too, so that a block that was written to or read from the
/// wrong place is noticed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockHome {
    pub(crate) sequence: u64,
    pub(crate) offset: u64,
}

/// Appends a block to `out` and says how many bytes it has.
pub(crate) fn write(
    home: BlockHome,
    kind: BlockKind,
    payload: &[u8],
    scratch: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> usize {
    let worst = lz4_flex::block::get_maximum_output_size(payload.len());
    if scratch.len() < worst {
        scratch.resize(worst, 0);
    }
    let compressed = lz4_flex::block::compress_into(payload, scratch)
        .ok()
        .filter(|len| *len < payload.len() - payload.len() / 16)
        .and_then(|len| scratch.get(..len));
    let (compression, stored) = compressed.map_or((PLAIN, payload), |bytes| (LZ4, bytes));
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&length(stored).to_le_bytes());
    out.extend_from_slice(&length(payload).to_le_bytes());
    out.extend_from_slice(&[kind as u8, compression, 0, 0]);
    out.extend_from_slice(stored);
    let crc = checksum(home, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    out.len() - start
}

/// A payload's length; writers keep it below [`PAYLOAD_BYTES_MAX`].
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

fn checksum(home: BlockHome, bytes: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&home.sequence.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &home.offset.to_le_bytes()), bytes)
}

/// The payload of the block whose bytes, with header, were read from its place.
pub(crate) fn read(
    home: BlockHome,
    kind: BlockKind,
    bytes: Vec<u8>,
    path: &Path,
) -> Result<Bytes, Corrupt> {
    let wrong = |what: &str| corrupt(path, home.offset, what);
    let mut fields = Fields(&bytes);
    let short = || wrong("block header ends early");
    let crc = fields.u32().ok_or_else(short)?;
    let computed = checksum(home, fields.0);
    if crc != computed {
        return Err(wrong(&format!("block checksum is {crc:08x}, computed {computed:08x}")));
    }
    let stored = fields.u32().ok_or_else(short)?;
    let raw = fields.u32().and_then(|raw| usize::try_from(raw).ok()).ok_or_else(short)?;
    let [found, compression, _, _] = fields.take().ok_or_else(short)?;
    if found != kind as u8 {
        return Err(wrong(&format!("block is of kind {found}, expected {kind:?}")));
    }
    if usize::try_from(stored) != Ok(fields.0.len()) || raw > PAYLOAD_BYTES_MAX {
        return Err(wrong("block lengths do not fit"));
    }
    match compression {
        PLAIN if raw == fields.0.len() => Ok(Bytes::from(bytes).slice(BLOCK_HEADER_SIZE..)),
        LZ4 => {
            let mut payload = vec![0; raw];
            match lz4_flex::block::decompress_into(fields.0, &mut payload) {
                Ok(len) if len == raw => Ok(Bytes::from(payload)),
                _ => Err(wrong("block does not decompress")),
            }
        }
        _ => Err(wrong("unknown block compression")),
    }
}

impl BlockPlace {
    /// Bytes to read; `None` when no block can be that long or that short.
    pub(crate) fn read_len(self) -> Option<usize> {
        let len = usize::try_from(self.len).ok()?;
        (BLOCK_HEADER_SIZE..=PAYLOAD_BYTES_MAX + BLOCK_HEADER_SIZE).contains(&len).then_some(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOME: BlockHome = BlockHome { sequence: 3, offset: 4096 };

    fn written(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write(HOME, BlockKind::Data, payload, &mut Vec::new(), &mut out);
        out
    }

    proptest! {
        #[test]
        fn any_payload_comes_back(
            random in proptest::collection::vec(any::<u8>(), 0..5000),
            zeros in 0_usize..20_000,
        ) {
            let mut payload = random;
            payload.resize(payload.len() + zeros, 0);
            let block = written(&payload);
            prop_assert!(block.len() <= payload.len() + BLOCK_HEADER_SIZE);
            let read = read(HOME, BlockKind::Data, block, Path::new("f")).unwrap();
            prop_assert_eq!(&read[..], &payload[..]);
        }

        #[test]
        fn any_flipped_bit_is_noticed(bit in 0_usize..8, at: proptest::sample::Index) {
            let mut block = written(b"some payload that matters");
            let at = at.index(block.len());
            block[at] ^= 1 << bit;
            prop_assert!(read(HOME, BlockKind::Data, block, Path::new("f")).is_err());
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            prop_assert!(read(HOME, BlockKind::Data, bytes, Path::new("f")).is_err());
        }
    }

    #[test]
    fn a_block_of_another_place_or_kind_is_noticed() {
        let block = written(b"payload");
        let path = Path::new("f");
        for home in [BlockHome { sequence: 4, ..HOME }, BlockHome { offset: 0, ..HOME }] {
            assert!(read(home, BlockKind::Data, block.clone(), path).is_err());
        }
        let error = read(HOME, BlockKind::Index, block, path).unwrap_err();
        assert_eq!((error.offset, error.path.as_path()), (4096, path));
    }
}
