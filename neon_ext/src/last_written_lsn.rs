//! The last-written LSN cache in shared memory. The rules are in `compute_core::last_written`.

use std::sync::atomic::Ordering;

use compute_core::last_written::{self, BlockKey, METADATA_BLOCK};
use pg_types::{BlockNumber, Lsn, Oid, RelTag};

use crate::ffi::shmem::{self, LAST_WRITTEN_PARTITIONS};
use crate::ffi::xlog;

/// The position to send with a read of a page.
pub fn get(rel: RelTag, block: BlockNumber) -> Lsn {
    ensure_floors();
    let key = BlockKey::new(rel, block);
    shmem::last_written_read(key.partition(LAST_WRITTEN_PARTITIONS), |table, floor| {
        last_written::get(table, floor, &key)
    })
}

/// The position to send with a read of a page ahead of need: unless the page changes, [`get`] says the same later.
pub fn get_stable(rel: RelTag, block: BlockNumber) -> Lsn {
    ensure_floors();
    let key = BlockKey::new(rel, block);
    let partition = key.partition(LAST_WRITTEN_PARTITIONS);
    let known = shmem::last_written_read(partition, |table, _| table.get(&key).map(Lsn));
    known.unwrap_or_else(|| {
        shmem::last_written_write(partition, |table, floor| {
            last_written::get_stable(table, floor, key)
        })
    })
}

/// The position to send with a question for a fork's existence or size.
pub fn get_metadata(rel: RelTag) -> Lsn {
    get(rel, METADATA_BLOCK)
}

/// Records a page's last change; returns what is now known.
pub fn set(rel: RelTag, block: BlockNumber, lsn: Lsn) -> Lsn {
    let key = BlockKey::new(rel, block);
    shmem::last_written_write(key.partition(LAST_WRITTEN_PARTITIONS), |table, floor| {
        last_written::set(table, floor, key, lsn)
    })
}

/// Records the last change of several pages.
pub fn set_range(rel: RelTag, blocks: std::ops::Range<BlockNumber>, lsn: Lsn) {
    for block in blocks {
        set(rel, block, lsn);
    }
}

/// Records the last change of a fork's existence or size.
pub fn set_metadata(rel: RelTag, lsn: Lsn) {
    set(rel, METADATA_BLOCK, lsn);
}

/// Everything that is not in the cache may have changed at `lsn` (L117).
pub fn raise_floors(lsn: Lsn) {
    for partition in 0..LAST_WRITTEN_PARTITIONS {
        shmem::last_written_write(partition, |_, floor| *floor = (*floor).max(lsn));
    }
}

/// All pages of a database may have changed at `lsn`, which raises the floors for all others as well.
pub fn forget_database(db_oid: Oid, lsn: Lsn) {
    for partition in 0..LAST_WRITTEN_PARTITIONS {
        shmem::last_written_write(partition, |table, floor| {
            last_written::forget_database(table, floor, db_oid);
            *floor = (*floor).max(lsn);
        });
    }
}

/// The first reader after the start sets the floors, to a position at or after the one that the server started at;
/// that one is not known yet when shared memory is made. What changed since then is in the cache, or has raised a floor
/// when it left it.
fn ensure_floors() {
    if started_at() == Lsn::INVALID
        && let Some(fixed) = shmem::fixed()
    {
        let start = xlog::started_position();
        raise_floors(start);
        fixed.started_at.store(start.0, Ordering::Release);
    }
}

/// The oldest position that this server can ask at: pages may carry older ones, from before the timeline was made.
pub fn started_at() -> Lsn {
    shmem::fixed().map_or(Lsn::INVALID, |fixed| Lsn(fixed.started_at.load(Ordering::Acquire)))
}
