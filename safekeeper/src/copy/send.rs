//! The donor's side.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes};
use pg_types::xlog::{segment_file_name, segment_number, segment_start};
use pg_types::{Lsn, PG_TLI};
use tokio::runtime::Handle;

use super::END;
use crate::control_file::{CONTROL_FILE_NAME, ControlFileError};
use crate::durable::FileError;
use crate::timeline::core::CopyState;
use crate::timeline::{Timeline, TimelineError};
use crate::wal_storage::{WalReader, oldest_wal};

/// Bytes read at a time.
const CHUNK: usize = 256 * 1024;
const FILE_MODE: u32 = 0o600;

/// Why a copy was broken off. The receiver sees a stream without its end.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The timeline went out of service.
    #[error(transparent)]
    Timeline(#[from] TimelineError),
    /// The control file cannot be made.
    #[error(transparent)]
    ControlFile(#[from] ControlFileError),
    /// The directory of the timeline cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another history began meanwhile, so the bytes may belong to either.
    #[error("the log was cut while it was copied")]
    Cut,
    /// Reading WAL, or writing to the receiver.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Writes a copy of the timeline as it is now. Blocking; `runtime` is where the timeline's tasks live.
pub fn send(timeline: &Timeline, runtime: &Handle, out: impl Write) -> Result<(), SendError> {
    let (state, _kept) = runtime.block_on(timeline.begin_copy())?;
    let mut archive = tar::Builder::new(out);
    entry(&mut archive, CONTROL_FILE_NAME, &state.control.encode()?)?;
    // All that is here, since the object store may lack what page servers need no more.
    let oldest_lsn = oldest_wal(timeline.dir())?.unwrap_or(state.flush_lsn);
    let mut begin_lsn = oldest_lsn.max(state.control.acceptor_state.local_start_lsn);
    while begin_lsn < state.flush_lsn {
        let segno = segment_number(begin_lsn);
        let end_lsn = state.flush_lsn.min(segment_start(segno + 1));
        let wal = WalBetween {
            reader: timeline.reader(),
            // A log that begins inside a segment has zeros in front, which are read like WAL.
            next_lsn: segment_start(segno),
            end_lsn,
            chunk: Bytes::new(),
        };
        let size = end_lsn.saturating_sub(segment_start(segno));
        append(&mut archive, &segment_file_name(PG_TLI, segno), size, wal)?;
        begin_lsn = end_lsn;
    }
    let now: CopyState = runtime.block_on(timeline.copy_state())?;
    if !state.continues_in(&now) {
        return Err(SendError::Cut);
    }
    entry(&mut archive, END, b"")?;
    archive.into_inner()?.flush()?;
    Ok(())
}

fn entry<W: Write>(archive: &mut tar::Builder<W>, name: &str, content: &[u8]) -> io::Result<()> {
    append(archive, name, content.len() as u64, content)
}

fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    name: &str,
    size: u64,
    content: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(FILE_MODE);
    archive.append_data(&mut header, name, content)
}

/// The bytes of the log between two positions of one segment.
struct WalBetween {
    reader: WalReader,
    next_lsn: Lsn,
    end_lsn: Lsn,
    chunk: Bytes,
}

impl Read for WalBetween {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.chunk.is_empty() {
            let left = self.end_lsn.saturating_sub(self.next_lsn);
            let len = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            if len == 0 {
                return Ok(0);
            }
            self.chunk = self.reader.read(self.next_lsn, len).map_err(io::Error::other)?;
            self.next_lsn += self.chunk.len() as u64;
        }
        let len = buf.len().min(self.chunk.len());
        self.chunk.split_to(len).copy_to_slice(buf.get_mut(..len).unwrap_or_default());
        Ok(len)
    }
}
