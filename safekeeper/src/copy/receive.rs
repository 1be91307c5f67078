//! The receiver's side. Nothing in the stream is believed: what is written is loaded before it counts.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use pg_types::xlog::WAL_SEGMENT_SIZE;

use super::END;
use crate::control_file::{CONTROL_FILE_NAME, ControlFile, ControlFileError};
use crate::durable::{self, Context, FileError};
use crate::wal_storage::segment_path_for_copy;

/// Longest control file that is taken: a term history of 64 Ki entries is far shorter.
const CONTROL_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Why a copy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The stream ended early, or is no tar stream.
    #[error("the copy is not whole: {0}")]
    Stream(#[from] io::Error),
    /// The stream ended in good order but without its last entry: the donor broke off.
    #[error("the donor broke the copy off")]
    BrokenOff,
    /// An entry that does not belong there.
    #[error("the copy has an unexpected entry \"{0}\"")]
    Entry(String),
    /// The control file.
    #[error(transparent)]
    ControlFile(#[from] ControlFileError),
    /// Writing here.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Unpacks a copy into `dir`, which exists and is empty. `take` may change the control file before it is saved. Everything
/// is durable on return but the directory's own name.
pub fn receive(
    from: impl Read,
    dir: &Path,
    take: impl FnOnce(&mut ControlFile) -> Result<(), ControlFileError>,
) -> Result<(), ReceiveError> {
    let mut archive = tar::Archive::new(from);
    // As they are: extensions of the format could make one header as long as they like, and none is used.
    let mut entries = archive.entries()?.raw(true);
    let mut control = entries.next().ok_or(ReceiveError::BrokenOff)??;
    let name = entry_name(&control)?;
    if name != CONTROL_FILE_NAME || control.size() > CONTROL_BYTES_MAX {
        return Err(ReceiveError::Entry(name));
    }
    let mut bytes = Vec::new();
    control.read_to_end(&mut bytes)?;
    let mut control = ControlFile::decode(&bytes)?;
    take(&mut control)?;
    control.save(dir)?;
    for entry in entries {
        let mut entry = entry?;
        let name = entry_name(&entry)?;
        if name == END {
            durable::fsync_dir(dir)?;
            return Ok(());
        }
        let size = entry.size();
        let unfinished = size < WAL_SEGMENT_SIZE;
        let path = segment_path_for_copy(dir, &name, unfinished)
            .filter(|_| size <= WAL_SEGMENT_SIZE)
            .ok_or(ReceiveError::Entry(name))?;
        let mut file = File::create(&path).context("create", &path)?;
        io::copy(&mut entry, &mut file)?;
        write_zeros(&mut file, WAL_SEGMENT_SIZE - size).context("fill", &path)?;
        file.sync_all().context("fsync", &path)?;
    }
    Err(ReceiveError::BrokenOff)
}

fn entry_name<R: Read>(entry: &tar::Entry<'_, R>) -> Result<String, ReceiveError> {
    Ok(entry.path()?.to_string_lossy().into_owned())
}

/// Real zeros: WAL is written over them later without a change of the file's metadata.
fn write_zeros(file: &mut File, mut len: u64) -> io::Result<()> {
    let zeros = vec![0; 256 * 1024];
    while len > 0 {
        let now = usize::try_from(len).unwrap_or(zeros.len()).min(zeros.len());
        file.write_all(zeros.get(..now).unwrap_or_default())?;
        len -= now as u64;
    }
    Ok(())
}
