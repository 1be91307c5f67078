//! Segment files: names, creation, completion, removal.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use pg_types::xlog::{WAL_SEGMENT_SIZE, segment_file_name, segment_number, segment_offset};
use pg_types::{Lsn, PG_TLI};

use super::pages::{PAGE, Pages};
use crate::durable::{self, Context, FileError};

const PARTIAL_SUFFIX: &str = ".partial";
/// The spare under preparation; its suffix makes it rubbish after a crash.
const SPARE_NAME: &str = "next-segment.tmp";
/// Unit of zero-filling and of looking for zeros.
const BLOCK: usize = 256 * 1024;
/// So much WAL is worth a request to the disk of its own, when it comes faster than it is synced.
const WRITEBACK_STEP: u64 = 1024 * 1024;

pub(super) fn complete_path(dir: &Path, segno: u64) -> PathBuf {
    dir.join(segment_file_name(PG_TLI, segno))
}

pub(super) fn partial_path(dir: &Path, segno: u64) -> PathBuf {
    dir.join(segment_file_name(PG_TLI, segno) + PARTIAL_SUFFIX)
}

/// Segment number of a file name; `None` for files that are no segments.
pub(super) fn parse_name(name: &str) -> Option<u64> {
    let stem = name.strip_suffix(PARTIAL_SUFFIX).unwrap_or(name);
    if stem.len() != 24 || !stem.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let id = u64::from_str_radix(stem.get(8..16)?, 16).ok()?;
    let low = u64::from_str_radix(stem.get(16..24)?, 16).ok()?;
    let segno = id.checked_mul(0x1_0000_0000 / WAL_SEGMENT_SIZE)?.checked_add(low)?;
    (segment_file_name(PG_TLI, segno) == stem).then_some(segno)
}

/// Numbers of all segments in `dir`, ascending.
pub(super) fn numbers(dir: &Path) -> Result<Vec<u64>, FileError> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir).context("list", dir)? {
        let name = entry.context("list", dir)?.file_name();
        numbers.extend(name.to_str().and_then(parse_name));
    }
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

/// Removes what a crash left of a spare segment.
pub(super) fn remove_leftovers(dir: &Path) -> Result<(), FileError> {
    remove_if_there(&dir.join(SPARE_NAME)).map(drop)
}

fn remove_if_there(path: &Path) -> Result<bool, FileError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(FileError { action: "remove", path: path.to_owned(), source }),
    }
}

/// Removes segment `first` and all behind it, the last one first and each removal durable before the next, so
/// that a crash leaves a log without holes.
pub(super) fn remove_from(dir: &Path, first: u64) -> Result<(), FileError> {
    for segno in numbers(dir)?.into_iter().rev().take_while(|&segno| segno >= first) {
        remove_if_there(&partial_path(dir, segno))?;
        remove_if_there(&complete_path(dir, segno))?;
        durable::fsync_dir(dir)?;
    }
    Ok(())
}

/// Removes complete segments below number `end`, oldest first; returns how many.
pub(super) fn remove_below(dir: &Path, end: u64) -> Result<u64, FileError> {
    let mut removed = 0;
    for segno in numbers(dir)?.into_iter().take_while(|&segno| segno < end) {
        removed += u64::from(remove_if_there(&complete_path(dir, segno))?);
    }
    if removed > 0 {
        durable::fsync_dir(dir)?;
    }
    Ok(removed)
}

/// Opens a segment for reading, complete or not. It may be renamed at any moment: every name is tried twice.
pub(super) fn open_any(dir: &Path, segno: u64) -> Result<Option<File>, FileError> {
    for path in [complete_path(dir, segno), partial_path(dir, segno)].iter().cycle().take(4) {
        match File::open(path) {
            Ok(file) => return Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(FileError { action: "open", path: path.clone(), source }),
        }
    }
    Ok(None)
}

/// A zero-filled file of a segment's size, durable. Written past the page cache where the file system can: copying
/// zeros into the cache costs as much processor time as all the rest of writing WAL.
fn create_zero_filled(path: &Path) -> Result<(), FileError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    let direct = options.clone().custom_flags(OFlag::O_DIRECT.bits()).open(path);
    let file = match direct {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => options.open(path),
        other => other,
    };
    let file = file.context("create", path)?;
    // Direct I/O wants memory that begins at a block boundary: there is one in twice the size.
    let memory = vec![0u8; 2 * BLOCK];
    let unaligned = memory.as_ptr().addr() % BLOCK;
    let zeros = memory.get(BLOCK - unaligned..2 * BLOCK - unaligned).unwrap_or_default();
    for offset in (0..WAL_SEGMENT_SIZE).step_by(BLOCK) {
        file.write_all_at(zeros, offset).context("fill", path)?;
    }
    file.sync_all().context("fsync", path)
}

/// A zero-filled file that is made while the current segment fills.
#[derive(Debug, Default)]
pub(super) struct SparePreparation {
    running: Option<JoinHandle<Result<(), FileError>>>,
}

impl SparePreparation {
    /// Starts the work unless it is under way or done.
    pub(super) fn begin(&mut self, dir: &Path) {
        if self.running.is_none() {
            let path = dir.join(SPARE_NAME);
            let work = move || create_zero_filled(&path);
            // Without a thread the segment is made when it is needed, only slower.
            self.running = std::thread::Builder::new().name("wal-spare".into()).spawn(work).ok();
        }
    }

    /// Moves a zero-filled file to `path`: the spare, or a new one. Durable on return.
    fn take(&mut self, dir: &Path, path: &Path) -> Result<(), FileError> {
        let spare = dir.join(SPARE_NAME);
        match self.running.take().map(JoinHandle::join) {
            Some(Ok(prepared)) => prepared?,
            // Not prepared, or the thread panicked: either way the file is made here.
            Some(Err(_)) | None => create_zero_filled(&spare)?,
        }
        durable::rename(&spare, path)
    }
}

impl Drop for SparePreparation {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            // The thread must not write into a directory that its owner believes to be quiet. Its result is of
            // no interest any more.
            drop(running.join());
        }
    }
}

/// Opens a file so that writes pass the kernel's cache and are durable on return; `None` where the file system cannot.
fn open_direct(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlag::O_DIRECT | OFlag::O_DSYNC;
    match OpenOptions::new().write(true).custom_flags(flags.bits()).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
        Err(error) => Err(error),
    }
}

/// The segment that is being written.
///
/// A few pages, which is what a commit comes with, are written directly and with one call: through the kernel's cache the
/// same bytes cost a third more processor time, and each safekeeper pays it for each commit.
#[derive(Debug)]
pub(super) struct Segment {
    number: u64,
    file: File,
    direct: Option<File>,
    dir: PathBuf,
    pending: Pages,
    /// Whether `file` has bytes that are not durable.
    is_dirty: bool,
}

impl Segment {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    fn path(&self) -> PathBuf {
        partial_path(&self.dir, self.number)
    }

    /// The path is put together only here: commits have no use for it.
    fn failed(&self, action: &'static str, source: io::Error) -> FileError {
        FileError { action, path: self.path(), source }
    }

    /// Opens an unfinished segment to write on at `offset`; `None` when there is none.
    pub(super) fn open_partial(
        dir: &Path,
        segno: u64,
        offset: u64,
    ) -> Result<Option<Segment>, FileError> {
        let path = partial_path(dir, segno);
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => {
                let begun = offset % PAGE as u64;
                let mut written = vec![0; usize::try_from(begun).unwrap_or(0)];
                file.read_exact_at(&mut written, offset - begun).context("read", &path)?;
                let mut pending = Pages::at(offset - begun);
                pending.begin_with(&written);
                let direct = open_direct(&path).context("open", &path)?;
                let (dir, is_dirty) = (dir.to_owned(), false);
                Ok(Some(Segment { number: segno, file, direct, dir, pending, is_dirty }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(FileError { action: "open", path, source }),
        }
    }

    /// Makes a new segment of zeros, durable with its name, to write at `offset`.
    pub(super) fn create(
        dir: &Path,
        segno: u64,
        offset: u64,
        spare: &mut SparePreparation,
    ) -> Result<Segment, FileError> {
        let path = partial_path(dir, segno);
        spare.take(dir, &path)?;
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        Segment::open_partial(dir, segno, offset)?.ok_or_else(gone).context("open", &path)
    }

    /// Opens the segment that holds `end_lsn` and makes everything behind that zero; a complete one becomes
    /// unfinished again. `None` when there is no such segment yet.
    pub(super) fn reopen_cut(dir: &Path, end_lsn: Lsn) -> Result<Option<Segment>, FileError> {
        let segno = segment_number(end_lsn);
        let (partial, complete) = (partial_path(dir, segno), complete_path(dir, segno));
        if !partial.exists() && complete.exists() {
            durable::rename(&complete, &partial)?;
        }
        let offset = segment_offset(end_lsn);
        let Some(segment) = Segment::open_partial(dir, segno, offset)? else { return Ok(None) };
        segment.zero_from(offset).context("zero the end of", &partial)?;
        segment.file.sync_all().context("fsync", &partial)?;
        Ok(Some(segment))
    }

    /// Writes zeros where there are none, to save the disk the whole tail at every election.
    fn zero_from(&self, mut offset: u64) -> io::Result<()> {
        self.file.set_len(WAL_SEGMENT_SIZE)?;
        let mut block = vec![0; BLOCK];
        while offset < WAL_SEGMENT_SIZE {
            let left = usize::try_from(WAL_SEGMENT_SIZE - offset).unwrap_or(BLOCK);
            let part = block.get_mut(..left.min(BLOCK)).unwrap_or_default();
            self.file.read_exact_at(part, offset)?;
            if part.iter().any(|&byte| byte != 0) {
                part.fill(0);
                self.file.write_all_at(part, offset)?;
            }
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Appends `data` where the last append ended. It may be in the file before [`Self::sync`], and is in it afterwards.
    pub(super) fn append(&mut self, data: &[u8]) -> Result<(), FileError> {
        if self.pending.extend(data) {
            return Ok(());
        }
        self.append_much(data).map_err(|error| self.failed("write", error))
    }

    /// Through the kernel's cache: the unfinished page, whole pages, and what is left as the new unfinished page.
    fn append_much(&mut self, data: &[u8]) -> io::Result<()> {
        self.write_pending()?;
        let to_boundary = self.pending.unfinished().wrapping_neg() % PAGE;
        let (first, rest) = data.split_at(to_boundary.min(data.len()));
        self.pending.extend(first);
        self.write_pending()?;
        let (pages, last) = rest.split_at(rest.len() - rest.len() % PAGE);
        let (_, offset) = self.pending.padded();
        self.file.write_all_at(pages, offset)?;
        self.begin_writeback(offset, offset + pages.len() as u64);
        self.pending.skip(pages.len());
        self.pending.extend(last);
        self.is_dirty = true;
        Ok(())
    }

    /// Has the kernel write what it holds of this file, a [`WRITEBACK_STEP`] or more at a time, once `begin..end` was added: the
    /// disk then works while more WAL comes in, and not only when a sync waits for it. Linux does so for pages that are said
    /// not to be needed any more, and forgets those that are written already (`generic_fadvise`, `mm/fadvise.c`).
    fn begin_writeback(&self, begin: u64, end: u64) {
        let from = begin - begin % WRITEBACK_STEP;
        if from + WRITEBACK_STEP <= end {
            let [from, len] = [from, end - from].map(|n| i64::try_from(n).unwrap_or_default());
            // Only advice: the sync writes what this does not, and reports what went wrong with either.
            let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            let _ = posix_fadvise(&self.file, from, len, advice);
        }
    }

    fn write_pending(&mut self) -> io::Result<()> {
        if self.pending.has_news() {
            let (pages, offset) = self.pending.padded();
            self.file.write_all_at(pages, offset)?;
            self.pending.settle();
            self.is_dirty = true;
        }
        Ok(())
    }

    fn write_pending_directly(&mut self) -> io::Result<()> {
        let Some(direct) = &self.direct else { return self.write_pending() };
        let (pages, offset) = self.pending.padded();
        match direct.write_all_at(pages, offset) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                tracing::warn!(path = %self.path().display(), "no direct I/O: {error}");
                self.direct = None;
                self.write_pending()
            }
            Err(error) => Err(error),
            Ok(()) => {
                self.pending.settle();
                Ok(())
            }
        }
    }

    /// Makes the bytes durable. The file's size never changes, so no metadata has to be.
    pub(super) fn sync(&mut self) -> Result<(), FileError> {
        if self.pending.has_news() {
            let written =
                if self.is_dirty { self.write_pending() } else { self.write_pending_directly() };
            written.map_err(|error| self.failed("write", error))?;
        }
        if self.is_dirty {
            self.file.sync_data().map_err(|error| self.failed("fdatasync", error))?;
            self.is_dirty = false;
        }
        Ok(())
    }

    /// The last byte is written: durable first, then the name of a complete segment.
    pub(super) fn complete(mut self) -> Result<(), FileError> {
        self.sync()?;
        durable::rename(&self.path(), &complete_path(&self.dir, self.number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names() {
        for segno in [1, 255, 256, 0x123_4567] {
            assert_eq!(parse_name(&segment_file_name(1, segno)), Some(segno));
            assert_eq!(parse_name(&(segment_file_name(1, segno) + ".partial")), Some(segno));
        }
        for other in ["safekeeper.control", "next-segment.tmp", "000000020000000000000001", "xyz"] {
            assert_eq!(parse_name(other), None, "{other}");
        }
    }

    #[test]
    fn a_prepared_spare_becomes_the_segment() {
        let dir = tempfile::tempdir().unwrap();
        let mut spare = SparePreparation::default();
        spare.begin(dir.path());
        spare.begin(dir.path());
        let segment = Segment::create(dir.path(), 3, 0, &mut spare).unwrap();
        assert_eq!(segment.file.metadata().unwrap().len(), WAL_SEGMENT_SIZE);
        assert_eq!(numbers(dir.path()).unwrap(), [3]);
        assert!(!dir.path().join(SPARE_NAME).exists());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
        #[test]
        fn appends_of_any_sizes_write_what_they_say(
            start in 0u64..20_000,
            sizes in prop::collection::vec(prop_oneof![4 => 0usize..10_000, 1 => 0usize..200_000], 1..12),
            sync: bool,
            reopen: bool,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut segment = Segment::create(dir.path(), 1, start, &mut SparePreparation::default()).unwrap();
            let mut expected = vec![0u8; usize::try_from(start).unwrap()];
            for size in sizes {
                let data: Vec<u8> = (1u8..=255).cycle().skip(expected.len() % 255).take(size).collect();
                segment.append(&data).unwrap();
                expected.extend_from_slice(&data);
                if sync || reopen {
                    segment.sync().unwrap();
                }
                if reopen {
                    segment = Segment::open_partial(dir.path(), 1, expected.len() as u64).unwrap().unwrap();
                }
            }
            segment.sync().unwrap();
            expected.resize(usize::try_from(WAL_SEGMENT_SIZE).unwrap(), 0);
            prop_assert!(fs::read(partial_path(dir.path(), 1)).unwrap() == expected);
        }
    }
}
