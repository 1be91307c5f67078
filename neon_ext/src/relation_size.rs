//! Relation sizes in shared memory. The rules are in `compute_core::relation_size`.

use compute_core::relation_size::{self as core, ForkKey, Known};
use pg_types::{BlockNumber, ForkNumber, Oid, RelFileLocator, RelTag};

use crate::ffi::shmem::{self, SIZE_PARTITIONS};
use crate::ffi::xlog;
use crate::last_written_lsn;

fn partition(rel: RelTag) -> usize {
    ForkKey::new(rel).partition(SIZE_PARTITIONS)
}

/// Whoever asks for a displaced fork's size must wait for all WAL that made it. Called under the lock of the sizes,
/// so that nobody misses the entry before its position is raised.
fn displaced(rel: Option<RelTag>) {
    if let Some(rel) = rel {
        last_written_lsn::set_metadata(rel, xlog::insert_position());
    }
}

/// What is known of a fork.
pub fn get(rel: RelTag) -> Option<Known> {
    shmem::sizes_read(partition(rel), |sizes| sizes.get(&ForkKey::new(rel))).map(Known::from_entry)
}

/// Sets a fork's size.
pub fn set(rel: RelTag, blocks: BlockNumber) {
    shmem::sizes_write(partition(rel), |sizes| {
        displaced(core::set(sizes, rel, Known::Blocks(blocks)));
    });
}

/// The fork has at least `blocks`.
pub fn raise(rel: RelTag, blocks: BlockNumber) {
    shmem::sizes_write(partition(rel), |sizes| displaced(core::raise(sizes, rel, blocks)));
}

/// Keeps the page server's answer unless something is known already; returns what is known now.
pub fn learn(rel: RelTag, answer: Known) -> Known {
    shmem::sizes_write(partition(rel), |sizes| {
        let (known, gone) = core::learn(sizes, rel, answer);
        displaced(gone);
        known
    })
}

/// A new relation: its main fork is empty, other forks do not exist.
pub fn create_main(locator: RelFileLocator) {
    for fork in [ForkNumber::Fsm, ForkNumber::Vm] {
        let rel = locator.fork(fork);
        shmem::sizes_write(partition(rel), |sizes| {
            displaced(core::set(sizes, rel, Known::Absent));
        });
    }
    set(locator.fork(ForkNumber::Main), 0);
}

/// The fork is gone.
pub fn forget(rel: RelTag) {
    shmem::sizes_write(partition(rel), |sizes| core::forget(sizes, rel));
}

/// The database is gone.
pub fn forget_database(db_oid: Oid) {
    for partition in 0..SIZE_PARTITIONS {
        shmem::sizes_write(partition, |sizes| core::forget_database(sizes, db_oid));
    }
}
