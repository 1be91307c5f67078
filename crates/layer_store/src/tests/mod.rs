//! Tests of the whole store.
#![expect(clippy::cast_possible_truncation, reason = "numbers of these tests are small")]

mod budget;
mod concurrent;
mod corrupt;
mod crash;
mod import;
mod model;

use pg_types::{ForkNumber, Key, Lsn, RelFileLocator};

use crate::{Options, RecordPosition, Shared};

/// Options small enough that tests reach the limits.
fn small() -> Options {
    Options {
        memtable_bytes: 64 * 1024 * 1024,
        memtable_flush_bytes: 32 * 1024 * 1024,
        block_cache_bytes: 256 * 1024,
    }
}

fn shared() -> Shared {
    Shared::new(small())
}

fn block(number: u32) -> Key {
    let rel = RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: 16384 };
    Key::rel_block(rel.fork(ForkNumber::Main), number)
}

/// A position whose previous record starts eight bytes before.
fn at(lsn: u64) -> RecordPosition {
    RecordPosition { last_record_lsn: Lsn(lsn), prev_record_lsn: Lsn(lsn - 8) }
}
