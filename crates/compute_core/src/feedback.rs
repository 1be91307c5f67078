//! The page of progress that walproposer keeps in `PGDATA/neon.feedback`.
//!
//! Sixty-four-bit little-endian words: magic, version, sequence (odd while being written), then the values below.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use pg_types::Lsn;

/// File name within the data directory.
pub const FILE_NAME: &str = "neon.feedback";
/// Size of the file.
pub const FILE_LEN: usize = 4096;
/// Words of the file.
pub const WORDS: usize = FILE_LEN / 8;
/// First word.
pub const MAGIC: u64 = 0x4E45_4F4E_4645_4544;
/// Second word.
pub const VERSION: u64 = 1;

const RETRIES: usize = 64;

/// How far the storage has come. A zero LSN means unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Feedback {
    /// The page server has received WAL up to here.
    pub last_received_lsn: Lsn,
    /// It has made WAL up to here durable on its own disk.
    pub disk_consistent_lsn: Lsn,
    /// It has made WAL up to here durable in the object store.
    pub remote_consistent_lsn: Lsn,
    /// A quorum of safekeepers has flushed up to here.
    pub commit_lsn: Lsn,
    /// Logical size of the branch in bytes.
    pub current_timeline_size: u64,
    /// When this was written, in microseconds since the Unix epoch.
    pub updated_at: u64,
}

/// Reads the page. `None` when it is not (yet) a feedback page, or while a writer keeps it busy.
///
/// The writer makes the sequence odd, writes, and makes it even again; a read between two equal, even sequence
/// values saw no write.
pub fn read(words: &[AtomicU64]) -> Option<Feedback> {
    let word = |at: usize| words.get(at).map(|w| u64::from_le(w.load(Ordering::Relaxed)));
    let sequence = || words.get(2).map(|w| u64::from_le(w.load(Ordering::Acquire)));
    for _ in 0..RETRIES {
        let before = sequence()?;
        if before % 2 == 1 {
            std::hint::spin_loop();
            continue;
        }
        if word(0)? != MAGIC || word(1)? != VERSION {
            return None;
        }
        let feedback = Feedback {
            last_received_lsn: Lsn(word(3)?),
            disk_consistent_lsn: Lsn(word(4)?),
            remote_consistent_lsn: Lsn(word(5)?),
            commit_lsn: Lsn(word(6)?),
            current_timeline_size: word(7)?,
            updated_at: word(8)?,
        };
        fence(Ordering::Acquire);
        if sequence()? == before {
            return Some(feedback);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    fn page() -> Vec<AtomicU64> {
        (0..WORDS).map(|_| AtomicU64::new(0)).collect()
    }

    fn write(words: &[AtomicU64], value: u64) {
        let sequence = words[2].load(Ordering::Relaxed);
        words[2].store(sequence + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        words[0].store(MAGIC, Ordering::Relaxed);
        words[1].store(VERSION, Ordering::Relaxed);
        for word in &words[3..9] {
            word.store(value, Ordering::Relaxed);
        }
        words[2].store(sequence + 2, Ordering::Release);
    }

    #[test]
    fn an_empty_or_foreign_page_says_nothing() {
        assert_eq!(read(&page()), None);
        assert_eq!(read(&[]), None);
        let words = page();
        write(&words, 5);
        assert_eq!(read(&words).map(|f| f.commit_lsn), Some(Lsn(5)));
        words[1].store(2, Ordering::Relaxed);
        assert_eq!(read(&words), None);
        words[1].store(VERSION, Ordering::Relaxed);
        words[2].store(7, Ordering::Relaxed);
        assert_eq!(read(&words), None, "a writer that died in the middle");
    }

    #[test]
    fn reads_are_never_torn() {
        let words = page();
        write(&words, 1);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut value = 2;
                while !stop.load(Ordering::Relaxed) {
                    write(&words, value);
                    value += 1;
                }
            });
            for _ in 0..100_000 {
                if let Some(seen) = read(&words) {
                    let value = seen.updated_at;
                    assert_eq!(seen.last_received_lsn, Lsn(value));
                    assert_eq!(seen.current_timeline_size, value);
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
