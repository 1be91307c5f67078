//! Local files for pages of unlogged build phases (design D4). The rules are in `compute_core::spill`.
//!
//! Files are opened for each operation: builds that outgrow shared buffers are rare, and a descriptor kept open could
//! outlive its file. Nothing is synced: the files are worthless after a crash or restart.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use compute_core::spill::{self as core, SPILL_DIRECTORY};
use pg_types::page::{self, Page, SIZE_OF_PAGE_HEADER};
use pg_types::{BLCKSZ, BlockNumber, Oid, RelTag};

use crate::counters::{self, Counter};
use crate::ffi::shmem;

/// Makes an empty spill directory, at server start.
pub fn reset() -> io::Result<()> {
    match fs::remove_dir_all(SPILL_DIRECTORY) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir(SPILL_DIRECTORY)
}

/// Whether the fork has spilled pages.
pub fn has_file(rel: RelTag) -> bool {
    let any = shmem::fixed().is_some_and(|fixed| fixed.spilled_forks.load(Ordering::Acquire) > 0);
    any && shmem::spilled_read(|spilled| core::has_file(spilled, rel))
}

fn offset(block: BlockNumber) -> u64 {
    u64::from(block) * BLCKSZ as u64
}

/// Fills `bytes` from the start of a block's place; zeros where the file has nothing.
fn read_at(file: &File, block: BlockNumber, bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset(block) + filled as u64) {
            Ok(0) => {
                rest.fill(0);
                return Ok(());
            }
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The fork's file. There may be none although the fork is in the table: who notes the first page makes the file just
/// after that.
fn open(rel: RelTag, options: &OpenOptions) -> io::Result<Option<File>> {
    if !has_file(rel) {
        return Ok(None);
    }
    match options.open(core::file_path(rel)) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes the fork's file, if there is one.
fn remove_file(rel: RelTag) -> io::Result<()> {
    match fs::remove_file(core::file_path(rel)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether the block's place holds a page.
fn holds_page(file: &File, block: BlockNumber) -> io::Result<bool> {
    let mut header = [0; SIZE_OF_PAGE_HEADER];
    read_at(file, block, &mut header)?;
    Ok(header.iter().any(|byte| *byte != 0))
}

/// Reads a spilled page; `false` when the block is not spilled, and `page` is then undefined.
pub fn read(rel: RelTag, block: BlockNumber, page: &mut Page) -> io::Result<bool> {
    let Some(file) = open(rel, OpenOptions::new().read(true))? else { return Ok(false) };
    read_at(&file, block, page)?;
    let spilled = !page::is_new(page);
    counters::add(Counter::SpillReads, u64::from(spilled));
    Ok(spilled)
}

/// Keeps a page. `false` when there is no room to remember another fork.
pub fn write(rel: RelTag, block: BlockNumber, page: &Page) -> io::Result<bool> {
    let in_place = match open(rel, OpenOptions::new().read(true))? {
        Some(file) => holds_page(&file, block)?,
        None => false,
    };
    if !in_place && !shmem::spilled_write(|spilled| core::add_page(spilled, rel)) {
        return Ok(false);
    }
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).open(core::file_path(rel))?;
    file.write_all_at(page, offset(block))?;
    counters::add(Counter::SpillWrites, 1);
    Ok(true)
}

/// The block has been written with a WAL position, or is blank: a spilled version is out of date.
pub fn remove(rel: RelTag, block: BlockNumber) -> io::Result<()> {
    let Some(file) = open(rel, OpenOptions::new().read(true).write(true))? else { return Ok(()) };
    if !holds_page(&file, block)? {
        return Ok(());
    }
    file.write_all_at(&page::ZERO_PAGE, offset(block))?;
    shmem::spilled_write(
        |spilled| {
            if core::remove_page(spilled, rel) { remove_file(rel) } else { Ok(()) }
        },
    )
}

/// The fork was cut to `blocks`. The number of pages in the file is from then on known only as "at most".
pub fn truncate(rel: RelTag, blocks: BlockNumber) -> io::Result<()> {
    let Some(file) = open(rel, OpenOptions::new().write(true))? else { return Ok(()) };
    if file.metadata()?.len() > offset(blocks) {
        file.set_len(offset(blocks))?;
    }
    Ok(())
}

/// The fork is gone, or new.
pub fn forget(rel: RelTag) -> io::Result<()> {
    if !has_file(rel) {
        return Ok(());
    }
    shmem::spilled_write(
        |spilled| {
            if core::forget(spilled, rel) { remove_file(rel) } else { Ok(()) }
        },
    )
}

/// The database is gone, or its pages are other ones now.
pub fn forget_database(db_oid: Oid) -> io::Result<()> {
    shmem::spilled_write(|spilled| {
        core::forget_database(spilled, db_oid).into_iter().try_for_each(remove_file)
    })
}
