//! Switching the cache on and off, and changing its size while it is used.

use std::sync::atomic::Ordering;

use compute_core::file_cache::{Geometry, Shrink};

use super::{invalidate_where, io};
use crate::ffi::file_cache::{self as memory, Fixed};
use crate::ffi::guc_file_cache as guc;
use crate::ffi::report;

/// Opens the file, in the postmaster. A cache without a file is off.
pub fn start() {
    let Some((fixed, geometry)) = memory::attached() else { return };
    super::stats::start_clock();
    match io::open() {
        Ok(()) => set_limit(fixed, geometry, geometry.chunks_of(guc::size_limit())),
        Err(error) => report::log(&format!(
            "the local file cache is off: could not open \"{}\": {error}",
            guc::path().display()
        )),
    }
}

fn set_limits(geometry: Geometry, chunks: usize) {
    for partition in 0..geometry.partitions() {
        let part = geometry.partition_limit(partition, chunks);
        memory::exclusive(partition, |chunks| chunks.set_limit(part));
    }
}

fn switch_on(fixed: &Fixed, geometry: Geometry, chunks: usize) {
    memory::controlling(|| {
        if !fixed.is_on.load(Ordering::Acquire) && chunks > 0 {
            // Nothing is in the file that anybody may read. What is still being written has its slot until it is done.
            if let Err(error) = io::empty() {
                report::log(&format!("the local file cache stays off: {error}"));
                return;
            }
        }
        set_limit(fixed, geometry, chunks);
    });
}

fn set_limit(fixed: &Fixed, geometry: Geometry, chunks: usize) {
    fixed.limit.store(chunks as u64, Ordering::Relaxed);
    fixed.is_on.store(chunks > 0, Ordering::Release);
    set_limits(geometry, chunks);
}

/// Gives everything up after an error; only the first one is logged. Until the limit is changed nothing is kept.
///
/// Pages that are being written now become absent when they are. Nobody is told: whoever looks finds nothing.
pub(super) fn turn_off(why: &str) {
    let Some((fixed, geometry)) = memory::attached() else { return };
    let was_on = memory::controlling(|| {
        let was_on = fixed.is_on.swap(false, Ordering::AcqRel);
        if was_on {
            set_limits(geometry, 0);
            invalidate_where(geometry, |_| true);
            fixed.must_empty.store(true, Ordering::Release);
        }
        was_on
    });
    if was_on {
        report::log(&format!("the local file cache is off: {why}"));
    }
}

/// Makes the cache as large as is said. Called by one process only.
///
/// After an error the cache stays off until the size is another one than it was.
pub fn apply_limit(bytes: u64) {
    let Some((fixed, geometry)) = memory::attached() else { return };
    let chunks = geometry.chunks_of(bytes);
    if fixed.limit.load(Ordering::Relaxed) != chunks as u64 {
        switch_on(fixed, geometry, chunks);
    }
    for partition in 0..geometry.partitions() {
        shrink(geometry, partition);
    }
    if fixed.must_empty.swap(false, Ordering::AcqRel) && !fixed.is_on.load(Ordering::Acquire) {
        // Only the process that can switch the cache on again does this, so nothing is in the file that may be read.
        // Its space may be what was missing.
        let _ = io::empty();
    }
}

/// Gives the space of chunks beyond the limit back, one after the other.
fn shrink(geometry: Geometry, partition: usize) {
    while let Shrink::Hole { slot } = memory::exclusive(partition, |chunks| chunks.begin_shrink()) {
        let result = io::punch(geometry.offset(partition, slot, 0), geometry.chunk_bytes());
        memory::exclusive(partition, |chunks| chunks.end_shrink(slot));
        if let Err(error) = result {
            turn_off(&format!("could not give space back: {error}"));
        }
    }
}
