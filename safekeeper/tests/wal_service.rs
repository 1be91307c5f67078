//! The process as its clients see it: proposers, readers, HTTP. Every test kills what it starts.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::os::unix::fs::FileExt;
use std::time::Duration;

use common::wal_builder::WalBuilder;
use common::{Node, Proposer, TENANT, TIMELINE, WalClient, create_body, fails_with, history};
use pg_types::xlog::{WAL_SEGMENT_SIZE, segment_file_name, segment_number, segment_offset};
use pg_types::{Lsn, Term};
use pg_wire::replication::PageserverFeedback;
use pg_wire::{Client, ClientError};

const START: Lsn = Lsn(0x100_0028);

fn started(settings: &str) -> Node {
    let node = Node::start(settings);
    node.create(START);
    node
}

fn sqlstate(error: &ClientError) -> &str {
    &error.server_error().unwrap_or_else(|| panic!("{error}")).code
}

/// `[SK4]`
#[tokio::test(flavor = "multi_thread")]
async fn readers_see_committed_wal_only() {
    let node = started("keepalive_interval = '20ms'");
    let mut wal = WalBuilder::new(START);
    let committed = wal.record(50_000, 1);
    let flushed = wal.record(70_000, 2);
    let (mut proposer, start) = Proposer::elect_on(&node).await;
    assert_eq!(start, START);
    proposer.append(START, wal.bytes(), START).await.unwrap();
    proposer.wait_flushed(flushed).await;
    let mut reader = WalClient::start(&node, START).await;
    assert_eq!(reader.keepalive().await, START);
    assert_eq!(reader.end(), START);
    proposer.heartbeat(flushed, committed).await;
    reader.read_to(committed).await;
    assert_eq!(reader.keepalive().await, committed);
    assert_eq!(reader.data, wal.slice(START, committed));
    // One that knows the term may read ahead, as long as the term lasts.
    let command = format!("START_REPLICATION PHYSICAL {committed} (term='1')");
    let mut peer = WalClient::connect(&node, &command, committed).await.unwrap();
    peer.read_to(flushed).await;
    let mut other = Proposer::connect(&node).await;
    assert!(other.vote(2).await.vote_given);
    let error = loop {
        match peer.next().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(sqlstate(&error), "55000");
    // The committed stream does not care about terms.
    assert_eq!(reader.keepalive().await, committed);
}

/// `[SK1]`, `[SK6]`
#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_wal_survives_kills_at_any_point() {
    let mut node = started("");
    let mut wal = WalBuilder::new(START);
    let mut acknowledged = START;
    for round in 0..12u8 {
        let (mut proposer, start) = Proposer::elect_on(&node).await;
        assert!(
            acknowledged <= start,
            "round {round}: {acknowledged} was acknowledged, log ends at {start}"
        );
        wal = wal.fork_at(start);
        // Two megabytes in each round, so that segments end in the middle of some.
        for i in 0..40u8 {
            wal.record(usize::from(i) * 2500, round.wrapping_mul(40).wrapping_add(i));
        }
        proposer.append(start, wal.slice(start, wal.end_lsn()), acknowledged).await.unwrap();
        // Killed after some of the answers: the rest is under way somewhere.
        for _ in 0..=round % 3 {
            acknowledged = acknowledged.max(proposer.response().await.unwrap().flush_lsn);
            if acknowledged == wal.end_lsn() {
                break;
            }
        }
        node.kill();
        if round % 2 == 0 {
            garble_behind(&node, acknowledged);
        }
        node.restart();
    }
    let (mut proposer, end) = Proposer::elect_on(&node).await;
    assert!(acknowledged <= end);
    proposer.heartbeat(end, end).await;
    let mut reader = WalClient::start(&node, START).await;
    reader.read_to(end).await;
    assert!(reader.data == wal.slice(START, end));
}

/// Destroys bytes that were never acknowledged, as a disk that lost unsynced writes might.
fn garble_behind(node: &Node, lsn: Lsn) {
    let name = segment_file_name(1, segment_number(lsn));
    let dir = node.timeline_dir();
    for path in [dir.join(&name), dir.join(name + ".partial")] {
        if let Ok(file) = std::fs::OpenOptions::new().write(true).open(path) {
            let at = (segment_offset(lsn) + 77).min(WAL_SEGMENT_SIZE - 1000);
            if segment_offset(lsn) < at {
                file.write_all_at(&[0x5A; 500], at).unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_higher_term_wins_and_the_lower_one_learns_it() {
    let node = started("");
    let mut wal = WalBuilder::new(START);
    let common = wal.record(1000, 1);
    let mut old = wal.clone();
    let old_end = old.record(3000, 2);
    let mut new = wal.clone();
    let new_end = new.record(2000, 3);
    let (mut first, _) = Proposer::elect_on(&node).await;
    first.append(START, old.bytes(), common).await.unwrap();
    first.wait_flushed(old_end).await;
    first.heartbeat(old_end, common).await;
    let mut second = Proposer::connect(&node).await;
    assert_eq!(second.greeting.term, Term(1));
    let vote = second.vote(2).await;
    assert!(vote.vote_given);
    assert_eq!(vote.flush_lsn, old_end);
    // The first proposer is told without asking.
    let outdated = first.response().await.unwrap();
    assert_eq!((outdated.term, outdated.flush_lsn), (Term(2), Lsn(0)));
    // Its uncommitted record loses: say the second proposer's donor ended at the common record.
    let terms = history(&[(0, START), (1, START), (2, common)]);
    second.elected(common, terms).await;
    second.append(common, new.slice(common, new_end), common).await.unwrap();
    second.wait_flushed(new_end).await;
    second.heartbeat(new_end, new_end).await;
    let mut reader = WalClient::start(&node, START).await;
    reader.read_to(new_end).await;
    assert_eq!(reader.data, new.bytes());
    assert_eq!(first.heartbeat(old_end, old_end).await.term, Term(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_wal_is_never_cut() {
    let node = started("");
    let mut wal = WalBuilder::new(START);
    let end = wal.record(1000, 1);
    let (mut first, _) = Proposer::elect_on(&node).await;
    first.append(START, wal.bytes(), START).await.unwrap();
    first.wait_flushed(end).await;
    first.heartbeat(end, end).await;
    let mut rogue = Proposer::connect(&node).await;
    assert!(rogue.vote(2).await.vote_given);
    rogue.elected(START, history(&[(0, START), (2, START)])).await;
    let error = rogue.recv().await.unwrap_err();
    assert!(error.to_string().contains("below the commit position"), "{error}");
    assert_eq!(node.lsn("flush_lsn"), end);
}

/// `[SK5]`
#[tokio::test(flavor = "multi_thread")]
async fn wal_below_the_horizon_is_removed() {
    let mut node = started("");
    let mut wal = WalBuilder::new(START);
    while wal.end_lsn() < START + 3 * WAL_SEGMENT_SIZE {
        wal.record(100_000, 7);
    }
    let end = wal.end_lsn();
    let (mut proposer, _) = Proposer::elect_on(&node).await;
    proposer.append(START, wal.bytes(), START).await.unwrap();
    proposer.wait_flushed(end).await;
    proposer.heartbeat(end, end).await;
    let checkpoint = format!("{}/checkpoint", Node::path());
    assert_eq!(node.http("POST", &checkpoint, "").0, 204);
    // Nobody has reported yet: everything stays.
    assert_eq!(node.segments().len(), 4);
    let mut reader = WalClient::start(&node, START).await;
    reader.read_to(end).await;
    assert!(reader.data == wal.bytes());
    let horizon = Lsn(3 * WAL_SEGMENT_SIZE + 5000);
    let report = PageserverFeedback { remote_consistent_lsn: horizon, ..Default::default() };
    reader.report(report).await;
    node.wait_lsn("remote_consistent_lsn", horizon);
    // Another safekeeper lacks everything yet, and can have it from here only.
    assert_eq!(node.http("POST", &checkpoint, "").0, 204);
    assert_eq!(node.segments().len(), 4);
    proposer.truncate_lsn = end;
    proposer.heartbeat(end, end).await;
    assert_eq!(node.http("POST", &checkpoint, "").0, 204);
    assert_eq!(node.segments().len(), 2, "{:?}", node.segments());
    node.kill();
    node.restart();
    assert_eq!(node.lsn("flush_lsn"), end);
    assert_eq!(node.lsn("remote_consistent_lsn"), horizon);
    let mut late = WalClient::start(&node, START).await;
    let error = loop {
        match late.next().await {
            Ok(_) => assert_eq!(late.end(), START),
            Err(error) => break error,
        }
    };
    assert_eq!(sqlstate(&error), "58P01");
    let mut reader = WalClient::start(&node, horizon).await;
    reader.read_to(end).await;
    assert!(reader.data == wal.slice(horizon, end));
}

#[tokio::test(flavor = "multi_thread")]
async fn feedback_reaches_the_proposer_unasked() {
    let node = started("");
    let (mut proposer, _) = Proposer::elect_on(&node).await;
    assert!(proposer.heartbeat(START, START).await.pageserver_feedback.is_empty());
    let mut reader = WalClient::start(&node, START).await;
    let report = PageserverFeedback {
        last_received_lsn: START,
        current_timeline_size: 42,
        ..Default::default()
    };
    reader.report(report).await;
    let response = proposer.response().await.unwrap();
    assert_eq!(PageserverFeedback::parse(response.pageserver_feedback), Ok(report));
    // Told once; a proposer that connects later is told, too.
    assert!(proposer.heartbeat(START, START).await.pageserver_feedback.is_empty());
    let (mut next, _) = Proposer::elect_on(&node).await;
    let response = next.heartbeat(START, START).await;
    assert_eq!(PageserverFeedback::parse(response.pageserver_feedback), Ok(report));
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_peers_are_cut_off() {
    // L256, L257, [SK8].
    let node = started("connection_timeout = '300ms'\nkeepalive_interval = '100ms'");
    let (proposer, _) = Proposer::elect_on(&node).await;
    node.wait_log("terminated: timed out");
    let log = node.log();
    let line = log.lines().find(|line| line.contains("terminated: timed out")).unwrap();
    let span = format!(":WAL receiver{{ttid={TENANT}/{TIMELINE}}}:");
    assert!(line.contains(" INFO {cid=") && line.contains(&span), "{line}");
    drop(proposer);
    // The same for one that connects and says nothing at all.
    let _silent = tokio::net::TcpStream::connect(node.pg).await.unwrap();
    node.wait_log("connection ended: timed out");
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_ends_its_own_connection_only() {
    let node = started("");
    let (mut proposer, _) = Proposer::elect_on(&node).await;
    let mut wal = WalBuilder::new(START);
    let good = wal.record(100, 1);
    let mut other = Proposer::connect(&node).await;
    other.copy.writer.send_noflush(b"?what").unwrap();
    other.copy.writer.flush().await.unwrap();
    let error = other.recv().await.unwrap_err();
    assert!(error.to_string().contains("malformed message"), "{error}");
    proposer.append(START, wal.bytes(), START).await.unwrap();
    proposer.wait_flushed(good).await;
    // Bytes that are no WAL are refused and never become a flushed position.
    proposer.append(good, &[0xEE; 4000], good).await.unwrap();
    let error = loop {
        match proposer.response().await {
            Ok(response) => assert!(response.flush_lsn <= good),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("invalid WAL at"), "{error}");
    // The next election cuts them off, and all is well.
    let (mut proposer, start) = Proposer::elect_on(&node).await;
    assert_eq!(start, good);
    let next = wal.record(500, 2);
    proposer.append(good, wal.slice(good, next), good).await.unwrap();
    proposer.wait_flushed(next).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_are_refused() {
    let node = started("");
    let mut client = Client::connect(&node.connect_params()).await.unwrap();
    for (command, code) in [
        ("SELECT 1", "42601"),
        ("START_WAL_PUSH (proto_version '1')", "0A000"),
        ("START_WAL_PUSH (proto_version '4')", "0A000"),
        ("START_REPLICATION PHYSICAL nowhere", "42601"),
    ] {
        let error = client.simple_query(command).await.unwrap_err();
        assert_eq!(sqlstate(&error), code, "{command}");
    }
    let identity = client.simple_query("IDENTIFY_SYSTEM").await.unwrap();
    assert_eq!(identity[0].value(0, "timeline"), Some("1"));
    assert_eq!(identity[0].value(0, "xlogpos"), Some("0/1000028"));
    let status = client.simple_query("TIMELINE_STATUS").await.unwrap();
    assert_eq!(status[0].value(0, "flush_lsn"), Some("0/1000028"));
    // Another timeline, and none at all.
    let params = node.connect_params().option("timeline_id", &"0".repeat(32));
    let mut client = Client::connect(&params).await.unwrap();
    assert!(client.simple_query("TIMELINE_STATUS").await.unwrap()[0].rows.is_empty());
    let error = client.simple_query("START_REPLICATION 0/1").await.unwrap_err();
    assert_eq!(sqlstate(&error), "42704");
    let params = node.connect_params().option("timeline_id", "xyz");
    assert_eq!(sqlstate(&Client::connect(&params).await.unwrap_err()), "22023");
    let params = node.connect_params().param("options", "");
    let mut client = Client::connect(&params).await.unwrap();
    assert_eq!(sqlstate(&client.simple_query("IDENTIFY_SYSTEM").await.unwrap_err()), "22023");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_api() {
    let mut node = Node::start("");
    assert_eq!(node.http("GET", "/v1/status", "").1["id"], 1);
    assert_eq!(node.http("GET", &Node::path(), "").0, 404);
    assert_eq!(node.http("POST", "/v1/tenant/timeline", "{}").0, 422);
    assert_eq!(node.http("PATCH", "/v1/status", "").0, 405);
    assert_eq!(node.http("GET", "/v1/tenant/x/timeline/y", "").0, 400);
    node.create(START);
    let create = |start| node.http("POST", "/v1/tenant/timeline", &create_body(start));
    assert_eq!(create(START).0, 200);
    let (status, body) = create(Lsn(0x200_0028));
    assert_eq!((status, body["code"].as_str()), (409, Some("timeline_exists")));
    assert_eq!(
        node.http("GET", "/v1/utilization", ""),
        (200, serde_json::json!({ "timeline_count": 1 }))
    );
    let (_, list) = node.http("GET", "/v1/tenant/timeline", "");
    assert_eq!(list[0]["timeline_id"], TIMELINE.to_string());
    // L239-L241: membership switches upwards only, and the same one twice is fine.
    let membership = format!("{}/membership", Node::path());
    let conf = |generation: u32, id: u64| {
        format!(
            r#"{{"generation":{generation},"members":[{{"id":{id},"host":"h","pg_port":1}}],"new_members":null}}"#
        )
    };
    assert_eq!(node.http("PUT", &membership, &conf(2, 7)).0, 403);
    for _ in 0..2 {
        let (status, body) = node.http("PUT", &membership, &conf(2, 1));
        assert_eq!((status, &body["current_conf"]["generation"]), (200, &2.into()));
    }
    let (status, body) = node.http("PUT", &membership, &conf(1, 1));
    assert_eq!(
        (status, &body["requested"]["generation"], &body["current"]["generation"]),
        (409, &1.into(), &2.into())
    );
    let other = conf(2, 1).replace("\"h\"", "\"elsewhere\"");
    let (status, body) = node.http("PUT", &membership, &other);
    assert_eq!((status, body["code"].as_str()), (409, Some("membership_differs")));
    assert_eq!(node.http("POST", &membership, &conf(3, 1)).0, 405);
    let (_, metrics) = node.http("GET", "/metrics", "");
    assert!(metrics.as_str().unwrap().contains("safekeeper_lsn{"), "{metrics}");
    let (status, body) = node.http("DELETE", &Node::path(), "");
    assert_eq!((status, body), (200, serde_json::json!({ "dir_existed": true })));
    assert!(!node.timeline_dir().exists());
    node.kill();
    node.restart();
    assert_eq!(node.http("GET", &Node::path(), "").0, 404);
    assert_eq!(node.http("POST", "/v1/tenant/timeline", &create_body(START)).0, 410);
}

/// The digest of a range, or the status and code of the refusal.
fn digest(node: &Node, from: impl std::fmt::Display, until: Lsn) -> Result<String, (u16, String)> {
    let path = format!("{}/digest?from_lsn={from}&until_lsn={until}", Node::path());
    let (status, body) = node.http("GET", &path, "");
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    if status == 200 { Ok(text("sha256")) } else { Err((status, text("code"))) }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn digests_are_of_the_flushed_wal_that_is_here() {
    let node = started("");
    let mut wal = WalBuilder::new(START);
    while wal.end_lsn() < START + 2 * WAL_SEGMENT_SIZE {
        wal.record(100_000, 7);
    }
    let end = wal.end_lsn();
    let (mut proposer, _) = Proposer::elect_on(&node).await;
    proposer.append(START, wal.bytes(), START).await.unwrap();
    proposer.wait_flushed(end).await;
    // All of it over several segments, a piece from anywhere to anywhere, and nothing at all.
    assert_eq!(digest(&node, START, end), Ok(sha256(wal.bytes())));
    let (from, until) = (START + 12_345, START + WAL_SEGMENT_SIZE + 1);
    assert_eq!(digest(&node, from, until), Ok(sha256(wal.slice(from, until))));
    assert_eq!(digest(&node, end, end), Ok(sha256(b"")));
    let refused = |status, code: &str| Err((status, code.to_owned()));
    assert_eq!(digest(&node, until, from), refused(400, "bad_request"));
    assert_eq!(digest(&node, START, end + 1), refused(409, "wal_not_flushed"));
    assert_eq!(digest(&node, Lsn(START.0 - 1), end), refused(410, "wal_removed"));
    assert_eq!(digest(&node, "nowhere", end), refused(400, "bad_request"));
    assert_eq!(node.http("GET", &format!("{}/digest?from_lsn=0/0", Node::path()), "").0, 400);
    let other = Node::path().replace("bb", "cc");
    let path = format!("{other}/digest?from_lsn={START}&until_lsn={end}");
    assert_eq!(node.http("GET", &path, "").0, 404);
    // The first segment goes.
    proposer.truncate_lsn = end;
    proposer.heartbeat(end, end).await;
    let mut reader = WalClient::start(&node, START).await;
    reader.read_to(end).await;
    let horizon = Lsn(2 * WAL_SEGMENT_SIZE + 5000);
    let report = PageserverFeedback { remote_consistent_lsn: horizon, ..Default::default() };
    reader.report(report).await;
    node.wait_lsn("remote_consistent_lsn", horizon);
    assert_eq!(node.http("POST", &format!("{}/checkpoint", Node::path()), "").0, 204);
    assert_eq!(digest(&node, START, end), refused(410, "wal_removed"));
    let kept = Lsn(2 * WAL_SEGMENT_SIZE);
    assert_eq!(digest(&node, kept, end), Ok(sha256(wal.slice(kept, end))));
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_ends_connections() {
    let node = started("");
    let (mut proposer, _) = Proposer::elect_on(&node).await;
    let mut reader = WalClient::start(&node, START).await;
    assert_eq!(node.http("DELETE", &Node::path(), "").0, 200);
    assert!(proposer.response().await.is_err());
    while reader.next().await.is_ok() {}
    assert!(Proposer::try_connect(&node).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_end_saves_what_is_saved_late() {
    let mut node = started("maintenance_interval = '1h'");
    let mut wal = WalBuilder::new(START);
    let end = wal.record(1000, 1);
    let (mut proposer, _) = Proposer::elect_on(&node).await;
    proposer.append(START, wal.bytes(), START).await.unwrap();
    proposer.wait_flushed(end).await;
    assert_eq!(proposer.heartbeat(end, end).await.flush_lsn, end);
    node.stop();
    let error = proposer.response().await.unwrap_err();
    assert_eq!(sqlstate(&error), "57P01");
    node.restart();
    assert_eq!(node.lsn("commit_lsn"), end);
}

#[test]
fn broken_settings_are_one_clear_sentence() {
    let text = fails_with("id = 1\ndata_dir = '/tmp/x'\nlisten_port = 5\n");
    assert!(text.contains("unknown field `listen_port`"), "{text}");
    let node = Node::start("");
    let text = fails_with(&node.config_text());
    assert!(text.contains("is in use by another safekeeper process"), "{text}");
    let other = tempfile::tempdir().unwrap();
    let text = fails_with(&format!(
        "id = 1\ndata_dir = '{}'\nlisten_pg_addr = '{}'\n",
        other.path().display(),
        node.pg
    ));
    assert!(text.contains("could not listen on") && text.contains("listen_pg_addr"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_appends_share_flushes() {
    let node = started("");
    let mut wal = WalBuilder::new(START);
    let (mut proposer, _) = Proposer::elect_on(&node).await;
    let mut begin = START;
    for i in 0..2000u32 {
        let end = wal.record(100, i.to_le_bytes()[0]);
        let header = proposer.header(begin, end, START);
        let bytes = bytes::Bytes::copy_from_slice(wal.slice(begin, end));
        let request = wal_consensus::message::AppendRequest { header, wal: bytes };
        let message = wal_consensus::message::ProposerMessage::Append(request);
        proposer.copy.writer.send_noflush(&message.encode()).unwrap();
        begin = end;
    }
    proposer.copy.writer.flush().await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), proposer.wait_flushed(begin)).await.unwrap();
    let (_, metrics) = node.http("GET", "/metrics", "");
    let metrics = metrics.as_str().unwrap().to_owned();
    let count = metrics
        .lines()
        .find_map(|line| line.strip_prefix("safekeeper_flush_seconds_count "))
        .unwrap();
    assert!(count.parse::<u32>().unwrap() < 1000, "{count} flushes for 2000 appends");
}
