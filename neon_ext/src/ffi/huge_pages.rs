//! The background worker that has the kernel put shared memory that is in use into huge pages.
#![expect(unsafe_code, reason = "exports a function and calls the kernel with addresses")]

use std::ffi::CStr;
use std::fs;
use std::io;

use compute_core::huge_pages::{self, Attempt, HUGE_PAGE, PAGES, Parts};
use nix::errno::Errno;
use nix::libc;
use pgrx::bgworkers::{
    BackgroundWorker, BackgroundWorkerBuilder, BgWorkerStartTime, SignalWakeFlags,
};
use pgrx::pg_guard;
use pgrx::pg_sys;

use super::{guc, report};
use crate::counters::{self, Counter};

/// Registers the worker, unless nobody wants it.
pub fn register() {
    if !guc::HUGE_PAGES.get() {
        return;
    }
    BackgroundWorkerBuilder::new("neon huge pages")
        .set_type("neon huge pages")
        .set_library("neon")
        .set_function("neon_huge_pages_main")
        .enable_shmem_access(None)
        .set_start_time(BgWorkerStartTime::PostmasterStart)
        // It ends when all is done, or when the kernel does not do it.
        .set_restart_time(None)
        .load();
}

/// Entry point of the worker.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn neon_huge_pages_main(_argument: pg_sys::Datum) {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGTERM);
    if has_reserved_ones() {
        return;
    }
    if let Err(error) = work() {
        report::log(&format!("shared memory stays in small pages: {error}"));
    }
}

/// Whether shared memory is in huge pages already, which the administrator has reserved.
fn has_reserved_ones() -> bool {
    // SAFETY: the value of a setting is a NUL-terminated text, valid until the setting changes, which this one does not; a setting
    // that is missing is null.
    unsafe {
        let status = pg_sys::GetConfigOption(c"huge_pages_status".as_ptr(), true, false);
        !status.is_null() && CStr::from_ptr(status) == c"on"
    }
}

fn work() -> io::Result<()> {
    // SAFETY: set before the first process starts, and never changed.
    let buffers = unsafe { pg_sys::BufferBlocks }.addr();
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mapping = huge_pages::mapping_of(buffers, &maps);
    let mut parts = Parts::of(&mapping.ok_or_else(|| io::Error::other("it is no mapping"))?);
    if parts.is_empty() {
        return Err(io::Error::other("it begins where no huge page can"));
    }
    while !parts.is_empty() && BackgroundWorker::wait_latch(Some(parts.pause())) {
        let done = parts.pass(touched, collapse)?;
        counters::add(Counter::HugePages, done as u64);
    }
    Ok(())
}

/// How many pages of shared memory exist from this address on, up to a huge page.
fn touched(begin: usize) -> Result<usize, Errno> {
    let mut pages = [0_u8; PAGES];
    // SAFETY: the call looks at the address space and writes a byte for each of `PAGES` pages; any address is allowed.
    Errno::result(unsafe {
        libc::mincore(std::ptr::without_provenance_mut(begin), HUGE_PAGE, pages.as_mut_ptr())
    })?;
    Ok(pages.iter().filter(|page| **page & 1 == 1).count())
}

/// Asks for a huge page. The content of memory stays what it is, for all processes and at every moment.
fn collapse(begin: usize) -> Result<Attempt, Errno> {
    // SAFETY: this advice changes how memory is kept, not what is in it (madvise(2)).
    let result = Errno::result(unsafe {
        libc::madvise(std::ptr::without_provenance_mut(begin), HUGE_PAGE, libc::MADV_COLLAPSE)
    });
    match result {
        Ok(_) => Ok(Attempt::Done),
        Err(Errno::EAGAIN | Errno::EBUSY | Errno::ENOMEM) => Ok(Attempt::Later),
        Err(error) => Err(error),
    }
}
