//! Framing of the Postgres protocol as a client sees it: tag, length, body.

/// Longest body that is accepted. The longest message of the page service is an SLRU segment of 256 KiB.
pub const MAX_BODY: usize = 1024 * 1024;
const HEADER: usize = 5;
const READ_CHUNK: usize = 64 * 1024;

/// A message from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Kind of message.
    pub tag: u8,
    /// What follows tag and length.
    pub body: &'a [u8],
}

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message '{}' of the page server claims {length} bytes; 4 to {} are possible", tag.escape_ascii(), MAX_BODY + 4)]
pub struct FrameError {
    /// Its tag.
    pub tag: u8,
    /// Its length field.
    pub length: u32,
}

/// Bytes received and not yet used. Never grows beyond one longest message and one read.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl FrameBuffer {
    /// Room for the next read; never empty. Report what was read to [`FrameBuffer::filled`].
    pub fn room(&mut self) -> &mut [u8] {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
        if self.bytes.len() - self.end < READ_CHUNK / 2 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            self.bytes.resize((self.end + READ_CHUNK).max(self.bytes.len()), 0);
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// `count` bytes were put at the start of [`FrameBuffer::room`].
    pub fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.bytes.len());
    }

    /// Whether bytes wait here: nothing was received that was not asked for, or a message is incomplete.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Looks at the next whole message; `None` while it is incomplete.
    ///
    /// # Errors
    /// A length that no message has; the connection is of no more use.
    pub fn peek_frame(&self) -> Result<Option<Frame<'_>>, FrameError> {
        let waiting = self.bytes.get(self.start..self.end).unwrap_or_default();
        let Some([tag, a, b, c, d]) = waiting.first_chunk::<HEADER>().copied() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]);
        let body_len = match usize::try_from(length) {
            Ok(length) if (4..=MAX_BODY + 4).contains(&length) => length - 4,
            _ => return Err(FrameError { tag, length }),
        };
        Ok(waiting.get(HEADER..HEADER + body_len).map(|body| Frame { tag, body }))
    }

    /// Takes the next whole message; `None` while it is incomplete.
    ///
    /// # Errors
    /// As [`FrameBuffer::peek_frame`].
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let Some(Frame { tag, body }) = self.peek_frame()? else { return Ok(None) };
        let from = self.start + HEADER;
        let to = from + body.len();
        self.start = to;
        Ok(Some(Frame { tag, body: self.bytes.get(from..to).unwrap_or_default() }))
    }
}

/// Appends a message to `out`.
pub fn put(out: &mut Vec<u8>, tag: u8, body: &[u8]) {
    out.push(tag);
    put_length(out, body.len());
    out.extend_from_slice(body);
}

/// Appends the length field of a body. Bodies made here are far below 4 GiB.
pub(crate) fn put_length(out: &mut Vec<u8>, body_len: usize) {
    let length = u32::try_from(body_len + 4).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fill(buffer: &mut FrameBuffer, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = buffer.room();
            let count = room.len().min(bytes.len());
            room[..count].copy_from_slice(&bytes[..count]);
            buffer.filled(count);
            bytes = &bytes[count..];
        }
    }

    #[test]
    fn refuses_impossible_lengths() {
        for length in [0u32, 3, u32::try_from(MAX_BODY + 5).unwrap(), u32::MAX] {
            let mut buffer = FrameBuffer::default();
            let mut bytes = vec![b'd'];
            bytes.extend_from_slice(&length.to_be_bytes());
            fill(&mut buffer, &bytes);
            assert_eq!(buffer.next_frame(), Err(FrameError { tag: b'd', length }));
        }
    }

    proptest! {
        #[test]
        fn messages_survive_any_cut(
            bodies in prop::collection::vec((any::<u8>(), 0usize..70_000), 0..8),
            cut in 1usize..50_000,
        ) {
            let mut wire = Vec::new();
            for (tag, len) in &bodies {
                put(&mut wire, *tag, &vec![*tag; *len]);
            }
            let mut buffer = FrameBuffer::default();
            let mut got = Vec::new();
            for piece in wire.chunks(cut) {
                fill(&mut buffer, piece);
                while let Some(frame) = buffer.next_frame().unwrap() {
                    prop_assert!(frame.body.iter().all(|b| *b == frame.tag));
                    got.push((frame.tag, frame.body.len()));
                }
            }
            prop_assert_eq!(got, bodies);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn is_total(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = FrameBuffer::default();
            fill(&mut buffer, &bytes);
            while let Ok(Some(_)) = buffer.next_frame() {}
        }
    }
}
