//! The cache's file. It is opened once, by the postmaster; all other processes inherit the descriptor.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::OnceLock;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::uio;
use pg_types::BLCKSZ;
use pg_types::page::{self, Page};

use crate::ffi::guc_file_cache as guc;

static FILE: OnceLock<File> = OnceLock::new();

/// Opens the file, empty.
pub fn open() -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).mode(0o600);
    // Set only once: the postmaster does not make shared memory anew, since `restart_after_crash` is off.
    let _ = FILE.set(options.open(guc::path())?);
    Ok(())
}

fn file() -> io::Result<&'static File> {
    FILE.get().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

/// Reads consecutive pages with one call.
///
/// No page of zeros is ever stored, so one that is read comes from a hole: somebody shortened the file.
pub fn read(offset: u64, pages: &mut [&mut Page]) -> io::Result<()> {
    read_bytes(offset, pages)?;
    if pages.iter().any(|page| page::is_new(page)) {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file has a hole"));
    }
    Ok(())
}

fn read_bytes(offset: u64, pages: &mut [&mut Page]) -> io::Result<()> {
    let file = file()?;
    let wanted = pages.len() * BLCKSZ;
    let done = match &mut *pages {
        [page] => file.read_at(&mut page[..], offset)?,
        pages => {
            let mut slices: Vec<IoSliceMut<'_>> =
                pages.iter_mut().map(|page| IoSliceMut::new(&mut page[..])).collect();
            let offset = i64::try_from(offset).map_err(io::Error::other)?;
            uio::preadv(file, &mut slices, offset)?
        }
    };
    if done == wanted {
        return Ok(());
    }
    // A read of a file that ends early ends early. Some file systems do that within a file, too.
    for (page, at) in pages.iter_mut().zip(0u64..) {
        file.read_exact_at(&mut page[..], offset + at * BLCKSZ as u64)?;
    }
    Ok(())
}

/// Writes a page.
pub fn write(offset: u64, page: &Page) -> io::Result<()> {
    file()?.write_all_at(page, offset)
}

/// Gives the disk space of a range back.
pub fn punch(offset: u64, bytes: u64) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let offset = i64::try_from(offset).map_err(io::Error::other)?;
    let bytes = i64::try_from(bytes).map_err(io::Error::other)?;
    Ok(fallocate(file()?, flags, offset, bytes)?)
}

/// Gives all disk space back.
pub fn empty() -> io::Result<()> {
    file()?.set_len(0)
}
