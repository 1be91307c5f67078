//! WAL in an object store: a folder, and a real S3 server in this process.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
#[path = "common/s3.rs"]
mod s3;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use common::wal_builder::WalBuilder;
use common::{Node, Proposer, TENANT, TIMELINE, WalClient, wait_for};
use pg_types::xlog::{WAL_SEGMENT_SIZE, segment_file_name, segment_start};
use pg_types::{Lsn, NodeId};
use pg_wire::replication::PageserverFeedback;
use s3::S3Server;
use safekeeper::backup::names::PartialName;

const START: Lsn = Lsn(0x100_0028);
/// Nothing is saved or removed unless a test asks for it.
const CALM: &str = "maintenance_interval = '1h'\n";

/// A store and where its objects are.
enum Backend {
    Folder(tempfile::TempDir),
    S3(S3Server),
}

impl Backend {
    fn folder() -> Backend {
        Backend::Folder(tempfile::tempdir().unwrap())
    }

    async fn s3() -> Backend {
        Backend::S3(S3Server::start().await)
    }

    fn settings(&self) -> String {
        match self {
            Backend::Folder(dir) => {
                format!("{CALM}[remote_storage]\nlocal_path = '{}'\n", dir.path().display())
            }
            Backend::S3(server) => format!("{CALM}{}", server.settings()),
        }
    }

    fn dir(&self) -> PathBuf {
        match self {
            Backend::Folder(dir) => dir.path().to_owned(),
            Backend::S3(server) => server.objects(),
        }
        .join(TENANT.to_string())
        .join(TIMELINE.to_string())
    }

    fn objects(&self) -> BTreeMap<String, PathBuf> {
        list(&self.dir())
    }

    fn partials(&self) -> Vec<String> {
        list(&self.dir().join("partial")).into_keys().collect()
    }

    /// Every object with its right bytes, and these are there.
    fn check(&self, wal: &WalBuilder, segments: std::ops::Range<u64>) {
        let objects = self.objects();
        let names: Vec<String> = objects.keys().cloned().collect();
        let expected: Vec<String> =
            segments.clone().map(|segno| segment_file_name(1, segno)).collect();
        assert_eq!(names, expected);
        for (segno, path) in segments.zip(objects.values()) {
            let begin = segment_start(segno).max(START);
            let mut expected = vec![0; usize::try_from(begin - segment_start(segno)).unwrap()];
            expected.extend_from_slice(wal.slice(begin, segment_start(segno + 1)));
            assert!(fs::read(path).unwrap() == expected, "segment {segno}");
        }
    }
}

/// Finished objects in a folder.
fn list(dir: &Path) -> BTreeMap<String, PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    let named = files.map(|entry| (entry.file_name().into_string().unwrap(), entry.path()));
    // What a store writes aside has other names.
    named.filter(|(name, _)| name.starts_with("0000") && !name.contains('#')).collect()
}

/// WAL that ends somewhere in the segment `segments` further.
fn long_wal(segments: u64) -> WalBuilder {
    let mut wal = WalBuilder::new(START);
    while wal.end_lsn() < START + segments * WAL_SEGMENT_SIZE + 100_000 {
        wal.record(100_000, wal.ends.len().to_le_bytes()[0]);
    }
    wal
}

/// Pushes everything and commits a part of it.
async fn push(node: &Node, wal: &WalBuilder, commit: Lsn) -> Proposer {
    let (mut proposer, start) = Proposer::elect_on(node).await;
    proposer.append(start, wal.slice(start, wal.end_lsn()), start.min(commit)).await.unwrap();
    if start < wal.end_lsn() {
        proposer.wait_flushed(wal.end_lsn()).await;
    }
    // There is no other safekeeper that lacks anything.
    proposer.truncate_lsn = commit;
    proposer.heartbeat(wal.end_lsn(), commit).await;
    proposer
}

async fn report(node: &Node, lsn: Lsn) {
    let mut reader = WalClient::start(node, node.lsn("commit_lsn")).await;
    reader.report(PageserverFeedback { remote_consistent_lsn: lsn, ..Default::default() }).await;
    node.wait_lsn("remote_consistent_lsn", lsn);
}

fn checkpoint(node: &Node) {
    assert_eq!(node.http("POST", &format!("{}/checkpoint", Node::path()), "").0, 204);
}

async fn read_all(node: &Node, wal: &WalBuilder, end: Lsn) {
    let mut reader = WalClient::start(node, START).await;
    reader.read_to(end).await;
    assert!(reader.data == wal.slice(START, end));
}

/// `[BK1]`, `[BK3]`: whole committed segments are uploaded, removed when nobody needs them here, and read back.
async fn the_life_of_a_segment(backend: Backend) {
    let mut node = Node::start(&backend.settings());
    node.create(START);
    let wal = long_wal(3);
    let commit = *wal.ends.iter().find(|&&end| 2 * WAL_SEGMENT_SIZE + 500_000 < end.0).unwrap();
    let mut proposer = push(&node, &wal, commit).await;
    node.wait_lsn("backup_lsn", segment_start(2));
    backend.check(&wal, 1..2);
    let end = wal.end_lsn();
    proposer.truncate_lsn = end;
    proposer.heartbeat(end, end).await;
    node.wait_lsn("backup_lsn", segment_start(4));
    backend.check(&wal, 1..4);
    report(&node, segment_start(3) + 5000).await;
    checkpoint(&node);
    assert_eq!(node.segments().len(), 2, "{:?}", node.segments());
    read_all(&node, &wal, end).await;
    let fetched = node.metric("backup_fetched_bytes_total");
    assert!(WAL_SEGMENT_SIZE < fetched, "{fetched} bytes came from the store");
    node.kill();
    node.restart();
    assert_eq!(node.lsn("backup_lsn"), segment_start(4));
    read_all(&node, &wal, end).await;
    assert_eq!(node.metric("backup_uploads_total"), 0);
    // `[BK5]`
    let beside = backend.dir().with_extension("beside");
    fs::write(&beside, "x").unwrap();
    assert_eq!(node.http("DELETE", &Node::path(), "").0, 200);
    assert!(backend.objects().is_empty());
    assert_eq!(node.http("DELETE", &Node::path(), "").0, 200);
    assert!(beside.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_life_of_a_segment_in_a_folder() {
    the_life_of_a_segment(Backend::folder()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_life_of_a_segment_on_s3() {
    the_life_of_a_segment(Backend::s3().await).await;
}

/// `[BK6]`
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_delays_removal_and_nothing_else() {
    let server = S3Server::start().await;
    server.failing.store(true, Ordering::Release);
    let mut node = Node::start(&format!("{CALM}{}", server.settings()));
    node.create(START);
    let wal = long_wal(2);
    let end = wal.end_lsn();
    push(&node, &wal, end).await;
    report(&node, end).await;
    wait_for(|| 3 <= node.metric("backup_errors_total"), || "no upload failed".to_owned());
    checkpoint(&node);
    assert_eq!((node.segments().len(), node.lsn("backup_lsn")), (3, Lsn(0)));
    // Commits go on meanwhile, and what was put off is done when the store is back.
    let mut longer = wal.clone();
    let end = longer.record(1000, 1);
    push(&node, &longer, end).await;
    server.failing.store(false, Ordering::Release);
    node.wait_lsn("backup_lsn", segment_start(3));
    checkpoint(&node);
    assert_eq!(node.segments().len(), 1);
    // Without the store there is less to read, and a log that loads.
    node.kill();
    node.set_settings(CALM);
    node.restart();
    assert_eq!(node.lsn("flush_lsn"), end);
    read_from(&node, segment_start(3), &longer, end).await;
}

async fn read_from(node: &Node, start: Lsn, wal: &WalBuilder, end: Lsn) {
    let mut reader = WalClient::start(node, start).await;
    reader.read_to(end).await;
    assert!(reader.data == wal.slice(start, end));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_store_the_backup_position_does_not_count() {
    let mut node = Node::start(CALM);
    node.create(START);
    let wal = long_wal(3);
    let end = wal.end_lsn();
    push(&node, &wal, end).await;
    report(&node, segment_start(3)).await;
    checkpoint(&node);
    assert_eq!(node.segments().len(), 2);
    // A store that is configured later gets what is still here.
    node.kill();
    let backend = Backend::folder();
    node.set_settings(&backend.settings());
    node.restart();
    node.wait_lsn("backup_lsn", segment_start(4));
    backend.check(&wal, 3..4);
    node.wait_log("neither here nor in the object store");
}

/// Killed when the object is there, but nobody has heard of it: the position is not ahead of the store, and the object is
/// found instead of being made again.
#[tokio::test(flavor = "multi_thread")]
async fn killed_between_an_upload_and_its_answer() {
    let server = S3Server::start().await;
    server.silent.store(true, Ordering::Release);
    let backend = Backend::S3(server);
    let mut node = Node::start(&backend.settings());
    node.create(START);
    let wal = long_wal(2);
    let end = wal.end_lsn();
    push(&node, &wal, end).await;
    let whole =
        |path: &PathBuf| fs::metadata(path).is_ok_and(|file| file.len() == WAL_SEGMENT_SIZE);
    wait_for(|| backend.objects().values().any(whole), || "no upload began".to_owned());
    checkpoint(&node);
    assert_eq!(node.lsn("backup_lsn"), Lsn(0));
    node.kill();
    if let Backend::S3(server) = &backend {
        server.silent.store(false, Ordering::Release);
    }
    node.restart();
    node.wait_lsn("commit_lsn", end);
    node.wait_lsn("backup_lsn", segment_start(3));
    assert_eq!(node.metric("backup_uploads_total"), 1, "one of two was there");
    backend.check(&wal, 1..3);
}

/// Killed anywhere, again and again, with a page server that is always up to date: whatever was removed from the disk is
/// in the store, and every object is whole.
#[tokio::test(flavor = "multi_thread")]
async fn kills_between_any_two_steps() {
    let backend = Backend::folder();
    let settings = backend.settings().replace("'1h'", "'5ms'");
    let mut node = Node::start(&format!("partial_backup_timeout = '5ms'\n{settings}"));
    node.create(START);
    let mut wal = WalBuilder::new(START);
    for round in 0..8u64 {
        let (mut proposer, start) = Proposer::elect_on(&node).await;
        wal = wal.fork_at(start);
        while wal.end_lsn() < start + WAL_SEGMENT_SIZE * 3 / 2 {
            wal.record(100_000, round.to_le_bytes()[0]);
        }
        let end = wal.end_lsn();
        proposer.append(start, wal.slice(start, end), start).await.unwrap();
        proposer.wait_flushed(end).await;
        proposer.truncate_lsn = end;
        proposer.heartbeat(end, end).await;
        report(&node, end).await;
        // What it has done of uploading, saving, removing and cleaning by then differs.
        tokio::time::sleep(std::time::Duration::from_millis(round * 15)).await;
        node.kill();
        for (name, path) in backend.objects() {
            assert_eq!(fs::metadata(path).unwrap().len(), WAL_SEGMENT_SIZE, "{name}");
        }
        node.restart();
        // What is committed is known again when the next proposer comes; what was saved is not ahead of the log.
        read_all(&node, &wal, node.lsn("commit_lsn")).await;
    }
    let end = wal.end_lsn();
    push(&node, &wal, end).await;
    node.wait_lsn("backup_lsn", segment_start(end.0 / WAL_SEGMENT_SIZE));
    backend.check(&wal, 1..end.0 / WAL_SEGMENT_SIZE);
    read_all(&node, &wal, end).await;
    wait_for(|| backend.partials().len() == 1, || format!("{:?}", backend.partials()));
}

/// `[BK1]`: whoever uploads, and however often, the objects are the same.
#[tokio::test(flavor = "multi_thread")]
async fn safekeepers_share_a_store() {
    let backend = Backend::folder();
    let nodes = [Node::start(&backend.settings()), Node::start(&backend.settings())];
    let wal = long_wal(3);
    let end = wal.end_lsn();
    for node in &nodes {
        node.create(START);
    }
    let proposers = (push(&nodes[0], &wal, end), push(&nodes[1], &wal, end));
    tokio::join!(proposers.0, proposers.1);
    for node in &nodes {
        node.wait_lsn("backup_lsn", segment_start(4));
    }
    backend.check(&wal, 1..4);
    let uploads: u64 = nodes.iter().map(|node| node.metric("backup_uploads_total")).sum();
    assert!((3..=6).contains(&uploads), "{uploads}");
}

/// `[BK7]`: one disk has a bad byte in an old segment; the object comes from the other one.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_wal_is_not_uploaded() {
    let backend = Backend::folder();
    let mut node = Node::start(CALM);
    node.create(START);
    let wal = long_wal(3);
    let end = wal.end_lsn();
    push(&node, &wal, end).await;
    checkpoint(&node);
    node.kill();
    let segment = node.timeline_dir().join(segment_file_name(1, 2));
    let mut bytes = fs::read(&segment).unwrap();
    bytes[5_000_000] ^= 4;
    fs::write(&segment, bytes).unwrap();
    node.set_settings(&backend.settings());
    node.restart();
    node.wait_log("WAL in the segment at 0/2000000 is damaged on this disk");
    assert_eq!(node.lsn("backup_lsn"), segment_start(2));
    backend.check(&wal, 1..2);
    let other = Node::start(&backend.settings());
    other.create(START);
    push(&other, &wal, end).await;
    node.wait_lsn("backup_lsn", segment_start(4));
    other.wait_lsn("backup_lsn", segment_start(4));
    backend.check(&wal, 1..4);
}

/// `[BK4]`
async fn the_beginning_of_the_last_segment(backend: Backend) {
    let node = Node::start(&format!("partial_backup_timeout = '30ms'\n{}", backend.settings()));
    node.create(START);
    let mut wal = WalBuilder::new(START);
    for round in 0..3u8 {
        let end = wal.record(5000, round);
        let proposer = push(&node, &wal, end).await;
        let expected = PartialName {
            segno: 1,
            term: pg_types::Term(proposer.term),
            flush_lsn: end,
            commit_lsn: end,
            node_id: NodeId(1),
        };
        let expected = expected.to_string();
        wait_for(
            || backend.partials() == [expected.as_str()],
            || format!("expected {expected}, found {:?}", backend.partials()),
        );
        let content = fs::read(backend.dir().join("partial").join(expected)).unwrap();
        assert!(content[0x28..] == *wal.bytes());
    }
    assert!(backend.objects().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_beginning_of_the_last_segment_in_a_folder() {
    the_beginning_of_the_last_segment(Backend::folder()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_beginning_of_the_last_segment_on_s3() {
    the_beginning_of_the_last_segment(Backend::s3().await).await;
}
