//! WAL of this server: from WAL buffers while it is there, else from its segment files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use bytes::Bytes;
use pg_types::Lsn;
use pg_types::xlog::{
    WAL_SEGMENT_SIZE, segment_file_name, segment_number, segment_offset, send_len,
};

use crate::ffi::xlog_sender;

/// WAL that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("could not read WAL at {lsn} from \"{path}\": {source}", path = path.display())]
pub struct ReadError {
    lsn: Lsn,
    path: PathBuf,
    source: io::Error,
}

/// Reads WAL; one segment file is kept open.
pub struct LocalWal {
    timeline: u32,
    segment: Option<(u64, File)>,
}

impl LocalWal {
    /// WAL of a timeline of Postgres' own numbering.
    pub fn new(timeline: u32) -> LocalWal {
        LocalWal { timeline, segment: None }
    }

    /// A piece from `begin_lsn` on, up to `end_lsn` at most, below which everything has been written. Nothing when
    /// there is nothing.
    pub fn read(&mut self, begin_lsn: Lsn, end_lsn: Lsn) -> Result<Bytes, ReadError> {
        let length = send_len(begin_lsn, end_lsn.saturating_sub(begin_lsn));
        let mut wal = vec![0; usize::try_from(length).unwrap_or_default()];
        if wal.is_empty() {
            return Ok(Bytes::new());
        }
        let read = xlog_sender::read_from_buffers(begin_lsn, &mut wal, self.timeline);
        let rest = wal.get_mut(read..).unwrap_or_default();
        self.read_from_file(begin_lsn + read as u64, rest)?;
        Ok(wal.into())
    }

    fn read_from_file(&mut self, mut lsn: Lsn, mut wal: &mut [u8]) -> Result<(), ReadError> {
        while !wal.is_empty() {
            let number = segment_number(lsn);
            let path = PathBuf::from("pg_wal").join(segment_file_name(self.timeline, number));
            let offset = segment_offset(lsn);
            let in_segment = usize::try_from(WAL_SEGMENT_SIZE - offset).unwrap_or(usize::MAX);
            let (piece, rest) = wal.split_at_mut(in_segment.min(wal.len()));
            let result =
                self.open(number, &path).and_then(|file| file.read_exact_at(piece, offset));
            result.map_err(|source| ReadError { lsn, path, source })?;
            lsn += piece.len() as u64;
            wal = rest;
        }
        Ok(())
    }

    fn open(&mut self, number: u64, path: &PathBuf) -> io::Result<&File> {
        // A segment that is not wanted any more may be renamed to a later one.
        self.segment.take_if(|(open, _)| *open != number);
        let (_, file) = match self.segment.take() {
            Some(segment) => self.segment.insert(segment),
            None => self.segment.insert((number, File::open(path)?)),
        };
        Ok(file)
    }
}
