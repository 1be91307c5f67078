//! The end of the log in memory, for those who stream it: it was written past the kernel's cache ([`super::segment`]),
//! and reading it back from the disk each time would keep the disk from the next commit.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use pg_types::Lsn;

/// Bytes kept of a timeline that is written to; many times what is written between two messages to a page server.
const RING_BYTES: usize = 256 * 1024;

/// See the module's description.
#[derive(Debug, Default)]
pub struct RecentWal(Mutex<Ring>);

/// The byte at a position is at its remainder by the ring's size.
#[derive(Debug, Default)]
struct Ring {
    /// Empty until something is written.
    memory: Vec<u8>,
    begin_lsn: Lsn,
    end_lsn: Lsn,
}

impl RecentWal {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Positions are moved only after the bytes are there: a panicked holder leaves nothing wrong.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what was appended to the log at `begin_lsn`.
    pub(super) fn push(&self, begin_lsn: Lsn, wal: &[u8]) {
        let mut ring = self.ring();
        if ring.end_lsn != begin_lsn {
            (ring.begin_lsn, ring.end_lsn) = (begin_lsn, begin_lsn);
        }
        let kept = wal.get(wal.len().saturating_sub(RING_BYTES)..).unwrap_or_default();
        let end_lsn = begin_lsn + wal.len() as u64;
        let kept_lsn = Lsn(end_lsn.0 - kept.len() as u64);
        ring.memory.resize(RING_BYTES, 0);
        let room = RING_BYTES - place(kept_lsn);
        let (first, second) = kept.split_at(room.min(kept.len()));
        // Nothing that is overwritten may be found meanwhile, nor when this panics.
        ring.begin_lsn = ring.begin_lsn.max(Lsn(end_lsn.0.saturating_sub(RING_BYTES as u64)));
        if let Some(memory) = ring.memory.get_mut(place(kept_lsn)..) {
            memory.iter_mut().zip(first).for_each(|(to, from)| *to = *from);
        }
        ring.memory.iter_mut().zip(second).for_each(|(to, from)| *to = *from);
        ring.end_lsn = end_lsn;
    }

    /// The log has been cut.
    pub(super) fn forget(&self) {
        let mut ring = self.ring();
        ring.end_lsn = Lsn::INVALID;
        ring.begin_lsn = Lsn::INVALID;
    }

    /// `len` bytes at `lsn`, if all of them are here.
    pub(super) fn read(&self, lsn: Lsn, len: usize) -> Option<Bytes> {
        let ring = self.ring();
        if lsn < ring.begin_lsn || ring.end_lsn < lsn + len as u64 || len == 0 {
            return None;
        }
        let first = ring.memory.get(place(lsn)..)?;
        let first = first.get(..len.min(first.len()))?;
        let mut data = BytesMut::with_capacity(len);
        data.extend_from_slice(first);
        data.extend_from_slice(ring.memory.get(..len - first.len())?);
        Some(data.freeze())
    }
}

fn place(lsn: Lsn) -> usize {
    usize::try_from(lsn.0 % RING_BYTES as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_cut_is_not_found() {
        let recent = RecentWal::default();
        recent.push(Lsn(100), b"abcdef");
        assert_eq!(recent.read(Lsn(102), 4).as_deref(), Some(&b"cdef"[..]));
        assert_eq!(recent.read(Lsn(102), 5), None);
        recent.forget();
        assert_eq!(recent.read(Lsn(102), 4), None);
        recent.push(Lsn(103), b"xyz");
        assert_eq!(recent.read(Lsn(102), 4), None);
        assert_eq!(recent.read(Lsn(103), 3).as_deref(), Some(&b"xyz"[..]));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn what_is_found_is_what_was_pushed(
            start in 1u64..1 << 40,
            sizes in prop::collection::vec(0usize..150_000, 1..8),
            back in 0usize..500_000,
            len in 1usize..200_000,
        ) {
            let recent = RecentWal::default();
            let mut log: Vec<u8> = Vec::new();
            for size in sizes {
                let bytes = (0u8..251).cycle().skip(log.len() % 251);
                let piece: Vec<u8> = bytes.take(size).collect();
                recent.push(Lsn(start + log.len() as u64), &piece);
                log.extend_from_slice(&piece);
            }
            let from = log.len().saturating_sub(back);
            let found = recent.read(Lsn(start + from as u64), len);
            let expected = log.get(from..from + len);
            match found {
                Some(found) => prop_assert_eq!(Some(&found[..]), expected),
                // Only what is too old, or not there.
                None => prop_assert!(expected.is_none() || log.len() - from > RING_BYTES),
            }
        }
    }
}
