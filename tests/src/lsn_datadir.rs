//! A data directory as a base backup at an LSN has it, made from one that was stopped cleanly.
//!
//! The data files are those at the end of the WAL, so every LSN from there on is a legal start. `pg_control` is
//! pointed at the start LSN, all WAL is replaced by one segment with page headers, and `neon.signal` says where
//! the record before begins.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use pg_launch::PgInstall;
use pg_types::xlog::{
    SIZE_OF_XLOG_LONG_PHD, SIZE_OF_XLOG_SHORT_PHD, WAL_SEGMENT_SIZE, XLOG_BLCKSZ, XLOG_PAGE_MAGIC,
    XLP_FIRST_IS_CONTRECORD, XLP_LONG_HEADER, segment_file_name, segment_number, segment_offset,
};
use pg_types::{Lsn, PG_TLI};

/// Offsets in `ControlFileData` of PostgreSQL 17 (`catalog/pg_control.h`).
mod control {
    pub(super) const SYSTEM_IDENTIFIER: usize = 0;
    pub(super) const CHECK_POINT: usize = 32;
    pub(super) const CHECK_POINT_COPY_REDO: usize = 40;
    pub(super) const CRC: usize = 288;
}

/// What is known of a cleanly stopped data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndOfWal {
    /// Where the shutdown checkpoint record, the last one, begins.
    pub checkpoint: Lsn,
    /// Where the next record would begin.
    pub end: Lsn,
}

/// Line of `neon.signal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrevLsn {
    /// The record before the start LSN begins there.
    At(Lsn),
    /// There is no record before.
    None,
    /// It is not known.
    Invalid,
}

/// Reads the end of WAL of a cleanly stopped data directory.
pub fn end_of_wal(install: &PgInstall, pgdata: &Path) -> Result<EndOfWal> {
    let control = read_control(pgdata)?;
    let checkpoint = Lsn(u64_at(&control, control::CHECK_POINT)?);
    let output = install
        .command("pg_waldump", None)
        .arg("--path")
        .arg(pgdata.join("pg_wal"))
        .arg(format!("--start={checkpoint}"))
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().context("pg_waldump shows no checkpoint record")?;
    ensure!(line.contains("CHECKPOINT_SHUTDOWN"), "not a shutdown checkpoint: {line}");
    ensure!(text.lines().count() == 1, "there is WAL behind the shutdown checkpoint:\n{text}");
    let len: u64 = line
        .split("len (rec/tot):")
        .nth(1)
        .and_then(|rest| rest.split_once('/')?.1.split_once(','))
        .and_then(|(len, _)| len.trim().parse().ok())
        .with_context(|| format!("no length in {line}"))?;
    Ok(EndOfWal { checkpoint, end: end_of_record(checkpoint, len) })
}

/// Where the next record begins after one of `len` bytes at `start`.
fn end_of_record(start: Lsn, len: u64) -> Lsn {
    let mut position = start.0;
    let mut left = len;
    loop {
        let room = XLOG_BLCKSZ - position % XLOG_BLCKSZ;
        if left <= room {
            return pg_types::xlog::normalize(Lsn(position + left).align());
        }
        left -= room;
        position += room;
        position += pg_types::xlog::page_header_size(Lsn(position));
    }
}

/// Turns the data directory into a base backup at `start`, which is a place where a record can begin.
pub fn convert(pgdata: &Path, start: Lsn, prev: PrevLsn, signal_file: &str) -> Result<()> {
    let mut bytes = read_control(pgdata)?;
    let system_identifier = u64_at(&bytes, control::SYSTEM_IDENTIFIER)?;
    bytes[control::CHECK_POINT..][..8].copy_from_slice(&start.0.to_le_bytes());
    bytes[control::CHECK_POINT_COPY_REDO..][..8].copy_from_slice(&start.0.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..control::CRC]);
    bytes[control::CRC..][..4].copy_from_slice(&crc.to_le_bytes());
    fs::write(pgdata.join("global/pg_control"), bytes)?;

    let wal = pgdata.join("pg_wal");
    for entry in fs::read_dir(&wal)? {
        let path = entry?.path();
        if path.is_file() {
            fs::remove_file(path)?;
        }
    }
    let name = segment_file_name(PG_TLI, segment_number(start));
    fs::write(wal.join(name), segment(start, system_identifier))?;
    let line = match prev {
        PrevLsn::At(lsn) => format!("PREV LSN: {lsn}\n"),
        PrevLsn::None => "PREV LSN: none\n".to_owned(),
        PrevLsn::Invalid => "PREV LSN: invalid\n".to_owned(),
    };
    fs::write(pgdata.join(signal_file), line)?;
    Ok(())
}

/// A segment that holds page headers and not one record.
fn segment(start: Lsn, system_identifier: u64) -> Vec<u8> {
    let offset = segment_offset(start);
    let page = offset - offset % XLOG_BLCKSZ;
    let mut bytes = Vec::new();
    for at in if page == 0 { vec![0] } else { vec![0, page] } {
        let (header, mut info) = match at {
            0 => (SIZE_OF_XLOG_LONG_PHD, XLP_LONG_HEADER),
            _ => (SIZE_OF_XLOG_SHORT_PHD, 0),
        };
        let rest = if at == page { offset - page - header } else { 0 };
        if rest > 0 {
            info |= XLP_FIRST_IS_CONTRECORD;
        }
        bytes.resize(usize::try_from(at).unwrap_or(0), 0);
        bytes.extend(XLOG_PAGE_MAGIC.to_le_bytes());
        bytes.extend(info.to_le_bytes());
        bytes.extend(PG_TLI.to_le_bytes());
        bytes.extend((start.0 - offset + at).to_le_bytes());
        bytes.extend(u32::try_from(rest).unwrap_or(0).to_le_bytes());
        bytes.extend([0; 4]);
        if at == 0 {
            bytes.extend(system_identifier.to_le_bytes());
            bytes.extend(u32::try_from(WAL_SEGMENT_SIZE).unwrap_or(0).to_le_bytes());
            bytes.extend(u32::try_from(XLOG_BLCKSZ).unwrap_or(0).to_le_bytes());
        }
    }
    bytes.resize(usize::try_from(WAL_SEGMENT_SIZE).unwrap_or(0), 0);
    bytes
}

fn read_control(pgdata: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(pgdata.join("global/pg_control"))?;
    let crc = bytes.get(control::CRC..control::CRC + 4).context("pg_control is too short")?;
    if crc32c::crc32c(&bytes[..control::CRC]).to_le_bytes() != crc {
        bail!("the checksum of pg_control is not where this version has it");
    }
    Ok(bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk()).context("too short")?;
    Ok(u64::from_le_bytes(*bytes))
}

/// WAL of several runs of a timeline, put together as a safekeeper would: each run adds its bytes from its start
/// LSN on, and never touches those before.
#[derive(Debug)]
pub struct WalArchive {
    dir: PathBuf,
    /// Where the next run has to begin; none before the first.
    end: Option<Lsn>,
}

impl WalArchive {
    /// An archive in the existing folder `dir`.
    pub fn new(dir: &Path) -> WalArchive {
        WalArchive { dir: dir.to_owned(), end: None }
    }

    /// Adds the WAL that a run has written from `start` to `end`.
    pub fn add(&mut self, pg_wal: &Path, start: Lsn, end: Lsn) -> Result<()> {
        // The first run also gives the header of the page that it begins in.
        let mut position = match self.end {
            None => start.0 - segment_offset(start),
            Some(previous) => {
                ensure!(previous == start, "the run begins at {start}, not at {previous}");
                // A header that is just before the start belongs to the run.
                pg_types::xlog::before_page_header(start).0
            }
        };
        // Nor does the run reach into a page whose header it has not written.
        let stop = pg_types::xlog::before_page_header(end).0;
        while position < stop {
            let name = segment_file_name(PG_TLI, segment_number(Lsn(position)));
            let from = segment_offset(Lsn(position));
            let to = (from + (stop - position)).min(WAL_SEGMENT_SIZE);
            let bytes =
                fs::read(pg_wal.join(&name)).with_context(|| format!("no segment {name}"))?;
            let target = self.dir.join(&name);
            let mut file =
                fs::OpenOptions::new().create(true).truncate(false).write(true).open(&target)?;
            file.set_len(WAL_SEGMENT_SIZE)?;
            file.seek(SeekFrom::Start(from))?;
            let range = usize::try_from(from)?..usize::try_from(to)?;
            file.write_all(bytes.get(range).context("a segment is too short")?)?;
            position += to - from;
        }
        self.end = Some(end);
        Ok(())
    }

    /// Reads all records from `start` to the end with `pg_waldump`, which checks their checksums and that each
    /// names the one before it. Returns its lines.
    pub fn read(&self, install: &PgInstall, start: Lsn) -> Result<Vec<String>> {
        let end = self.end.context("nothing was added")?;
        let mut command: Command = install.command("pg_waldump", None);
        let output = command
            .arg("--path")
            .arg(&self.dir)
            .arg(format!("--start={start}"))
            .arg(format!("--end={end}"))
            .output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && errors.is_empty(), "pg_waldump: {errors}");
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_end_where_the_next_can_begin() {
        assert_eq!(end_of_record(Lsn(0x100_0028), 114), Lsn(0x100_00A0));
        // Over a page boundary, up to one, and up to a segment's end.
        assert_eq!(end_of_record(Lsn(0x100_1FF0), 114), Lsn(0x100_2018 + 104));
        assert_eq!(end_of_record(Lsn(0x100_2000 - 120), 114), Lsn(0x100_2018));
        assert_eq!(end_of_record(Lsn(0x200_0000 - 120), 114), Lsn(0x200_0028));
    }
}
