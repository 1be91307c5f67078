//! WAL in an object store: a copy of every whole committed segment, and of the beginning of the last one.
//!
//! With it a timeline survives the loss of all safekeepers' disks up to the last upload, and safekeepers need only keep
//! what is newer than both the page servers' progress and the last upload. Commits never wait for any of this.
//!
//! ```text
//!  commit position ──► plan::next_segment ──► uploader ──PUT──► PREFIX/TENANT/TIMELINE/SEGMENT
//!                                                │ note_backup
//!                          maintenance: backup_lsn into the control file, then removal below the horizon
//!                                                                     │
//!  WAL reader ◄── reader: this disk, else the store ◄─────────────────┘
//! ```
//!
//! # Invariants
//!
//! 1. `[BK1]` Only committed bytes go into the store. A whole segment has the same bytes on every safekeeper, so uploading
//!    it again, by anybody, changes nothing, and there is no uploader to be elected: members take turns, and whoever's turn
//!    is over without an object uploads it.
//! 2. `[BK2]` A safekeeper uploads segments that it has from their first byte, or from the timeline's first position.
//! 3. `[BK3]` With a store configured, WAL is removed from the disk only below the *saved* backup position, and that moves
//!    only when the store has acknowledged an object, or showed one of the right size. Objects appear whole (L250).
//! 4. `[BK4]` An unfinished segment's object is named by term, flush and commit position and node; it ends at the commit
//!    position. The older ones of a node are removed after the newer one is there.
//! 5. `[BK5]` Objects are deleted when their timeline is deleted for ever by request, and never otherwise: not when WAL or a
//!    timeline is removed from this disk.
//! 6. `[BK6]` A store that fails or does not answer delays uploads and removal, with pauses of 10 ms to 5 s, and nothing else.
//! 7. `[BK7]` What is uploaded has right page headers and records: WAL that went bad on one disk does not become the copy
//!    that everybody relies on.
//!
//! # How a crash ends
//!
//! After an upload and before the position is saved: the object is found there and not made again. After the position is
//! saved and before segments are removed: the next removal takes them, too. While an unfinished segment is replaced: at
//! worst there are two, of which the older one goes with the next upload.

pub mod names;
pub mod plan;
pub mod reader;
pub mod store;
pub mod uploader;

pub use reader::{BackedUpWal, FetchError};
pub use store::{RemoteStorage, StoreError, WalStore};
pub use uploader::Uploads;

/// A number in 0..1 that differs between processes and moments: enough to spread retries.
fn spread() -> f64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = since.map_or(0, |since| since.subsec_nanos()) ^ std::process::id();
    f64::from(nanos % 1000) / 1000.0
}
