//! WAL of a real server through a safekeeper made for the test: ingest, waiting, feedback, reconnecting, restart,
//! backups.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test program fails by panicking")]

mod common;

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::safekeeper::{Cluster, FakeSafekeeper, cluster_with_wal, run_sql};
use common::{Pages, TENANT, TIMELINE, blocks, client, eventually, relation_files};
use page_protocol::{Payload, RequestKind};
use pageserver::Server;
use pageserver::tenants::NewTimeline;
use pageserver::timeline::status::ReceiverState;
use pg_types::{ForkNumber, Lsn, TimelineId, page};
use tokio_util::sync::CancellationToken;

/// Every main fork's page has the LSN that it has in the server's files: every record was applied to it, and no
/// other.
async fn assert_same_lsns(server: &Server, timeline: TimelineId, cluster: &Cluster) {
    let mut pages = Pages::open(server, timeline).await;
    let mut compared = 0;
    for (rel, first, path) in relation_files(&cluster.pgdata) {
        if rel.fork != ForkNumber::Main {
            continue;
        }
        let blocks = blocks(&path);
        let count = u32::try_from(blocks.len()).unwrap();
        let mut kinds = vec![RequestKind::Nblocks(rel)];
        kinds.extend((0..count).map(|n| RequestKind::GetPage(rel, first + n)));
        pages
            .ask(cluster.end, &kinds, |index, payload| match payload {
                Payload::Nblocks(nblocks) => assert_eq!(nblocks, first + count, "{rel}"),
                Payload::Page(found) => {
                    let block = &blocks[index - 1];
                    let expected = page::lsn(block.first_chunk().unwrap());
                    assert_eq!(page::lsn(found), expected, "{rel} block {}", index - 1);
                }
                other => panic!("{rel}: {other:?}"),
            })
            .await;
        compared += count;
    }
    assert!(compared > 2000, "{compared}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_becomes_pages_across_broken_connections_and_a_restart() {
    let cluster = cluster_with_wal();
    let keeper = FakeSafekeeper::new(&cluster.pgdata, cluster.end);
    *keeper.cut_after.lock().unwrap() = vec![400_000, 30_001, 5, 70_000];
    let keeper = Arc::new(keeper);
    let shutdown = CancellationToken::new();
    let source = keeper.listen(&shutdown).await;
    let server = Server::start(cluster.config.clone()).await.unwrap();
    server.tenants().set_wal_source(TENANT, TIMELINE, source).await.unwrap();
    let timeline = server.tenants().timeline(TENANT, TIMELINE).unwrap();

    // Nothing but the wait for its LSN makes this request come right.
    assert_same_lsns(&server, TIMELINE, &cluster).await;
    assert_eq!(timeline.last_record_lsn(), cluster.end);
    eventually("feedback of everything", || {
        keeper.feedback.lock().unwrap().last().is_some_and(|f| f.last_received_lsn == cluster.end)
    })
    .await;
    let before = keeper.feedback.lock().unwrap().last().copied().unwrap();
    assert!(before.disk_consistent_lsn < cluster.end);
    timeline.flush().unwrap();
    eventually("feedback of the flush", || {
        let last = keeper.feedback.lock().unwrap().last().copied().unwrap();
        last.disk_consistent_lsn == cluster.end && last.remote_consistent_lsn == cluster.end
    })
    .await;
    {
        let starts = keeper.starts.lock().unwrap();
        assert!(starts.len() == 5 && starts.is_sorted(), "{starts:?}");
    }

    drop(timeline);
    server.stop().await;
    let server = Server::start(cluster.config.clone()).await.unwrap();
    assert_same_lsns(&server, TIMELINE, &cluster).await;
    server.stop().await;
    shutdown.cancel();
    drop(cluster.dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_safekeeper_that_lags_is_left_though_no_reader_waits() {
    let cluster = cluster_with_wal();
    let behind = Lsn(cluster.end.0 - 200_000);
    let (slow, other) =
        [behind, cluster.end].map(|end| Arc::new(FakeSafekeeper::new(&cluster.pgdata, end))).into();
    let shutdown = CancellationToken::new();
    let mut source = slow.listen(&shutdown).await;
    source.safekeepers.extend(other.listen(&shutdown).await.safekeepers);
    let server = Server::start(cluster.config.clone()).await.unwrap();
    server.tenants().set_wal_source(TENANT, TIMELINE, source).await.unwrap();
    let timeline = server.tenants().timeline(TENANT, TIMELINE).unwrap();
    eventually("all WAL", || timeline.last_record_lsn() == cluster.end).await;
    assert_eq!(slow.starts.lock().unwrap().len(), 1, "it did not end its stream");
    server.stop().await;
    shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_wal_is_ingested_again_and_branches_wait_for_it() {
    let cluster = cluster_with_wal();
    let keeper = Arc::new(FakeSafekeeper::new(&cluster.pgdata, cluster.end));
    let shutdown = CancellationToken::new();
    let source = keeper.listen(&shutdown).await;
    let server = Server::start(cluster.config.clone()).await.unwrap();
    server.tenants().set_wal_source(TENANT, TIMELINE, source).await.unwrap();
    let branch = NewTimeline {
        timeline_id: TimelineId([0x77; 16]),
        ancestor_timeline_id: Some(TIMELINE),
        ancestor_start_lsn: Some(cluster.end),
        pg_version: 17,
    };
    // The position is not there yet: the creation waits for it.
    let (branch, _) = server.tenants().create_timeline(TENANT, branch).await.unwrap();
    let branch_id = branch.metadata.timeline_id;
    assert_same_lsns(&server, branch_id, &cluster).await;
    drop(branch);
    // No flush, no good-bye.
    drop(server);
    let server = Server::start(cluster.config.clone()).await.unwrap();
    assert_same_lsns(&server, branch_id, &cluster).await;
    assert_same_lsns(&server, TIMELINE, &cluster).await;
    server.stop().await;
    shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_that_is_damaged_stops_ingest_with_the_reason_and_reads_go_on() {
    let cluster = cluster_with_wal();
    let damage = Lsn(cluster.end.0 - 100_000);
    let keeper = FakeSafekeeper::new(&cluster.pgdata, cluster.end);
    let keeper = Arc::new(FakeSafekeeper { damage: Some(damage), ..keeper });
    let shutdown = CancellationToken::new();
    let source = keeper.listen(&shutdown).await;
    let server = Server::start(cluster.config.clone()).await.unwrap();
    server.tenants().set_wal_source(TENANT, TIMELINE, source).await.unwrap();
    let timeline = server.tenants().timeline(TENANT, TIMELINE).unwrap();
    eventually("the receiver fails", || {
        matches!(timeline.receiver().state(), ReceiverState::Failed { .. })
    })
    .await;
    let ReceiverState::Failed { reason } = timeline.receiver().state() else { unreachable!() };
    assert!(reason.contains("invalid WAL at"), "{reason}");
    let reached = timeline.last_record_lsn();
    assert!(reached <= damage && damage - reached < 200_000, "{reached} {damage}");
    let rel = relation_files(&cluster.pgdata)[0].0;
    let mut pages = Pages::open(&server, TIMELINE).await;
    pages
        .ask(Lsn::MAX, &[RequestKind::Exists(rel)], |_, payload| {
            assert_eq!(payload, Payload::Exists(true));
        })
        .await;

    // Another source, without the damage, gets it going again.
    let healthy = Arc::new(FakeSafekeeper::new(&cluster.pgdata, cluster.end));
    let source = healthy.listen(&shutdown).await;
    server.tenants().set_wal_source(TENANT, TIMELINE, source).await.unwrap();
    tokio::time::timeout(Duration::from_secs(120), timeline.wait_lsn(cluster.end))
        .await
        .unwrap()
        .unwrap();
    server.stop().await;
    shutdown.cancel();
}

fn unpack(archive: &[u8], pgdata: &Path) {
    std::fs::create_dir(pgdata).unwrap();
    tar::Archive::new(archive).unpack(pgdata).unwrap();
    std::fs::set_permissions(pgdata, PermissionsExt::from_mode(0o700)).unwrap();
    let settings = pgdata.join("postgresql.conf");
    if !settings.exists() {
        std::fs::write(settings, "").unwrap();
    }
    if let Some(user) = pg_launch::unprivileged_user().unwrap() {
        user.give(pgdata).unwrap();
    }
}

fn file_of(archive: &[u8], name: &str) -> String {
    let mut text = String::new();
    let mut archive = tar::Archive::new(archive);
    let mut entries = archive.entries().unwrap().map(Result::unwrap);
    let mut entry = entries.find(|entry| entry.path().unwrap() == Path::new(name)).unwrap();
    entry.read_to_string(&mut text).unwrap();
    text
}

async fn backup(server: &Server, command: &str) -> Result<Vec<u8>, pg_wire::ClientError> {
    let mut client = client(server).await;
    let mut stream = client.copy_out(&format!("{command} {TENANT} {TIMELINE}")).await?;
    let mut archive = Vec::new();
    while let Some(chunk) = stream.next().await? {
        archive.extend_from_slice(&chunk);
    }
    Ok(archive)
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_come_over_the_wire_and_a_full_one_starts() {
    let mut cluster = cluster_with_wal();
    cluster.config.wait_lsn_timeout = Duration::from_millis(200);
    let keeper = Arc::new(FakeSafekeeper::new(&cluster.pgdata, cluster.end));
    let shutdown = CancellationToken::new();
    let source = keeper.listen(&shutdown).await;
    let server = Server::start(cluster.config.clone()).await.unwrap();
    server.tenants().set_wal_source(TENANT, TIMELINE, source).await.unwrap();
    let timeline = server.tenants().timeline(TENANT, TIMELINE).unwrap();
    eventually("everything is ingested", || timeline.last_record_lsn() == cluster.end).await;

    let base = backup(&server, "basebackup").await.unwrap();
    let prev = timeline.store().position().prev_record_lsn;
    assert_eq!(file_of(&base, "neon.signal"), format!("PREV LSN: {prev}"));
    assert_eq!(file_of(&base, "PG_VERSION").trim(), "17");
    let mut client = client(&server).await;
    let ahead = format!("basebackup {TENANT} {TIMELINE} 7/0");
    let error = client.copy_out(&ahead).await.err().unwrap().to_string();
    assert!(error.contains("waiting for WAL up to 7/0"), "{error}");

    let full = backup(&server, "fullbackup").await.unwrap();
    let restored = cluster.dir.path().join("restored");
    unpack(&full, &restored);
    let query = "select 'sum ' || sum(a) || ' of ' || count(*) as answer from t\n";
    let (ours, theirs) = (run_sql(&restored, query), run_sql(&cluster.pgdata, query));
    assert!(theirs.contains("answer = \"sum "), "{theirs}");
    assert_eq!(ours, theirs);
    server.stop().await;
    shutdown.cancel();
}
