//! Proposers of both protocol versions at one safekeeper (L236, L237), and version 2 where there are members (C12).
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::wal_builder::WalBuilder;
use common::{Node, Proposer, WalClient};
use pg_types::{Generation, Lsn, Term};
use pg_wire::ClientError;
use wal_consensus::message::{ProposerMessage, VoteRequest};
use wal_consensus::version::ProtocolVersion::{V2, V3};

const START: Lsn = Lsn(0x100_0028);

fn started() -> Node {
    let node = Node::start("");
    node.create(START);
    node
}

fn sqlstate(error: &ClientError) -> &str {
    &error.server_error().unwrap_or_else(|| panic!("{error}")).code
}

fn join(node: &Node, generation: u32) {
    let body = format!(
        r#"{{"generation":{generation},"members":[{{"id":1,"host":"h","pg_port":1}}],"new_members":null}}"#
    );
    let path = format!("{}/membership", Node::path());
    let (status, body) = node.http("PUT", &path, &body);
    assert_eq!(status, 200, "{body}");
}

fn term(node: &Node) -> u64 {
    let (_, status) = node.http("GET", &Node::path(), "");
    status["acceptor_state"]["term"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_take_turns() {
    let mut node = started();
    let mut wal = WalBuilder::new(START);
    let mut begin = START;
    let mut before: Option<Proposer> = None;
    for (turn, version) in (1..).zip([V2, V3, V2, V2, V3]) {
        let (mut proposer, start) = Proposer::elect_speaking(&node, version).await;
        assert_eq!((start, proposer.term), (begin, turn));
        assert_eq!(proposer.greeting.node_id.0, 1);
        // Whoever led before hears of it in its own version, at once.
        if let Some(mut outdated) = before.take() {
            let response = loop {
                let response = outdated.response().await.unwrap();
                if response.term != Term(outdated.term) {
                    break response;
                }
            };
            assert_eq!((response.term, response.flush_lsn), (Term(turn), Lsn(0)));
        }
        for size in [100, 150_000, 70] {
            wal.record(size, u8::try_from(turn).unwrap());
        }
        let end = wal.end_lsn();
        proposer.append(begin, wal.slice(begin, end), begin).await.unwrap();
        proposer.wait_flushed(end).await;
        assert_eq!(proposer.heartbeat(end, end).await.flush_lsn, end);
        node.wait_lsn("commit_lsn", end);
        begin = end;
        if turn == 3 {
            node.kill();
            node.restart();
        } else {
            before = Some(proposer);
        }
    }
    let mut reader = WalClient::start(&node, START).await;
    reader.read_to(begin).await;
    assert!(reader.data == wal.slice(START, begin));
}

/// It could count a majority of whom it likes, so it gets no answer to count, not even when it does not wait for one.
#[tokio::test(flavor = "multi_thread")]
async fn version_2_is_refused_where_there_are_members() {
    let node = started();
    join(&node, 1);
    for rash in [false, true] {
        let mut proposer = Proposer::push(&node, V2).await.unwrap();
        proposer.greet().await.unwrap();
        if rash {
            let (generation, term) = (Generation(0), Term(7));
            let vote = ProposerMessage::VoteRequest(VoteRequest { generation, term });
            // The connection may be closed already.
            drop(proposer.send(vote).await);
        }
        let error = proposer.recv().await.unwrap_err();
        assert_eq!(sqlstate(&error), "0A000");
        assert!(error.to_string().contains("membership generation 1"), "{error}");
        assert_eq!(term(&node), 0);
    }
    // Version 3 tells it the membership.
    let proposer = Proposer::speak(&node, V3).await.unwrap();
    assert_eq!(proposer.greeting.mconf.generation, Generation(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn version_2_ends_when_a_timeline_gets_members() {
    let node = started();
    let mut wal = WalBuilder::new(START);
    let mut idle = Proposer::speak(&node, V2).await.unwrap();
    let (mut proposer, _) = Proposer::elect_speaking(&node, V2).await;
    let end = wal.record(1000, 1);
    proposer.append(START, wal.bytes(), START).await.unwrap();
    proposer.wait_flushed(end).await;
    join(&node, 1);
    assert_eq!(sqlstate(&proposer.response().await.unwrap_err()), "55000");
    let (generation, next) = (Generation(0), Term(9));
    let vote = ProposerMessage::VoteRequest(VoteRequest { generation, term: next });
    idle.send(vote).await.unwrap();
    assert_eq!(sqlstate(&idle.recv().await.unwrap_err()), "55000");
    assert_eq!(term(&node), 1);
    assert_eq!(node.lsn("commit_lsn"), START);
}

/// The version of the command counts, not the look of the bytes.
#[tokio::test(flavor = "multi_thread")]
async fn messages_of_the_other_version_are_malformed() {
    let node = started();
    for (said, spoken) in [(V2, V3), (V3, V2)] {
        let mut proposer = Proposer::push(&node, said).await.unwrap();
        proposer.version = spoken;
        proposer.greet().await.unwrap();
        let error = proposer.recv().await.unwrap_err();
        assert_eq!(sqlstate(&error), "08P01");
        assert!(error.to_string().contains("malformed message"), "{error}");
    }
}
