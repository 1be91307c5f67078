//! Full-page images: decompression and the hole (`RestoreBlockImage` in `xlogreader.c`).

use pg_types::BLCKSZ;
use pg_types::page::Page;

use crate::pglz::{self, PglzError};
use crate::record::{BlockRef, DecodedRecord, ImageCompression, ImageRef};

/// Why an image cannot be restored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The block has none.
    #[error("block {id} has no image")]
    None {
        /// Block id.
        id: u8,
    },
    /// pglz data is corrupt.
    #[error("block {id}: pglz: {source}")]
    Pglz {
        /// Block id.
        id: u8,
        /// Why.
        source: PglzError,
    },
    /// lz4 or zstd data is corrupt.
    #[error("block {id}: {method}: {reason}")]
    Library {
        /// Block id.
        id: u8,
        /// Name of the method.
        method: &'static str,
        /// What the library said.
        reason: String,
    },
    /// Not as many bytes as the page has outside the hole.
    #[error("block {id}: image has {len} bytes, expected {expected}")]
    Length {
        /// Block id.
        id: u8,
        /// Bytes there.
        len: usize,
        /// `BLCKSZ` less the hole.
        expected: usize,
    },
}

/// Writes the page that the block's image holds. Its LSN is what it was before the record; whoever stores it
/// stamps it, except when it is a new page.
pub fn restore(
    record: &DecodedRecord,
    block: &BlockRef,
    page: &mut Page,
) -> Result<(), ImageError> {
    let image = block.image.as_ref().ok_or(ImageError::None { id: block.id })?;
    let source = record.image_bytes(image);
    let expected = BLCKSZ.saturating_sub(usize::from(image.hole_length));
    if image.compression == ImageCompression::None {
        return fill(page, image, source, block.id);
    }
    let mut buffer = [0; BLCKSZ];
    let (raw, _) = buffer.split_at_mut(expected);
    let len = decompress(image.compression, source, raw, block.id)?;
    if len != expected {
        return Err(ImageError::Length { id: block.id, len, expected });
    }
    fill(page, image, raw, block.id)
}

fn decompress(
    method: ImageCompression,
    source: &[u8],
    raw: &mut [u8],
    id: u8,
) -> Result<usize, ImageError> {
    let failed = |method, reason: String| ImageError::Library { id, method, reason };
    match method {
        ImageCompression::None => Ok(source.len()),
        ImageCompression::Pglz => pglz::decompress(source, raw)
            .map(|()| raw.len())
            .map_err(|source| ImageError::Pglz { id, source }),
        ImageCompression::Lz4 => lz4_flex::block::decompress_into(source, raw)
            .map_err(|error| failed("lz4", error.to_string())),
        ImageCompression::Zstd => zstd::bulk::decompress_to_buffer(source, raw)
            .map_err(|error| failed("zstd", error.to_string())),
    }
}

fn fill(page: &mut Page, image: &ImageRef, raw: &[u8], id: u8) -> Result<(), ImageError> {
    let hole_start = usize::from(image.hole_offset);
    let hole_len = usize::from(image.hole_length);
    let wrong =
        ImageError::Length { id, len: raw.len(), expected: BLCKSZ.saturating_sub(hole_len) };
    let (head, rest) = page.split_at_mut_checked(hole_start).ok_or(wrong.clone())?;
    let (hole, tail) = rest.split_at_mut_checked(hole_len).ok_or(wrong.clone())?;
    let (raw_head, raw_tail) = raw.split_at_checked(hole_start).ok_or(wrong.clone())?;
    if raw_tail.len() != tail.len() {
        return Err(wrong);
    }
    head.copy_from_slice(raw_head);
    hole.fill(0);
    tail.copy_from_slice(raw_tail);
    Ok(())
}
