//! A timeline that moves between safekeepers: copies, promises, leaving (L239–L242).
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use common::wal_builder::WalBuilder;
use common::{Node, Proposer, TENANT, TIMELINE, WalClient};
use pg_types::Lsn;
use pg_wire::replication::PageserverFeedback;
use serde_json::{Value, json};

const START: Lsn = Lsn(0x100_0028);

fn conf(generation: u32, ids: &[u64]) -> Value {
    let members: Vec<Value> =
        ids.iter().map(|id| json!({ "id": id, "host": "h", "pg_port": id })).collect();
    json!({ "generation": generation, "members": members, "new_members": null })
}

fn pull(to: &Node, donors: &[SocketAddr], mconf: &Value) -> (u16, Value) {
    let hosts: Vec<String> = donors.iter().map(SocketAddr::to_string).collect();
    let body = json!({
        "tenant_id": TENANT, "timeline_id": TIMELINE, "http_hosts": hosts, "mconf": mconf
    });
    to.http("POST", "/v1/pull_timeline", &body.to_string())
}

fn put(node: &Node, what: &str, body: &Value) -> (u16, Value) {
    node.http("PUT", &format!("{}/{what}", Node::path()), &body.to_string())
}

fn post(node: &Node, what: &str, body: &Value) -> (u16, Value) {
    node.http("POST", &format!("{}/{what}", Node::path()), &body.to_string())
}

/// A safekeeper with WAL over more than one segment, of which a part is committed; commit and end.
async fn donor() -> (Node, WalBuilder, Lsn, Lsn) {
    donor_with("").await
}

async fn donor_with(settings: &str) -> (Node, WalBuilder, Lsn, Lsn) {
    let node = Node::start(settings);
    node.create(START);
    let mut wal = WalBuilder::new(START);
    for round in 0..40 {
        wal.record(500_000, round);
    }
    let (saved, committed) = (wal.ends[35], wal.ends[37]);
    let end = wal.end_lsn();
    let (mut proposer, _) = Proposer::elect_on(&node).await;
    proposer.append(START, wal.bytes(), START).await.unwrap();
    proposer.wait_flushed(end).await;
    // A copy is made of what is known, not of what was saved last: here everybody has more than was saved as committed.
    for committed in [saved, committed] {
        proposer.truncate_lsn = committed;
        proposer.heartbeat(end, committed).await;
    }
    (node, wal, committed, end)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_the_original_and_survives_a_crash() {
    let (donor, wal, committed, end) = donor().await;
    let mut node = Node::start_number(2, "");
    let joint = conf(1, &[1, 2]);
    let (status, body) = pull(&node, &[donor.http], &joint);
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["safekeeper_host"], donor.http.to_string());
    assert_eq!(body["flush_lsn"], end.to_string());
    assert_eq!((&body["term"], &body["last_log_term"]), (&json!(1), &json!(1)));
    assert_eq!(body["current_conf"], joint);
    for _ in 0..2 {
        assert_eq!((node.lsn("flush_lsn"), node.lsn("commit_lsn")), (end, committed));
        let mut reader = WalClient::start(&node, START).await;
        reader.read_to(committed).await;
        assert!(reader.data == wal.slice(START, committed));
        node.kill();
        node.restart();
    }
    // Once it is here, pulling is switching, from wherever.
    let (status, body) = pull(&node, &[], &conf(2, &[2]));
    assert_eq!((status, &body["safekeeper_host"]), (200, &Value::Null), "{body}");
    assert_eq!(body["current_conf"], conf(2, &[2]));
    let (status, body) = pull(&node, &[], &joint);
    assert_eq!((status, body["code"].as_str()), (409, Some("membership_is_newer")));
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_that_cannot_be_made_leave_nothing() {
    let (donor, ..) = donor().await;
    let node = Node::start_number(2, "");
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (status, body) = pull(&node, &[nowhere], &conf(1, &[1, 2]));
    assert_eq!((status, body["code"].as_str()), (502, Some("pull_failed")), "{body}");
    let (status, body) = pull(&node, &[donor.http], &conf(1, &[1]));
    assert_eq!((status, body["code"].as_str()), (403, Some("not_a_member")), "{body}");
    // A donor in a newer configuration.
    assert_eq!(put(&donor, "membership", &conf(5, &[1])).0, 200);
    let (status, body) = pull(&node, &[donor.http], &conf(4, &[1, 2]));
    assert_eq!((status, &body["current"]["generation"]), (409, &json!(5)), "{body}");
    // A donor that breaks off.
    let cut = cutting_proxy(donor.http, 3_000_000);
    let (status, body) = pull(&node, &[cut], &conf(6, &[1, 2]));
    assert_eq!((status, body["code"].as_str()), (502, Some("pull_failed")), "{body}");
    assert_eq!(node.http("GET", &Node::path(), "").0, 404);
    // An unreachable donor beside a good one does not matter.
    let (status, body) = pull(&node, &[nowhere, donor.http], &conf(6, &[1, 2]));
    assert_eq!(status, 200, "{body}");
}

/// Passes one connection after another on, and closes each after so many bytes of answer.
fn cutting_proxy(to: SocketAddr, limit: u64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.unwrap();
            let server = TcpStream::connect(to).unwrap();
            let (mut requests, mut to_server) =
                (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(len @ 1..) = requests.read(&mut buffer) {
                    if to_server.write_all(&buffer[..len]).is_err() {
                        return;
                    }
                }
            });
            std::thread::spawn(move || {
                // Either side may be gone already.
                let _ = std::io::copy(&mut (&server).take(limit), &mut &client);
                let _ = client.shutdown(std::net::Shutdown::Both);
                let _ = server.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn who_left_comes_back_in_a_newer_generation_only() {
    let (mut node, ..) = donor().await;
    assert_eq!(put(&node, "membership", &conf(3, &[1, 2])).0, 200);
    let other = Node::start_number(2, "");
    assert_eq!(pull(&other, &[node.http], &conf(3, &[1, 2])).0, 200);
    let (status, body) = put(&node, "exclude", &conf(4, &[1, 2]));
    assert_eq!((status, body["code"].as_str()), (403, Some("still_a_member")));
    let (status, body) = put(&node, "exclude", &conf(2, &[2]));
    assert_eq!((status, body["code"].as_str()), (409, Some("membership_is_newer")));
    assert_eq!(node.http("GET", &Node::path(), "").0, 200);
    for existed in [true, false] {
        let (status, body) = put(&node, "exclude", &conf(4, &[2]));
        assert_eq!((status, body), (200, json!({ "dir_existed": existed })));
    }
    assert!(!node.timeline_dir().exists());
    node.kill();
    node.restart();
    // A request that was under way for long.
    let (status, body) = pull(&node, &[other.http], &conf(4, &[1, 2]));
    assert_eq!((status, body["code"].as_str()), (409, Some("timeline_has_left")), "{body}");
    assert_eq!(node.http("POST", "/v1/tenant/timeline", &common::create_body(START)).0, 409);
    let (status, body) = pull(&node, &[other.http], &conf(5, &[1, 2]));
    assert_eq!(status, 200, "{body}");
    // The tombstone of the older generation does not take it away at the next start.
    node.kill();
    node.restart();
    assert_eq!(node.lsn("flush_lsn"), other.lsn("flush_lsn"));
    // Deleted is deleted, whatever comes.
    assert_eq!(node.http("DELETE", &Node::path(), "").0, 200);
    let (status, body) = pull(&node, &[other.http], &conf(9, &[1, 2]));
    assert_eq!((status, body["code"].as_str()), (410, Some("timeline_deleted")));
}

/// Both members of generation 1, where they really are.
fn join(nodes: &[&Node]) {
    let members: Vec<Value> = (1u64..)
        .zip(nodes)
        .map(|(id, node)| json!({ "id": id, "host": "127.0.0.1", "pg_port": node.pg.port() }))
        .collect();
    let conf = json!({ "generation": 1, "members": members, "new_members": null });
    for node in nodes {
        assert_eq!(put(node, "membership", &conf).0, 200);
    }
}

const EAGER: &str = "peer_interval = '50ms'\nmaintenance_interval = '50ms'";

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_catches_up_without_a_compute_and_hears_of_page_servers() {
    let (donor, wal, committed, end) = donor_with(EAGER).await;
    let mut late = Node::start_number(2, EAGER);
    late.create(START);
    join(&[&donor, &late]);
    late.wait_lsn("flush_lsn", end);
    late.wait_lsn("commit_lsn", committed);
    let mut reader = WalClient::start(&late, START).await;
    reader.read_to(committed).await;
    assert!(reader.data == wal.slice(START, committed));
    // A page server that reads from the other one only.
    assert_eq!(late.segments().len(), donor.segments().len());
    let before = late.segments().len();
    let mut page_server = WalClient::start(&donor, committed).await;
    let report = PageserverFeedback { remote_consistent_lsn: committed, ..Default::default() };
    page_server.report(report).await;
    let fewer = |node: &Node| node.segments().len() < before;
    common::wait_for(|| fewer(&donor) && fewer(&late), || "WAL is not removed".to_owned());
    late.kill();
    late.restart();
    assert_eq!(late.lsn("flush_lsn"), end);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_an_older_term_is_cut_and_replaced() {
    let leader = async |node: &Node, term: u64, wal: &WalBuilder| {
        let mut proposer = Proposer::connect(node).await;
        assert!(proposer.vote(term).await.vote_given);
        proposer.elected(START, common::history(&[(0, START), (term, START)])).await;
        proposer.append(START, wal.bytes(), START).await.unwrap();
        proposer.wait_flushed(wal.end_lsn()).await;
        proposer
    };
    // WAL of term 1 that no quorum ever had, and more of it than of the WAL of term 2, of which a part is committed.
    let (late, donor) = (Node::start_number(2, EAGER), Node::start(EAGER));
    let (mut stray, mut wal) = (WalBuilder::new(START), WalBuilder::new(START));
    stray.record(20_000_000, 99);
    let committed = wal.record(1000, 7);
    let end = wal.record(17_000_000, 8);
    for node in [&late, &donor] {
        node.create(START);
    }
    drop(leader(&late, 1, &stray).await);
    leader(&donor, 2, &wal).await.heartbeat(end, committed).await;
    join(&[&donor, &late]);
    common::wait_for(|| late.lsn("flush_lsn") == end, || late.log());
    assert_eq!(late.lsn("commit_lsn"), committed);
    let command = format!("START_REPLICATION PHYSICAL {START} (term='2')");
    let mut reader = WalClient::connect(&late, &command, START).await.unwrap();
    reader.read_to(end).await;
    assert!(reader.data == wal.slice(START, end));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promise_is_kept() {
    let (mut node, ..) = donor().await;
    let (status, body) = post(&node, "term_bump", &json!({ "term": 7 }));
    assert_eq!((status, &body["previous_term"], &body["term"]), (200, &json!(1), &json!(7)));
    // A lower one changes nothing; none is the next one.
    assert_eq!(post(&node, "term_bump", &json!({ "term": 3 })).1["term"], 7);
    assert_eq!(post(&node, "term_bump", &json!({})).1["term"], 8);
    assert_eq!(post(&node, "term_bump", &json!({ "term": u64::MAX })).0, 400);
    node.kill();
    node.restart();
    let mut proposer = Proposer::connect(&node).await;
    assert_eq!(proposer.greeting.term.0, 8);
    assert!(!proposer.vote(8).await.vote_given);
}
