//! Memory stays within its budget, whatever is put.

use std::time::Duration;

use pg_types::Lsn;

use super::{at, block};
use crate::{Options, Shared, Store, WriteBatch};

const MIB: u64 = 1024 * 1024;

fn options() -> Options {
    Options { memtable_bytes: 4 * MIB, memtable_flush_bytes: 2 * MIB, block_cache_bytes: MIB }
}

fn put_some(store: &Store, count: u32) {
    let mut batch = WriteBatch::new();
    let lsn = store.last_record_lsn().0.max(8) + 8;
    for number in 0..count {
        batch.put_delta(block(number), Lsn(lsn), true, &[7; 1000]);
    }
    store.put(batch, at(lsn)).unwrap();
}

#[test]
fn puts_flush_when_nobody_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let shared = Shared::new(options());
    let create = |name| Store::create(&dir.path().join(name), Lsn(8), None, &shared).unwrap();
    let stores = [create("a"), create("b"), create("c")];
    for round in 0..200 {
        put_some(&stores[round % 3], 100);
        assert!(shared.memtable_bytes() < 5 * MIB, "{}", shared.memtable_bytes());
    }
    for store in &stores {
        assert!(store.disk_consistent_lsn() > Lsn(8));
        assert!(store.memtable_bytes() <= shared.memtable_bytes());
    }
    drop(stores);
    assert_eq!(shared.memtable_bytes(), 0);
}

#[test]
fn the_flush_loop_gets_the_largest_store() {
    let dir = tempfile::tempdir().unwrap();
    let shared = Shared::new(options());
    let a = Store::create(&dir.path().join("a"), Lsn(8), None, &shared).unwrap();
    let b = Store::create(&dir.path().join("b"), Lsn(8), None, &shared).unwrap();
    assert!(shared.wait_flush_wanted(Duration::ZERO).is_none());
    put_some(&a, 100);
    put_some(&b, 1000);
    assert!(shared.wait_flush_wanted(Duration::ZERO).is_none());
    put_some(&b, 1200);
    let wanted = shared.wait_flush_wanted(Duration::from_secs(60)).unwrap();
    assert_eq!(wanted.dir(), b.dir());
    wanted.flush().unwrap();
    assert_eq!(b.memtable_bytes(), 0);
    assert!(shared.wait_flush_wanted(Duration::ZERO).is_none());
}

#[test]
fn a_waiting_flush_loop_is_woken() {
    let dir = tempfile::tempdir().unwrap();
    let shared = Shared::new(options());
    let store = Store::create(&dir.path().join("a"), Lsn(8), None, &shared).unwrap();
    let waiting = {
        let shared = shared.clone();
        std::thread::spawn(move || shared.wait_flush_wanted(Duration::from_secs(60)))
    };
    put_some(&store, 2200);
    assert_eq!(waiting.join().unwrap().unwrap().dir(), store.dir());
}
