//! Input buffer: whole messages out of whatever the pipe gives.

use crate::{HEADER_SIZE, Message, MessageError, frame_size, parse};

/// Bytes asked for at once: what a pipe holds.
const CHUNK: usize = 64 * 1024;
/// A buffer that one huge record made bigger than this is given back when it is empty.
const KEEP: usize = 1 << 20;

/// Buffer between the pipe and the message parser.
#[derive(Debug, Default)]
pub struct Input {
    /// All of it initialised, so that a read costs no clearing; `start..end` is what is pending.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    fn pending(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// The next whole message; `None` when more bytes are needed first.
    pub fn next_message(&mut self) -> Result<Option<Message<'_>>, MessageError> {
        let pending = self.bytes.get(self.start..self.end).unwrap_or_default();
        match parse(pending)? {
            Some((message, size)) => {
                self.start = self.start.saturating_add(size);
                Ok(Some(message))
            }
            None => Ok(None),
        }
    }

    /// Whether every byte read so far has been taken by a message.
    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// Reads once with `read`, which fills a part of the slice it gets and returns how much. Room is made for
    /// the message that has begun, whose size its header has already bounded. Returns what `read` returned.
    pub fn fill<E: From<MessageError>>(
        &mut self,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let missing = match self.pending().first_chunk::<HEADER_SIZE>() {
            Some(header) => frame_size(*header)?.saturating_sub(self.pending().len()),
            None => 0,
        };
        self.make_room(missing.max(CHUNK));
        let target = self.bytes.get_mut(self.end..).unwrap_or_default();
        let room = target.len();
        let filled = read(target)?.min(room);
        self.end = self.end.saturating_add(filled);
        Ok(filled)
    }

    /// Moves what is pending to the front when less than `wanted` bytes are free behind it, and grows when that
    /// is not enough.
    fn make_room(&mut self, wanted: usize) {
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
            if self.bytes.len() > KEEP {
                self.bytes = Vec::new();
            }
        }
        if self.bytes.len().saturating_sub(self.end) < wanted {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end.saturating_sub(self.start));
        }
        let needed = self.end.saturating_add(wanted);
        if self.bytes.len() < needed {
            self.bytes.resize(needed, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BufferTag, put_apply, put_begin, put_get};
    use pg_types::{ForkNumber, Lsn, RelFileLocator};
    use proptest::prelude::*;

    const TAG: BufferTag = BufferTag {
        rel: pg_types::RelTag {
            locator: RelFileLocator { spc_oid: 1, db_oid: 2, rel_number: 3 },
            fork: ForkNumber::Main,
        },
        blkno: 4,
    };

    #[test]
    fn a_bad_header_is_refused_before_room_is_made() {
        let mut input = Input::default();
        let header = *b"A\xFF\xFF\xFF\xFF";
        let read = |target: &mut [u8]| -> Result<usize, MessageError> {
            target[..5].copy_from_slice(&header);
            Ok(5)
        };
        assert_eq!(input.fill(read), Ok(5));
        assert!(input.next_message().is_err());
        assert!(input.fill(read).is_err());
    }

    proptest! {
        #[test]
        fn messages_survive_any_cutting(sizes in proptest::collection::vec(1usize..200_000, 1..20), records in proptest::collection::vec(0usize..150_000, 0..6)) {
            let mut stream = Vec::new();
            put_begin(&mut stream, TAG);
            for (i, len) in records.iter().enumerate() {
                put_apply(&mut stream, Lsn(i as u64), &vec![7; *len]);
            }
            put_get(&mut stream, TAG);
            let mut source = stream.as_slice();
            let mut cuts = sizes.iter().cycle();
            let mut input = Input::default();
            let mut seen = Vec::new();
            loop {
                match input.next_message().unwrap() {
                    Some(Message::Apply { end_lsn, record }) => seen.push((usize::try_from(end_lsn.0).unwrap(), record.len())),
                    Some(Message::Get(_)) => break,
                    Some(_) => (),
                    None => {
                        let n = input.fill(|target| -> Result<usize, MessageError> {
                            let n = target.len().min(*cuts.next().unwrap()).min(source.len());
                            target[..n].copy_from_slice(&source[..n]);
                            source = &source[n..];
                            Ok(n)
                        }).unwrap();
                        prop_assert!(n > 0, "ran dry");
                    }
                }
            }
            prop_assert!(input.is_empty());
            prop_assert_eq!(seen, records.iter().copied().enumerate().collect::<Vec<_>>());
        }
    }
}
