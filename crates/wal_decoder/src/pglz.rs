//! Decompression of `pglz` (`pg_lzcompress.c`): the format of `wal_compression = pglz`.
//!
//! A stream is groups of one control byte and eight items, lowest bit first. A 0 bit is a literal byte. A 1 bit
//! is a match of two or three bytes:
//!
//! ```text
//!   byte 0: offset bits 11..8 | length - 3 (0..15)      byte 1: offset bits 7..0
//!   byte 2, only when length - 3 is 15: added to the length
//! ```

/// Why a stream cannot be decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PglzError {
    /// The stream ends inside a match.
    #[error("compressed data ends inside a match")]
    Truncated,
    /// A match reaches back before the first byte, or nowhere.
    #[error("match offset {offset} at output position {position}")]
    Offset {
        /// Distance back.
        offset: usize,
        /// Bytes written so far.
        position: usize,
    },
    /// The stream ends too early, or goes on after the output is full.
    #[error("wrote {written} of {wanted} bytes with {left} input bytes left")]
    Length {
        /// Bytes written.
        written: usize,
        /// Bytes asked for.
        wanted: usize,
        /// Bytes of input not used.
        left: usize,
    },
}

/// Fills all of `output` from all of `input`, as `pglz_decompress` does with `check_complete`.
pub fn decompress(input: &[u8], output: &mut [u8]) -> Result<(), PglzError> {
    let mut source = input.iter().copied();
    let mut written = 0;
    while written < output.len() {
        let Some(mut control) = source.next() else { break };
        for _ in 0..8 {
            if written >= output.len() {
                break;
            }
            let Some(first) = source.next() else { break };
            if control & 1 == 0 {
                if let Some(slot) = output.get_mut(written) {
                    *slot = first;
                    written += 1;
                }
            } else {
                let low = source.next().ok_or(PglzError::Truncated)?;
                let mut length = usize::from(first & 0x0F) + 3;
                if length == 18 {
                    length += usize::from(source.next().ok_or(PglzError::Truncated)?);
                }
                let offset = usize::from(first & 0xF0) << 4 | usize::from(low);
                written = copy_match(output, written, offset, length)?;
            }
            control >>= 1;
        }
    }
    let left = source.len();
    if written == output.len() && left == 0 {
        Ok(())
    } else {
        Err(PglzError::Length { written, wanted: output.len(), left })
    }
}

/// Copies `length` bytes from `offset` bytes back, a byte at a time in effect: source and target may overlap.
/// Returns the new output position; never writes behind the output's end.
fn copy_match(
    output: &mut [u8],
    position: usize,
    offset: usize,
    length: usize,
) -> Result<usize, PglzError> {
    let wrong = PglzError::Offset { offset, position };
    if offset == 0 {
        return Err(wrong);
    }
    let start = position.checked_sub(offset).ok_or(wrong)?;
    let end = position.saturating_add(length).min(output.len());
    let mut at = position;
    while at < end {
        // Everything from `start` to `at` repeats with period `offset`, so each round may double its reach.
        let step = (at - start).min(end - at);
        output.copy_within(start..start + step, at);
        at += step;
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn literals_and_overlapping_matches() {
        // Five literals, then a match of length 16 at offset 4 (the example in pg_lzcompress.c).
        let input = [0b0010_0000, b'1', b'1', b'2', b'3', b'4', 0x0D, 0x04];
        let mut output = [0; 21];
        decompress(&input, &mut output).unwrap();
        assert_eq!(&output, b"112341234123412341234");
    }

    #[test]
    fn long_match_has_a_third_byte() {
        let input = [0b0000_0010, b'x', 0x0F, 0x01, 255];
        let mut output = [0; 1 + 18 + 255];
        decompress(&input, &mut output).unwrap();
        assert!(output.iter().all(|byte| *byte == b'x'));
    }

    #[test]
    fn corrupt_streams_are_refused() {
        let mut output = [0; 8];
        assert_eq!(decompress(&[1, 0x00], &mut output), Err(PglzError::Truncated));
        assert_eq!(decompress(&[1, 0x0F, 1], &mut output), Err(PglzError::Truncated));
        assert_eq!(
            decompress(&[1, 0x00, 0], &mut output),
            Err(PglzError::Offset { offset: 0, position: 0 })
        );
        assert_eq!(
            decompress(&[2, b'a', 0x00, 2], &mut output),
            Err(PglzError::Offset { offset: 2, position: 1 })
        );
        assert_eq!(
            decompress(&[0, b'a'], &mut output),
            Err(PglzError::Length { written: 1, wanted: 8, left: 0 })
        );
    }

    proptest! {
        #[test]
        fn any_input_ends(input: Vec<u8>, size in 0usize..9000) {
            let mut output = vec![0; size];
            let _ = decompress(&input, &mut output);
        }

        #[test]
        fn literal_streams_round_trip(data: Vec<u8>) {
            let mut stream = Vec::new();
            for group in data.chunks(8) {
                stream.push(0);
                stream.extend_from_slice(group);
            }
            let mut output = vec![0; data.len()];
            prop_assert_eq!(decompress(&stream, &mut output), Ok(()));
            prop_assert_eq!(output, data);
        }
    }
}
