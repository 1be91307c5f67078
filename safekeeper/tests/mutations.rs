//! Damage of every kind to the files of a timeline, 10,000 times: each is detected or harmless.
//!
//! What is guaranteed of a timeline whose files were changed while the safekeeper was down:
//!
//! 1. A changed, cut or missing control file is detected at load: the timeline is quarantined. (A CRC covers it.)
//! 2. A timeline that loads has the commit position that was saved. Its flush position is the end of a record that was
//!    written, not below the commit position and not above the end of what was written.
//! 3. Damage between the first record of the commit position's segment and the commit position is detected at load, and so
//!    is a missing segment of committed WAL.
//! 4. Damage to *older* committed WAL is not looked for at load, which would read all WAL. It is detected by whoever reads
//!    it: reading fails, or the decoder that every reader runs (page server, compute, another safekeeper) refuses the
//!    bytes. Nobody ever gets a record that was not written, nor misses one in between.
//! 5. Damage *above* the saved commit position cannot be told from a write that a crash tore, so it moves the flush
//!    position down; whether the lost records were acknowledged is known to other safekeepers only.
//! 6. Changed bytes that no record and no page header check covers (padding, the tail of a switched segment) are harmless.
//!
//! `NEON_MUTATIONS` (10,000) and `NEON_MUTATIONS_SEED` (random, printed) choose how many and which.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::wal_builder::WalBuilder;
use common::{Node, Proposer, TENANT, TIMELINE};
use pg_types::xlog::{WAL_SEGMENT_SIZE, segment_number, segment_start};
use pg_types::{Lsn, NodeId};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use safekeeper::metrics::Metrics;
use safekeeper::timeline::core::Broken;
use safekeeper::timeline::{TenantTimelineId, Timeline};
use tokio_util::sync::CancellationToken;
use wal_decoder::{RawRecord, WalStream};

const CONTROL: &str = "safekeeper.control";

/// A timeline as it was when its safekeeper was killed, and what is known of it.
struct Original {
    dir: tempfile::TempDir,
    start: Lsn,
    /// Saved commit position.
    commit: Lsn,
    wal: WalBuilder,
    records: Vec<RawRecord>,
    files: BTreeMap<String, Content>,
}

/// A file's bytes without the zeros at both ends.
struct Content {
    first: u64,
    bytes: Vec<u8>,
}

impl Content {
    fn read(path: &Path) -> Content {
        let mut bytes = fs::read(path).unwrap();
        bytes.truncate(bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1));
        let first = bytes.iter().position(|&byte| byte != 0).unwrap_or(0);
        Content { first: first as u64, bytes: bytes.split_off(first) }
    }

    fn end(&self) -> u64 {
        self.first + self.bytes.len() as u64
    }
}

impl Original {
    /// Pushes `wal` through a real safekeeper, commits a part of it, and kills the process.
    async fn make(start: Lsn, wal: WalBuilder, commit: Lsn) -> Original {
        let mut node = Node::start("maintenance_interval = '1h'");
        node.create(start);
        let (mut proposer, _) = Proposer::elect_on(&node).await;
        proposer.append(start, wal.bytes(), start).await.unwrap();
        proposer.wait_flushed(wal.end_lsn()).await;
        proposer.heartbeat(wal.end_lsn(), commit).await;
        assert_eq!(node.http("POST", &format!("{}/checkpoint", Node::path()), "").0, 204);
        node.kill();
        // Nothing here is about disks, and syncing thousands of times would take minutes.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let dir = dir.unwrap();
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(node.timeline_dir()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.starts_with("0000") || name == CONTROL {
                let content = Content::read(&node.timeline_dir().join(&name));
                files.insert(name, content);
            }
        }
        let records = decode(start, wal.bytes());
        let original = Original { dir, start, commit, wal, records, files };
        original.restore(original.files.keys().cloned());
        original
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Gives these files their content back; those that never were go.
    fn restore(&self, names: impl IntoIterator<Item = String>) {
        for name in names {
            let path = self.path(&name);
            let Some(content) = self.files.get(&name) else {
                let _ = fs::remove_file(path);
                continue;
            };
            let file = OpenOptions::new().write(true).create(true).truncate(true).open(path);
            let file = file.unwrap();
            file.write_all_at(&content.bytes, content.first).unwrap();
            if name != CONTROL {
                file.set_len(WAL_SEGMENT_SIZE).unwrap();
            }
        }
    }

    fn load(&self) -> Result<Timeline, Broken> {
        let id = TenantTimelineId { tenant_id: TENANT, timeline_id: TIMELINE };
        let metrics = Metrics::new().unwrap();
        Timeline::load(self.dir.path(), NodeId(1), id, &metrics, CancellationToken::new())
    }

    /// From here on damage to committed WAL is noticed at load.
    fn checked_from(&self) -> Lsn {
        let segment = segment_start(segment_number(self.commit));
        self.records.iter().map(|record| record.start_lsn).find(|&lsn| segment <= lsn).unwrap()
    }

    /// What came of a change.
    fn verdict(&self) -> Result<Verdict, String> {
        let timeline = match self.load() {
            Ok(timeline) => timeline,
            Err(_) => return Ok(Verdict::Refused),
        };
        let ladder = timeline.progress().ladder;
        let (commit, flush) = (ladder.commit_lsn, ladder.flush_lsn);
        let fail = |text: String| Err(format!("{text} (commit {commit}, flush {flush})"));
        if commit != self.commit {
            return fail(format!("committed was {}", self.commit));
        }
        if flush < commit || self.wal.end_lsn() < flush || !self.wal.ends.contains(&flush) {
            return fail("a flush position that cannot be".to_owned());
        }
        let detected_at = match self.read_back(&timeline, flush) {
            Ok(detected_at) => detected_at,
            Err(text) => return fail(text),
        };
        match detected_at {
            Some(lsn) if self.checked_from() < lsn => {
                fail(format!("{lsn} was not checked at load"))
            }
            Some(_) => Ok(Verdict::RefusedToReaders),
            None if flush < self.wal.end_lsn() => Ok(Verdict::Shorter),
            None => Ok(Verdict::Harmless),
        }
    }

    /// Reads everything below `flush` as a page server does; where damage is met, if it is.
    fn read_back(&self, timeline: &Timeline, flush: Lsn) -> Result<Option<Lsn>, String> {
        let mut reader = timeline.reader();
        let mut stream = WalStream::new(self.start);
        let mut expected = self.records.iter();
        let mut seen = self.start;
        while stream.feed_lsn() < flush {
            let at = stream.feed_lsn();
            let wanted = usize::try_from(flush - at).unwrap().min(1 << 20);
            let Ok(data) = reader.read(at, wanted) else { return Ok(Some(seen)) };
            stream.feed(data);
            loop {
                match stream.poll() {
                    Ok(None) => break,
                    Ok(Some(record)) if Some(&record) == expected.next() => seen = record.next_lsn,
                    Ok(Some(record)) => {
                        return Err(format!("read another record at {}", record.start_lsn));
                    }
                    Err(_) => return Ok(Some(seen)),
                }
            }
        }
        if seen == flush { Ok(None) } else { Err(format!("records end at {seen}")) }
    }
}

fn decode(start: Lsn, bytes: &[u8]) -> Vec<RawRecord> {
    let mut stream = WalStream::new(start);
    stream.feed(bytes::Bytes::copy_from_slice(bytes));
    std::iter::from_fn(|| stream.poll().unwrap()).collect()
}

#[derive(Debug)]
enum Verdict {
    /// The timeline is quarantined.
    Refused,
    /// Committed WAL below what is checked at load does not decode from this record end on.
    RefusedToReaders,
    /// WAL above the commit position counts as torn.
    Shorter,
    Harmless,
}

/// One change of one or two files.
#[derive(Debug, Clone)]
enum Mutation {
    FlipBit { file: String, at: u64, bit: u8 },
    Overwrite { file: String, at: u64, bytes: Vec<u8> },
    Zero { file: String, at: u64, len: u64 },
    Truncate { file: String, len: u64 },
    SwapBlocks { file: String, at: u64, other: String, other_at: u64, len: u64 },
    Delete { file: String },
    Rename { file: String, to: String },
    SwapFiles { file: String, other: String },
}

fn pick<'a, T>(random: &mut StdRng, items: &'a [T]) -> &'a T {
    &items[random.random_range(0..items.len())]
}

impl Mutation {
    fn random(original: &Original, random: &mut StdRng) -> Mutation {
        let names: Vec<String> = original.files.keys().cloned().collect();
        let file = pick(random, &names).clone();
        let other = pick(random, &names).clone();
        // Mostly where there is something, now and then anywhere behind it.
        let mut place = |name: &str| {
            let content = &original.files[name];
            let size = if name == CONTROL { content.end() } else { WAL_SEGMENT_SIZE };
            if random.random_ratio(1, 20) {
                random.random_range(0..size)
            } else {
                random.random_range(content.first..content.end())
            }
        };
        let (at, other_at) = (place(&file), place(&other));
        let len = *pick(random, &[1, 8, 512, 4096, 8192, 65_536]);
        match random.random_range(0..20u8) {
            0..6 => Mutation::FlipBit { file, at, bit: random.random_range(0..8) },
            6..10 => {
                let bytes = (0..random.random_range(1..64)).map(|_| random.random()).collect();
                Mutation::Overwrite { file, at, bytes }
            }
            10..13 => Mutation::Zero { file, at: at - at % len, len },
            13..15 => Mutation::Truncate { file, len: at },
            15..17 => {
                let (at, other_at) = (at - at % len, other_at - other_at % len);
                Mutation::SwapBlocks { file, at, other, other_at, len }
            }
            17 => Mutation::Delete { file },
            18 => {
                let suffixed = match file.strip_suffix(".partial") {
                    Some(stem) => stem.to_owned(),
                    None => format!("{file}.partial"),
                };
                let choices =
                    [suffixed, "000000010000000000000009".to_owned(), format!("{file}.old"), other];
                Mutation::Rename { file, to: pick(random, &choices).clone() }
            }
            _ => Mutation::SwapFiles { file, other },
        }
    }

    /// Files that may have changed afterwards.
    fn touched(&self) -> Vec<String> {
        match self {
            Mutation::FlipBit { file, .. }
            | Mutation::Overwrite { file, .. }
            | Mutation::Zero { file, .. }
            | Mutation::Truncate { file, .. }
            | Mutation::Delete { file } => vec![file.clone()],
            Mutation::SwapBlocks { file, other, .. }
            | Mutation::SwapFiles { file, other }
            | Mutation::Rename { file, to: other } => vec![other.clone(), file.clone()],
        }
    }

    fn apply(&self, original: &Original) {
        let open = |name: &str| {
            OpenOptions::new().read(true).write(true).open(original.path(name)).unwrap()
        };
        match self {
            Mutation::FlipBit { file, at, bit } => {
                let file = open(file);
                let byte = read(&file, *at, 1)[0] ^ 1 << bit;
                file.write_all_at(&[byte], *at).unwrap();
            }
            Mutation::Overwrite { file, at, bytes } => {
                open(file).write_all_at(bytes, *at).unwrap();
            }
            Mutation::Zero { file, at, len } => {
                let file = open(file);
                let here = read(&file, *at, *len).len();
                file.write_all_at(&vec![0; here], *at).unwrap();
            }
            Mutation::Truncate { file, len } => open(file).set_len(*len).unwrap(),
            Mutation::SwapBlocks { file, at, other, other_at, len } => {
                let (file, other) = (open(file), open(other));
                let (here, there) = (read(&file, *at, *len), read(&other, *other_at, *len));
                file.write_all_at(&there, *at).unwrap();
                other.write_all_at(&here, *other_at).unwrap();
            }
            Mutation::Delete { file } => fs::remove_file(original.path(file)).unwrap(),
            Mutation::Rename { file, to } => {
                fs::rename(original.path(file), original.path(to)).unwrap();
            }
            Mutation::SwapFiles { file, other } => {
                let aside = original.path("aside");
                fs::rename(original.path(file), &aside).unwrap();
                if file != other {
                    fs::rename(original.path(other), original.path(file)).unwrap();
                }
                fs::rename(aside, original.path(other)).unwrap();
            }
        }
    }

    /// Whether the control file has other bytes now.
    fn changed_control(&self, original: &Original) -> bool {
        let now = fs::read(original.path(CONTROL)).unwrap_or_default();
        now != original.files[CONTROL].bytes
    }
}

fn read(file: &File, at: u64, len: u64) -> Vec<u8> {
    let size = file.metadata().unwrap().len();
    let mut bytes = vec![0; usize::try_from(len.min(size.saturating_sub(at))).unwrap()];
    file.read_exact_at(&mut bytes, at).unwrap();
    bytes
}

/// Applies random changes one at a time; how often each verdict came.
fn campaign(original: &Original, count: u64, random: &mut StdRng) {
    let mut tally: BTreeMap<&str, u64> = BTreeMap::new();
    assert!(matches!(original.verdict(), Ok(Verdict::Harmless)), "{:?}", original.verdict());
    for number in 0..count {
        let mutation = Mutation::random(original, random);
        mutation.apply(original);
        let verdict = original.verdict().unwrap_or_else(|text| {
            panic!("change {number}, {mutation:?}: {text}");
        });
        let refused = matches!(verdict, Verdict::Refused);
        if mutation.changed_control(original) {
            assert!(refused, "change {number}, {mutation:?}: the control file was believed");
        }
        let name = match verdict {
            Verdict::Refused => "refused",
            Verdict::RefusedToReaders => "refused to readers",
            Verdict::Shorter => "shorter",
            Verdict::Harmless => "harmless",
        };
        *tally.entry(name).or_default() += 1;
        original.restore(mutation.touched());
    }
    println!("{count} changes: {tally:?}");
    for name in ["refused", "refused to readers", "shorter", "harmless"] {
        assert!(tally.contains_key(name) || count < 300, "nothing was {name}");
    }
    assert!(matches!(original.verdict(), Ok(Verdict::Harmless)), "the original was not restored");
}

fn number_from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Appends records of many sizes, one of them over many pages, up to a position.
fn fill(wal: &mut WalBuilder, until: Lsn) {
    for step in (1u8..=255).cycle() {
        if until <= wal.end_lsn() {
            return;
        }
        wal.record(usize::from(step) * 23 + if step.is_multiple_of(32) { 40_000 } else { 0 }, step);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_of_a_file_is_detected_or_harmless() {
    let seed = number_from_env("NEON_MUTATIONS_SEED").unwrap_or_else(rand::random);
    let count = number_from_env("NEON_MUTATIONS").unwrap_or(10_000);
    println!("NEON_MUTATIONS_SEED={seed} NEON_MUTATIONS={count}");
    let mut random = StdRng::seed_from_u64(seed);
    // A complete segment whose WAL begins near its end, and a second one with the commit position in the middle of its
    // WAL: little to read, so that there is time for many.
    let start = Lsn(2 * WAL_SEGMENT_SIZE - 150_000);
    let mut wal = WalBuilder::new(start);
    fill(&mut wal, Lsn(2 * WAL_SEGMENT_SIZE + 80_000));
    let commit = wal.end_lsn();
    fill(&mut wal, commit + 80_000);
    let original = Original::make(start, wal, commit).await;
    campaign(&original, count - count / 50, &mut random);
    // The same over four segments, two of which were switched away from; each change takes longer there.
    let start = Lsn(WAL_SEGMENT_SIZE + 40);
    let mut wal = WalBuilder::new(start);
    for segment in 1..3 {
        fill(&mut wal, Lsn(segment * WAL_SEGMENT_SIZE + 60_000));
        wal.switch();
    }
    fill(&mut wal, Lsn(3 * WAL_SEGMENT_SIZE + 30_000));
    let commit = wal.end_lsn();
    fill(&mut wal, commit + 30_000);
    let original = Original::make(start, wal, commit).await;
    campaign(&original, count / 50, &mut random);
}
