//! The feedback page of walproposer, mapped into this process.
#![expect(unsafe_code, reason = "reads memory that another process writes")]

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use compute_core::feedback::{self, FILE_LEN, FILE_NAME, Feedback, WORDS};
use memmap2::{Mmap, MmapOptions};

/// Time between two looks whether there is a (new) file.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

struct Mapped {
    map: Option<(Mmap, u64)>,
    looked: Option<Instant>,
}

thread_local! {
    static MAPPED: RefCell<Mapped> = const { RefCell::new(Mapped { map: None, looked: None }) };
}

/// What storage has told last; `None` while nothing is known.
pub fn read() -> Option<Feedback> {
    MAPPED.with_borrow_mut(|mapped| {
        if mapped.looked.is_none_or(|looked| looked.elapsed() >= LOOK_AGAIN) {
            mapped.looked = Some(Instant::now());
            remap(mapped);
        }
        let (map, _) = mapped.map.as_ref()?;
        // SAFETY: the map is page-aligned, WORDS * 8 bytes long and lives as long as the borrow. Another process writes
        // it, which is why the words are atomics; `feedback::read` tells torn reads.
        let words = unsafe { std::slice::from_raw_parts(map.as_ptr().cast::<AtomicU64>(), WORDS) };
        feedback::read(words)
    })
}

/// Maps the file unless it is mapped. A file with fewer bytes than a page is not one (yet).
fn remap(mapped: &mut Mapped) {
    let Ok(file) = File::open(FILE_NAME) else { return };
    let Ok(meta) = file.metadata() else { return };
    let is_mapped = mapped.map.as_ref().is_some_and(|(_, inode)| *inode == meta.ino());
    if is_mapped || meta.len() < FILE_LEN as u64 {
        return;
    }
    // SAFETY: the file is never shortened: walproposer makes it once with its final size.
    if let Ok(map) = unsafe { MmapOptions::new().len(FILE_LEN).map(&file) } {
        mapped.map = Some((map, meta.ino()));
    }
}
