//! Readers beside a writer and a flusher.

use std::sync::atomic::{AtomicBool, Ordering};

use pg_types::Lsn;

use super::{at, block, shared};
use crate::{Store, WriteBatch};

const ROUNDS: u64 = 2000;
const KEYS: u32 = 20;

/// Each batch writes its LSN to all keys, so every read at an LSN must see that LSN in all of them.
#[test]
fn a_batch_is_seen_whole_and_history_does_not_change() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(&dir.path().join("s"), Lsn(8), None, &shared()).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..3_u64 {
            let (store, done) = (store.clone(), &done);
            scope.spawn(move || read(&store, done, reader));
        }
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                store.flush().unwrap();
            }
        });
        for round in 1..=ROUNDS {
            let lsn = Lsn(round * 8);
            let mut batch = WriteBatch::new();
            for number in 0..KEYS {
                batch.put_image(block(number), lsn, &lsn.0.to_le_bytes());
            }
            store.put(batch, at(lsn.0)).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(store.flush().unwrap(), Lsn(ROUNDS * 8));
    store.verify().unwrap();
}

fn read(store: &Store, done: &AtomicBool, reader: u64) {
    let mut step = reader;
    while !done.load(Ordering::Relaxed) {
        let last = store.last_record_lsn();
        if !last.is_valid() {
            continue;
        }
        // The tip in one round, somewhere in the past in the next.
        step = step.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let lsn = if step & 1 << 40 == 0 { last } else { Lsn(step % last.0 / 8 * 8 + 8) };
        for number in 0..KEYS {
            let (at, value) = store.get_image(block(number), lsn).unwrap().unwrap();
            assert_eq!((at, &value[..]), (lsn, &lsn.0.to_le_bytes()[..]));
        }
    }
}
