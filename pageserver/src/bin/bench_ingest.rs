//! How fast WAL goes into flushed layers: page assembly, CRC, decoding, ingest, memtable, layer files, fsync.
//!
//! The WAL is laid out beforehand: `100B` are heap inserts of 100-byte tuples, page after page of one relation;
//! `8KiB` are full-page images without a hole. Each case runs three times; the best run counts, because a
//! neighbour can only slow us down. Prints one JSON row for each case.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use layer_store::{Options, RecordPosition, Shared, Store, WriteBatch};
use pageserver::ingest::{Ingest, IngestLimits};
use pg_types::xlog::{
    SIZE_OF_XLOG_LONG_PHD, WAL_SEGMENT_SIZE, XLOG_BLCKSZ, XLOG_PAGE_MAGIC, XLP_FIRST_IS_CONTRECORD,
    XLP_LONG_HEADER, page_offset, segment_offset,
};
use pg_types::{Key, Lsn};
use wal_decoder::rmgr::{RM_HEAP_ID, RM_XLOG_ID, xlog};
use wal_decoder::{CheckPoint, WalStream};

const MIB: usize = 1024 * 1024;
/// WAL of one run; several memtables' worth.
const WAL_BYTES: usize = 384 * MIB;
/// Bytes handed to the decoder at a time, about what one read of a socket gives.
const FEED_BYTES: usize = 128 * 1024;
const RUNS: usize = 3;
const START: Lsn = Lsn(WAL_SEGMENT_SIZE);
const REL: [u32; 3] = [1663, 5, 16_384];
/// 100-byte tuples with their headers on a heap page.
const TUPLES_PER_PAGE: u32 = 58;

fn main() -> anyhow::Result<()> {
    for (case, wal) in [("100B", heap_inserts()?), ("8KiB", images()?)] {
        let mut best = f64::MIN;
        for _ in 0..RUNS {
            best = best.max(run(&wal)?);
        }
        let row = serde_json::json!({
            "case": case, "ours": (best * 10.0).round() / 10.0, "unit": "MiB/s", "better": "higher",
        });
        println!("{row}");
    }
    Ok(())
}

/// MiB of WAL per second into durable layers.
fn run(wal: &Bytes) -> anyhow::Result<f64> {
    let dir = tempfile_dir()?;
    let shared = Shared::new(Options::default());
    let store = Store::create(&dir.join("store"), START, None, &shared)?;
    let mut batch = WriteBatch::new();
    let checkpoint = CheckPoint { next_xid: 1000, ..CheckPoint::default() };
    batch.put_image(Key::CHECKPOINT, START, &checkpoint.encode());
    store.put(batch, RecordPosition { last_record_lsn: START, prev_record_lsn: Lsn::INVALID })?;

    let stop = Arc::new(AtomicBool::new(false));
    let flusher = std::thread::spawn({
        let (stop, shared) = (Arc::clone(&stop), shared.clone());
        move || -> Result<(), layer_store::StoreError> {
            while !stop.load(Ordering::Relaxed) {
                if let Some(store) = shared.wait_flush_wanted(Duration::from_millis(100)) {
                    store.flush()?;
                }
            }
            Ok(())
        }
    });
    let begun = Instant::now();
    let mut ingest = Ingest::new(store.clone(), None, IngestLimits::default())?;
    let mut stream = WalStream::new(START);
    let mut rest = wal.clone();
    while !rest.is_empty() {
        stream.feed(rest.split_to(FEED_BYTES.min(rest.len())));
        while let Some(record) = stream.poll()? {
            ingest.ingest(&record)?;
        }
    }
    let end = ingest.commit()?.last_record_lsn;
    let durable = store.flush()?;
    let seconds = begun.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    flusher.join().map_err(|_| anyhow::anyhow!("the flush loop panicked"))??;
    anyhow::ensure!(durable == end, "flushed up to {durable} of {end}");
    std::fs::remove_dir_all(&dir)?;
    Ok(wal.len() as f64 / MIB as f64 / seconds)
}

/// A directory of our own below the target directory's file system, where layers would be, not in memory.
fn tempfile_dir() -> anyhow::Result<std::path::PathBuf> {
    let exe = std::env::current_exe().context("find this program")?;
    let parent = exe.parent().context("find this program's directory")?;
    let dir = parent.join(format!("bench_ingest.{}", std::process::id()));
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

fn heap_inserts() -> anyhow::Result<Bytes> {
    let mut wal = Wal::new();
    let mut inserted = 0u32;
    while wal.bytes.len() < WAL_BYTES {
        let (blkno, offnum) = (inserted / TUPLES_PER_PAGE, inserted % TUPLES_PER_PAGE + 1);
        let first = offnum == 1;
        let mut body = BytesMut::new();
        block_header(&mut body, blkno, if first { 0x60 } else { 0x20 }, 5 + 100)?;
        body.extend_from_slice(&[255, 3]);
        body.extend_from_slice(&[4, 0, 2, 9, 24]);
        body.extend(
            (0..25).flat_map(|n: u32| inserted.wrapping_mul(2_654_435_761 + n).to_le_bytes()),
        );
        body.extend_from_slice(&u16::try_from(offnum)?.to_le_bytes());
        body.extend_from_slice(&[0]);
        wal.push(RM_HEAP_ID, if first { 0x80 } else { 0 }, 1000 + inserted / 100, &body)?;
        inserted += 1;
    }
    Ok(wal.finish())
}

fn images() -> anyhow::Result<Bytes> {
    let mut wal = Wal::new();
    let mut blkno = 0u32;
    while wal.bytes.len() < WAL_BYTES {
        let mut body = BytesMut::new();
        body.extend_from_slice(&[0, 0x10, 0, 0]);
        body.extend_from_slice(&8192u16.to_le_bytes());
        body.extend_from_slice(&[0, 0, 0x02]);
        locator(&mut body, blkno);
        body.extend(
            (0..2048).flat_map(|n: u32| (blkno ^ n.wrapping_mul(2_654_435_761)).to_le_bytes()),
        );
        wal.push(RM_XLOG_ID, xlog::XLOG_FPI, 0, &body)?;
        blkno += 1;
    }
    Ok(wal.finish())
}

fn block_header(body: &mut BytesMut, blkno: u32, flags: u8, data_len: u16) -> anyhow::Result<()> {
    body.extend_from_slice(&[0, flags]);
    body.extend_from_slice(&data_len.to_le_bytes());
    locator(body, blkno);
    Ok(())
}

fn locator(body: &mut BytesMut, blkno: u32) {
    for word in REL.into_iter().chain([blkno]) {
        body.extend_from_slice(&word.to_le_bytes());
    }
}

/// WAL pages being laid out.
struct Wal {
    bytes: BytesMut,
    prev: Lsn,
}

impl Wal {
    fn new() -> Wal {
        Wal { bytes: BytesMut::with_capacity(WAL_BYTES + MIB), prev: Lsn(START.0 - 64) }
    }

    fn lsn(&self) -> Lsn {
        Lsn(START.0 + self.bytes.len() as u64)
    }

    fn page_header(&mut self, rem_len: u32) -> anyhow::Result<()> {
        let at = self.lsn();
        let long = segment_offset(at) == 0;
        let flags = if rem_len > 0 { XLP_FIRST_IS_CONTRECORD } else { 0 };
        let flags = flags | if long { XLP_LONG_HEADER } else { 0 };
        self.bytes.extend_from_slice(&XLOG_PAGE_MAGIC.to_le_bytes());
        self.bytes.extend_from_slice(&flags.to_le_bytes());
        self.bytes.extend_from_slice(&1u32.to_le_bytes());
        self.bytes.extend_from_slice(&at.0.to_le_bytes());
        self.bytes.extend_from_slice(&u64::from(rem_len).to_le_bytes());
        if long {
            self.bytes.extend_from_slice(&7u64.to_le_bytes());
            self.bytes.extend_from_slice(&u32::try_from(WAL_SEGMENT_SIZE)?.to_le_bytes());
            self.bytes.extend_from_slice(&u32::try_from(XLOG_BLCKSZ)?.to_le_bytes());
            debug_assert_eq!(segment_offset(self.lsn()), SIZE_OF_XLOG_LONG_PHD);
        }
        Ok(())
    }

    fn push(&mut self, rmid: u8, info: u8, xid: u32, body: &[u8]) -> anyhow::Result<()> {
        while !self.lsn().is_aligned() {
            self.bytes.extend_from_slice(&[0]);
        }
        if page_offset(self.lsn()) == 0 {
            self.page_header(0)?;
        }
        let start = self.lsn();
        let mut record = BytesMut::new();
        record.extend_from_slice(&u32::try_from(24 + body.len())?.to_le_bytes());
        record.extend_from_slice(&xid.to_le_bytes());
        record.extend_from_slice(&self.prev.0.to_le_bytes());
        record.extend_from_slice(&[info, rmid, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(body), &record);
        record.extend_from_slice(&crc.to_le_bytes());
        record.extend_from_slice(body);
        let mut rest = record.freeze();
        loop {
            let room = usize::try_from(XLOG_BLCKSZ - page_offset(self.lsn()))?;
            self.bytes.extend_from_slice(&rest.split_to(room.min(rest.len())));
            if rest.is_empty() {
                break;
            }
            self.page_header(u32::try_from(rest.len())?)?;
        }
        self.prev = start;
        Ok(())
    }

    fn finish(self) -> Bytes {
        self.bytes.freeze()
    }
}
