//! Tokens on both ports: who is let in, to what, and what safekeepers show each other.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime};

use auth_token::{Claims, Scope, SigningKey, TOKEN_BYTES_MAX};
use common::wal_builder::WalBuilder;
use common::{Node, PATIENCE, Proposer, TENANT, TIMELINE, WalClient};
use pg_types::{Lsn, TenantId};
use pg_wire::{Client, ClientError};
use serde_json::{Value, json};

const START: Lsn = Lsn(0x100_0028);
const STRANGER: TenantId = TenantId([0xCC; 16]);
/// `{"alg":"none"}` and `{"scope":"admin"}`, not signed.
const UNSIGNED: &str = "eyJhbGciOiJub25lIn0.eyJzY29wZSI6ImFkbWluIn0.";

/// Keys that safekeepers accept, and one of them to sign with.
struct Keys {
    dir: tempfile::TempDir,
    signing: SigningKey,
}

impl Keys {
    fn new() -> Keys {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys { dir, signing: SigningKey::generate().unwrap() };
        std::fs::create_dir(keys.dir.path().join("keys")).unwrap();
        keys.accept("1.pem", &keys.signing);
        keys
    }

    fn accept(&self, name: &str, key: &SigningKey) {
        let path = self.dir.path().join("keys").join(name);
        std::fs::write(path, key.public_pem().unwrap()).unwrap();
    }

    fn token(&self, scope: Scope) -> String {
        auth_token::mint(&Claims::new(scope), &self.signing).unwrap()
    }

    /// Settings of a safekeeper that wants tokens and shows none.
    fn settings(&self) -> String {
        format!("auth_validation_public_key_path = '{}/keys'\n", self.dir.path().display())
    }

    /// Settings of one that shows this token as well.
    fn settings_showing(&self, token: &str) -> String {
        let path = self.dir.path().join("token");
        std::fs::write(&path, token).unwrap();
        format!("{}auth_token_path = '{}'\n", self.settings(), path.display())
    }
}

/// A safekeeper that wants tokens, with the timeline; the test shows it a token for everything.
fn started(keys: &Keys, id: u64, settings: &str) -> Node {
    let mut node = Node::start_number(id, settings);
    node.token = Some(keys.token(Scope::Admin));
    node
}

fn words(error: &ClientError) -> (String, String) {
    let server = error.server_error().unwrap_or_else(|| panic!("{error}"));
    (server.code.clone(), server.message.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_let_in_without_a_good_token() {
    let keys = Keys::new();
    let mut node = started(&keys, 1, &keys.settings());
    node.create(START);
    let hour = Duration::from_secs(3600);
    let expired = Claims::new(Scope::Admin).expiring(SystemTime::now() - 2 * hour, hour);
    let early = Claims { not_before: Some(u64::MAX), ..Claims::new(Scope::Admin) };
    let sign = |claims: &Claims| auth_token::mint(claims, &keys.signing).unwrap();
    let stranger = SigningKey::generate().unwrap();
    let strange = auth_token::mint(&Claims::new(Scope::Admin), &stranger).unwrap();
    for (token, reason) in [
        (String::new(), "a token is needed"),
        ("nonsense".to_owned(), "is not a JSON Web Token"),
        (UNSIGNED.to_owned(), "is not one that is signed with EdDSA"),
        (strange, "not signed with a key that is accepted here"),
        (sign(&expired), "the token has expired"),
        (sign(&early), "is valid in"),
        ("x".repeat(TOKEN_BYTES_MAX + 1), "at most 8192 are looked at"),
    ] {
        node.token = Some(token.clone());
        let error = Client::connect(&node.connect_params()).await.unwrap_err();
        let (code, message) = words(&error);
        assert!(code == "28000" && message.contains(reason), "{code} {message}");
        let (status, body) = node.http("GET", "/v1/tenant/timeline", "");
        let message = body["msg"].as_str().unwrap();
        assert!(status == 401 && body["code"] == "unauthorized", "{status} {body}");
        assert!(message.contains(reason), "{message}");
        assert!(token.is_empty() || !node.log().contains(&token), "a token in the log");
    }
    node.token = None;
    let error = Client::connect(&node.connect_params()).await.unwrap_err();
    assert!(matches!(error, ClientError::Authentication(_)), "{error}");
    let (status, body) = node.http("GET", &Node::path(), "");
    assert_eq!((status, body["msg"].as_str()), (401, Some("a token is needed")));
    // Whoever looks after the process needs none.
    assert_eq!(node.http("GET", "/v1/status", ""), (200, json!({ "id": 1 })));
    assert_eq!(node.http("GET", "/metrics", "").0, 200);
}

/// What happens to each command on a connection with this token: nothing, or the SQLSTATE.
async fn commands(node: &Node) -> Vec<Option<String>> {
    let mut outcomes = Vec::new();
    for command in ["IDENTIFY_SYSTEM", "TIMELINE_STATUS"] {
        let mut client = Client::connect(&node.connect_params()).await.unwrap();
        let result = client.simple_query(command).await;
        outcomes.push(result.err().map(|error| words(&error).0));
    }
    for command in ["START_REPLICATION PHYSICAL 0/1000028", "START_WAL_PUSH (proto_version '3')"] {
        let client = Client::connect(&node.connect_params()).await.unwrap();
        let result = client.copy_both(command).await;
        outcomes.push(result.err().map(|error| words(&error).0));
    }
    outcomes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_for_its_scope_alone() {
    let keys = Keys::new();
    let mut node = started(&keys, 1, &keys.settings());
    node.create(START);
    let refused = Some("28000".to_owned());
    let path = Node::path();
    // Scope, outcome of commands, status of: reading the own timeline, all timelines, a change, deletion.
    for (scope, command, statuses) in [
        (Scope::Tenant(STRANGER), &refused, [403, 403, 403, 403]),
        (Scope::PageServerApi, &refused, [403, 403, 403, 403]),
        (Scope::Tenant(TENANT), &None, [200, 403, 403, 403]),
        (Scope::SafekeeperData, &None, [200, 200, 204, 200]),
    ] {
        node.token = Some(keys.token(scope));
        assert_eq!(commands(&node).await, vec![command.clone(); 4], "{scope}");
        let checkpoint = format!("{path}/checkpoint");
        let requests = [
            ("GET", path.as_str()),
            ("GET", "/v1/tenant/timeline"),
            ("POST", &checkpoint),
            ("DELETE", &path),
        ];
        for ((method, path), expected) in requests.into_iter().zip(statuses) {
            let (status, body) = node.http(method, path, "");
            assert_eq!(status, expected, "{scope}: {method} {path}: {body}");
            assert!(status != 403 || body["code"] == "forbidden", "{body}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_goes_in_with_the_tenants_token_and_out_with_another() {
    let keys = Keys::new();
    let mut node = started(&keys, 1, &keys.settings());
    node.create(START);
    let mut wal = WalBuilder::new(START);
    let end = wal.record(50_000, 1);
    node.token = Some(keys.token(Scope::Tenant(TENANT)));
    let (mut proposer, _) = Proposer::elect_on(&node).await;
    proposer.append(START, wal.bytes(), START).await.unwrap();
    proposer.wait_flushed(end).await;
    proposer.heartbeat(end, end).await;
    node.token = Some(keys.token(Scope::SafekeeperData));
    let mut reader = WalClient::start(&node, START).await;
    reader.read_to(end).await;
    assert_eq!(reader.data, wal.bytes());
}

#[test]
fn what_comes_before_the_token_is_bounded() {
    let keys = Keys::new();
    let node = started(&keys, 1, &keys.settings());
    // A start-up packet of version 3.0 with a user, then a password message that claims 1 MB, which is allowed later.
    let mut stream = TcpStream::connect(node.pg).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let parameters = b"user\0x\0\0";
    let length = u32::try_from(8 + parameters.len()).unwrap();
    stream
        .write_all(&[&length.to_be_bytes()[..], &196_608_u32.to_be_bytes(), parameters].concat())
        .unwrap();
    let mut request = [0; 9];
    stream.read_exact(&mut request).unwrap();
    assert_eq!(request, [b'R', 0, 0, 0, 8, 0, 0, 0, 3], "a password in clear text is asked for");
    stream.write_all(&[&[b'p'][..], &1_000_000_u32.to_be_bytes()].concat()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.contains("FATAL") && answer.contains("08P01"), "{answer}");
    // A command in place of a password is none.
    let mut stream = TcpStream::connect(node.pg).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(&[&length.to_be_bytes()[..], &196_608_u32.to_be_bytes(), parameters].concat())
        .unwrap();
    stream.write_all(b"Q\0\0\0\x14IDENTIFY_SYSTEM\0").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[9..]).into_owned();
    assert!(answer.contains("FATAL") && answer.contains("waiting for a password"), "{answer}");
    // The answer to an HTTP request does not wait for its body.
    let mut stream = TcpStream::connect(node.http).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = "POST /v1/tenant/timeline HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 200000\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 401");
}

fn members(nodes: &[&Node]) -> Value {
    let members: Vec<Value> = (1u64..)
        .zip(nodes)
        .map(|(id, node)| json!({ "id": id, "host": "127.0.0.1", "pg_port": node.pg.port() }))
        .collect();
    json!({ "generation": 1, "members": members, "new_members": null })
}

const EAGER: &str = "peer_interval = '50ms'\nmaintenance_interval = '50ms'\n";

#[tokio::test(flavor = "multi_thread")]
async fn safekeepers_show_each_other_their_own_token() {
    let keys = Keys::new();
    let donor = started(&keys, 1, &keys.settings());
    donor.create(START);
    let mut wal = WalBuilder::new(START);
    let first = wal.record(50_000, 1);
    let (mut proposer, _) = Proposer::elect_on(&donor).await;
    proposer.append(START, wal.bytes(), START).await.unwrap();
    proposer.wait_flushed(first).await;
    proposer.heartbeat(first, first).await;
    // One that shows none, one that shows a token that is good for something else, one that shows a good one.
    let pull = |node: &Node| {
        let body = json!({
            "tenant_id": TENANT, "timeline_id": TIMELINE, "http_hosts": [donor.http.to_string()],
            "mconf": members(&[&donor, node]),
        });
        node.http("POST", "/v1/pull_timeline", &body.to_string())
    };
    let mut node = started(&keys, 2, &keys.settings());
    let (status, body) = pull(&node);
    assert!(status == 502 && body["msg"].as_str().unwrap().contains("401"), "{body}");
    node.kill();
    node.set_settings(&(keys.settings_showing(&keys.token(Scope::Tenant(TENANT))) + EAGER));
    node.restart();
    let (status, body) = pull(&node);
    assert_eq!(status, 200, "its own tenant's WAL may be copied with it: {body}");
    assert_eq!(node.http("DELETE", &Node::path(), "").0, 200);

    // Catching up, on the port of the Postgres protocol; the file is exchanged while the process runs.
    let late =
        started(&keys, 2, &(keys.settings_showing(&keys.token(Scope::PageServerApi)) + EAGER));
    late.create(START);
    let conf = members(&[&donor, &late]).to_string();
    for node in [&donor, &late] {
        let (status, body) = node.http("PUT", &format!("{}/membership", Node::path()), &conf);
        assert_eq!(status, 200, "{body}");
    }
    donor.wait_log("does not allow the WAL");
    assert_eq!(late.lsn("flush_lsn"), START);
    keys.settings_showing(&keys.token(Scope::SafekeeperData));
    late.wait_lsn("flush_lsn", first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_exchanged_while_the_process_runs() {
    let keys = Keys::new();
    let mut node = started(&keys, 1, &keys.settings());
    node.create(START);
    let new = SigningKey::generate().unwrap();
    let (old_token, new_token) = (
        keys.token(Scope::Tenant(TENANT)),
        auth_token::mint(&Claims::new(Scope::Tenant(TENANT)), &new).unwrap(),
    );
    let mut status = |token: &str| {
        node.token = Some(token.to_owned());
        node.http("GET", &Node::path(), "").0
    };
    assert_eq!((status(&old_token), status(&new_token)), (200, 401));
    keys.accept("2.pem", &new);
    assert_eq!((status(&old_token), status(&new_token)), (200, 200));
    std::fs::remove_file(keys.dir.path().join("keys/1.pem")).unwrap();
    let started = std::time::Instant::now();
    while status(&old_token) == 200 {
        assert!(started.elapsed() < PATIENCE, "the old key stays");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(status(&new_token), 200);
}

#[test]
fn keys_that_cannot_be_used_are_named_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let base = format!("id = 1\ndata_dir = '{}/data'\n", dir.path().display());
    let base = format!("{base}listen_pg_addr = '127.0.0.1:0'\nlisten_http_addr = '127.0.0.1:0'\n");
    let path = dir.path().join("key.pem");
    let settings = format!("{base}auth_validation_public_key_path = '{}'\n", path.display());
    let message = common::fails_with(&settings);
    assert!(message.contains("auth_validation_public_key_path: could not read"), "{message}");
    let secret = SigningKey::generate().unwrap().secret_pem();
    std::fs::write(&path, &secret).unwrap();
    let message = common::fails_with(&settings);
    assert!(message.contains("has a private key where public ones belong"), "{message}");
}
