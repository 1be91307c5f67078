//! `PGDATA/neon.feedback`: progress of storage for the backends of the compute (backpressure, sizes).
//!
//! ```text
//! 4096 bytes; little-endian u64 words
//! 0 magic 0x4E454F4E46454544   1 version 1          2 sequence, odd while being written
//! 3 last_received_lsn          4 disk_consistent_lsn     5 remote_consistent_lsn
//! 6 quorum commit_lsn          7 current_timeline_size   8 updated_at, µs since 1970
//! ```
//!
//! The writer makes the sequence odd, writes words 3–8, and makes it even again, each with one `pwrite`; the reader maps
//! or reads the file and takes words 3–8 only if the sequence was even and the same before and after. The file is written
//! in place and never replaced, so that a mapping of it stays good while walproposers come and go. Zero means unknown.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use pg_types::Lsn;
use pg_wire::replication::PageserverFeedback;

/// Name of the file in the data directory.
pub const FEEDBACK_FILE_NAME: &str = "neon.feedback";
/// Word 0.
pub const FEEDBACK_MAGIC: u64 = 0x4E45_4F4E_4645_4544;
/// Word 1.
pub const FEEDBACK_VERSION: u64 = 1;
const FILE_BYTES: u64 = 4096;
const SEQUENCE_OFFSET: u64 = 2 * 8;
const VALUES_OFFSET: u64 = 3 * 8;

/// The writing side.
#[derive(Debug)]
pub(crate) struct FeedbackFile {
    file: File,
    sequence: u64,
    written: Option<(PageserverFeedback, Lsn)>,
}

impl FeedbackFile {
    /// Opens or creates the file; until the first [`FeedbackFile::write`] everything is unknown.
    pub(crate) fn open(pgdata: &Path) -> io::Result<FeedbackFile> {
        let path = pgdata.join(FEEDBACK_FILE_NAME);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        // The compute may run as another user.
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.set_len(FILE_BYTES)?;
        let mut sequence = [0; 8];
        file.read_exact_at(&mut sequence, SEQUENCE_OFFSET)?;
        // Odd when the former writer died in the middle: `begin` leaves it odd.
        let mut feedback =
            FeedbackFile { file, sequence: u64::from_le_bytes(sequence), written: None };
        feedback.write(&PageserverFeedback::default(), Lsn::INVALID)?;
        Ok(feedback)
    }

    /// Publishes values, unless they are what is there already.
    pub(crate) fn write(
        &mut self,
        feedback: &PageserverFeedback,
        commit_lsn: Lsn,
    ) -> io::Result<()> {
        if self.written == Some((*feedback, commit_lsn)) {
            return Ok(());
        }
        let odd = self.sequence.wrapping_add(1) | 1;
        self.write_words(0, &[FEEDBACK_MAGIC, FEEDBACK_VERSION, odd])?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let values = [
            feedback.last_received_lsn.0,
            feedback.disk_consistent_lsn.0,
            feedback.remote_consistent_lsn.0,
            commit_lsn.0,
            feedback.current_timeline_size,
            u64::try_from(now).unwrap_or(u64::MAX),
        ];
        self.write_words(VALUES_OFFSET, &values)?;
        self.sequence = odd.wrapping_add(1);
        self.write_words(SEQUENCE_OFFSET, &[self.sequence])?;
        self.written = Some((*feedback, commit_lsn));
        Ok(())
    }

    fn write_words(&self, offset: u64, words: &[u64]) -> io::Result<()> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.file.write_all_at(&bytes, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(dir: &Path) -> Vec<u64> {
        let bytes = std::fs::read(dir.join(FEEDBACK_FILE_NAME)).unwrap();
        assert_eq!(bytes.len(), 4096);
        bytes.chunks(8).take(9).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
    }

    #[test]
    fn words_are_where_the_reader_looks() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = FeedbackFile::open(dir.path()).unwrap();
        assert_eq!(words(dir.path())[..8], [FEEDBACK_MAGIC, 1, 2, 0, 0, 0, 0, 0]);
        let feedback = PageserverFeedback {
            current_timeline_size: 9,
            last_received_lsn: Lsn(3),
            disk_consistent_lsn: Lsn(2),
            remote_consistent_lsn: Lsn(1),
            ..PageserverFeedback::default()
        };
        file.write(&feedback, Lsn(4)).unwrap();
        let after = words(dir.path());
        assert_eq!(after[..8], [FEEDBACK_MAGIC, 1, 4, 3, 2, 1, 4, 9]);
        assert!(after[8] > 0);
        file.write(&feedback, Lsn(4)).unwrap();
        assert_eq!(words(dir.path()), after, "nothing new, nothing written");
    }

    /// A writer that died between both sequence numbers leaves an odd one; the next one repairs it.
    #[test]
    fn a_torn_write_is_repaired() {
        let dir = tempfile::tempdir().unwrap();
        let file = FeedbackFile::open(dir.path()).unwrap();
        file.write_words(SEQUENCE_OFFSET, &[7]).unwrap();
        FeedbackFile::open(dir.path()).unwrap();
        assert_eq!(words(dir.path())[2] % 2, 0);
        assert!(words(dir.path())[2] > 7);
    }
}
