//! A run of WAL bytes in memory, as the chunks they came in.

use std::collections::VecDeque;

use bytes::Bytes;
use pg_types::Lsn;
use tokio::sync::OwnedSemaphorePermit;

/// WAL from one position to another without gaps.
#[derive(Debug, Default)]
pub(crate) struct Window {
    begin_lsn: Lsn,
    end_lsn: Lsn,
    chunks: VecDeque<Chunk>,
}

#[derive(Debug)]
struct Chunk {
    begin_lsn: Lsn,
    wal: Bytes,
    /// Room in the sender's budget, given back when the chunk goes.
    _permit: Option<OwnedSemaphorePermit>,
}

/// WAL that does not begin where the window ends.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("WAL at {begin_lsn} arrived where {expected_lsn} was due")]
pub(crate) struct GapError {
    begin_lsn: Lsn,
    expected_lsn: Lsn,
}

impl Chunk {
    fn end_lsn(&self) -> Lsn {
        Lsn(self.begin_lsn.0.saturating_add(self.wal.len() as u64))
    }
}

impl Window {
    /// An empty window at a position.
    pub(crate) fn at(lsn: Lsn) -> Window {
        Window { begin_lsn: lsn, end_lsn: lsn, chunks: VecDeque::new() }
    }

    pub(crate) fn begin_lsn(&self) -> Lsn {
        self.begin_lsn
    }

    pub(crate) fn end_lsn(&self) -> Lsn {
        self.end_lsn
    }

    /// Bytes held.
    pub(crate) fn len(&self) -> u64 {
        self.end_lsn.saturating_sub(self.begin_lsn)
    }

    pub(crate) fn push(
        &mut self,
        begin_lsn: Lsn,
        wal: Bytes,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<(), GapError> {
        if begin_lsn != self.end_lsn {
            return Err(GapError { begin_lsn, expected_lsn: self.end_lsn });
        }
        if !wal.is_empty() {
            let chunk = Chunk { begin_lsn, wal, _permit: permit };
            self.end_lsn = chunk.end_lsn();
            self.chunks.push_back(chunk);
        }
        Ok(())
    }

    /// The bytes of a range, without copying; `None` when part of it is not here.
    pub(crate) fn slice(&self, begin_lsn: Lsn, end_lsn: Lsn) -> Option<Vec<Bytes>> {
        if begin_lsn < self.begin_lsn || self.end_lsn < end_lsn || end_lsn < begin_lsn {
            return None;
        }
        let first = self.chunks.partition_point(|chunk| chunk.end_lsn() <= begin_lsn);
        let wanted = self.chunks.iter().skip(first).take_while(|chunk| chunk.begin_lsn < end_lsn);
        let slices = wanted.map(|chunk| {
            let from = usize::try_from(begin_lsn.saturating_sub(chunk.begin_lsn)).ok()?;
            let behind = usize::try_from(chunk.end_lsn().saturating_sub(end_lsn)).ok()?;
            Some(chunk.wal.slice(from..chunk.wal.len().checked_sub(behind)?))
        });
        slices.collect()
    }

    /// Forgets whole chunks below a position.
    pub(crate) fn evict_below(&mut self, lsn: Lsn) {
        while let Some(chunk) = self.chunks.front()
            && chunk.end_lsn() <= lsn
        {
            self.begin_lsn = chunk.end_lsn();
            self.chunks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refuses_gaps() {
        let mut window = Window::at(Lsn(10));
        assert!(window.push(Lsn(11), Bytes::from_static(b"x"), None).is_err());
        assert_eq!(window.push(Lsn(10), Bytes::from_static(b"xy"), None), Ok(()));
        assert_eq!(window.end_lsn(), Lsn(12));
        assert_eq!(window.slice(Lsn(10), Lsn(13)), None);
        assert_eq!(window.slice(Lsn(9), Lsn(10)), None);
        assert_eq!(window.slice(Lsn(12), Lsn(12)), Some(vec![]));
    }

    proptest! {
        #[test]
        fn slices_are_what_was_pushed(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..9),
            evict in 0u64..90, from in 0u64..90, length in 0u64..90,
        ) {
            let mut window = Window::at(Lsn(100));
            let all: Vec<u8> = chunks.concat();
            for chunk in chunks {
                window.push(window.end_lsn(), chunk.into(), None).unwrap();
            }
            window.evict_below(Lsn(100 + evict));
            let (begin, end) = (100 + from, 100 + from + length);
            let inside = window.begin_lsn().0 <= begin && end <= window.end_lsn().0;
            match window.slice(Lsn(begin), Lsn(end)) {
                None => prop_assert!(!inside),
                Some(slices) => {
                    prop_assert!(inside);
                    let from = usize::try_from(from).unwrap();
                    let expected = &all[from..from + usize::try_from(length).unwrap()];
                    prop_assert_eq!(slices.concat(), expected);
                }
            }
        }
    }
}
