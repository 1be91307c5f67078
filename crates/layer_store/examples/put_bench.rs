//! How fast values are put and flushed by one thread.
//!
//! `cargo run --release -p layer_store --example put_bench -- [VALUE_BYTES] [MIB] [BLOCKS] [NOISE_PERCENT]`
//!
//! `NOISE_PERCENT` of the bytes are random, the others repeat: what the compressor finds.
#![expect(clippy::cast_possible_truncation, reason = "the numbers are small or random")]
#![expect(clippy::cast_precision_loss, reason = "figures for people")]

use std::time::Instant;

use layer_store::{Options, RecordPosition, Shared, Store, WriteBatch};
use pg_types::{ForkNumber, Key, Lsn, RelFileLocator};

const RECORDS_PER_BATCH: u64 = 100;
const READS: u32 = 2000;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn argument(number: usize, default: u64) -> u64 {
    std::env::args().nth(number).map_or(default, |text| text.parse().expect("a number"))
}

fn main() {
    let value_bytes = usize::try_from(argument(1, 100)).expect("a size");
    let mib = argument(2, 1024);
    let blocks = argument(3, 100_000);
    let dir = tempfile::tempdir().expect("a directory");
    let shared = Shared::new(Options::default());
    let store = Store::create(dir.path(), Lsn(8), None, &shared).expect("a store");
    let noise = argument(4, 30);
    let mut rng = Rng(0x1234_5678_9abc_def1);
    let mut byte = |at: u64| {
        let random = rng.next();
        if (at / 8 * 37) % 100 < noise { random as u8 } else { (at / 4096) as u8 }
    };
    let pool: Vec<u8> = (0..1 << 20).map(&mut byte).collect();
    let count = (mib << 20) / value_bytes as u64;
    let rel = RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: 16384 };
    let (mut lsn, mut put_seconds, mut flush_seconds) = (8, 0.0, 0.0);
    let started = Instant::now();
    for _ in 0..count / RECORDS_PER_BATCH {
        let put_started = Instant::now();
        let mut batch = WriteBatch::new();
        for _ in 0..RECORDS_PER_BATCH {
            lsn += 64;
            let random = rng.next();
            let key = Key::rel_block(rel.fork(ForkNumber::Main), (random % blocks) as u32);
            let from = (random >> 32) as usize % (pool.len() - value_bytes);
            batch.put_delta(key, Lsn(lsn), false, &pool[from..from + value_bytes]);
        }
        let position = RecordPosition { last_record_lsn: Lsn(lsn), prev_record_lsn: Lsn(lsn - 64) };
        store.put(batch, position).expect("a put");
        put_seconds += put_started.elapsed().as_secs_f64();
        if store.memtable_bytes() >= shared.options().memtable_flush_bytes {
            let flush_started = Instant::now();
            store.flush().expect("a flush");
            flush_seconds += flush_started.elapsed().as_secs_f64();
        }
    }
    store.flush().expect("a flush");
    let seconds = started.elapsed().as_secs_f64();
    let on_disk: u64 = store.layers().iter().map(|layer| layer.bytes).sum();
    println!(
        "{mib} MiB in values of {value_bytes} bytes over {blocks} blocks: {:.0} MiB/s in all \
         (put {:.0} MiB/s, flush {:.0} MiB/s), {} layers, {} MiB on disk",
        mib as f64 / seconds,
        mib as f64 / put_seconds,
        mib as f64 / flush_seconds,
        store.layers().len(),
        on_disk >> 20,
    );
    let started = Instant::now();
    let mut deltas = 0;
    for _ in 0..READS {
        let key = Key::rel_block(rel.fork(ForkNumber::Main), (rng.next() % blocks) as u32);
        deltas += store.get(key, Lsn(lsn)).expect("a read").deltas.len();
    }
    println!(
        "{:.1} µs for a read of {:.0} deltas",
        started.elapsed().as_secs_f64() * 1e6 / f64::from(READS),
        deltas as f64 / f64::from(READS)
    );
}
