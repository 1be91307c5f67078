//! A safekeeper process, a proposer that does what it is told, and a reader.
#![expect(dead_code, reason = "each test binary uses a part of it")]

pub mod wal_builder;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pg_types::{Generation, Lsn, NodeId, TenantId, Term, TimelineId};
use pg_wire::client::CopyBoth;
use pg_wire::replication::{PageserverFeedback, StandbyMessage, WalSenderMessage};
use pg_wire::{Client, ClientError, ConnectParams, Endpoint};
use wal_consensus::limits::APPEND_BYTES_MAX;
use wal_consensus::membership::MembershipConf;
use wal_consensus::message::{
    AcceptorGreeting, AcceptorMessage, AppendHeader, AppendRequest, AppendResponse,
    ProposerElected, ProposerGreeting, ProposerMessage, VoteRequest, VoteResponse,
};
use wal_consensus::term_history::TermHistory;
use wal_consensus::version::ProtocolVersion;

pub const TENANT: TenantId = TenantId([0xAA; 16]);
pub const TIMELINE: TimelineId = TimelineId([0xBB; 16]);
/// What the S3 servers of tests accept.
pub const S3_KEY: &str = "test-key";
pub const S3_SECRET: &str = "test-secret";
/// Deadline of every wait: only a bug reaches it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A safekeeper process and its directory.
pub struct Node {
    dir: tempfile::TempDir,
    id: u64,
    settings: String,
    process: Option<Child>,
    log: Arc<Mutex<String>>,
    pub pg: SocketAddr,
    pub http: SocketAddr,
    /// What this test shows to it.
    pub token: Option<String>,
}

/// Runs the program with this configuration text, which must make it fail; what it says.
pub fn fails_with(settings: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("safekeeper.toml");
    std::fs::write(&path, settings).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_safekeeper")).arg(&path).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

impl Node {
    /// Starts number 1 with additional settings.
    pub fn start(settings: &str) -> Node {
        Node::start_number(1, settings)
    }

    /// Starts one of several.
    pub fn start_number(id: u64, settings: &str) -> Node {
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut node = Node {
            dir: tempfile::tempdir().unwrap(),
            id,
            settings: settings.to_owned(),
            process: None,
            log: Arc::default(),
            pg: unknown,
            http: unknown,
            token: None,
        };
        node.restart();
        node
    }

    /// Settings that name its directory.
    pub fn config_text(&self) -> String {
        format!(
            "id = {}\ndata_dir = '{}'\nlisten_pg_addr = '127.0.0.1:0'\nlisten_http_addr = '127.0.0.1:0'\n{}",
            self.id,
            self.dir.path().join("data").display(),
            self.settings
        )
    }

    /// From the next start on.
    pub fn set_settings(&mut self, settings: &str) {
        settings.clone_into(&mut self.settings);
    }

    /// A counter of `/metrics`.
    pub fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.http("GET", "/metrics", "");
        let text = text.as_str().unwrap().to_owned();
        let prefix = format!("safekeeper_{name} ");
        let value = text.lines().find_map(|line| line.strip_prefix(prefix.as_str()));
        value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// Starts it again, on other ports.
    pub fn restart(&mut self) {
        assert!(self.process.is_none());
        let config = self.dir.path().join("safekeeper.toml");
        std::fs::write(&config, self.config_text()).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_safekeeper"))
            .arg(&config)
            .env("AWS_ACCESS_KEY_ID", S3_KEY)
            .env("AWS_SECRET_ACCESS_KEY", S3_SECRET)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::clone(&self.log);
        std::thread::spawn(move || {
            let mut line = String::new();
            while matches!(stderr.read_line(&mut line), Ok(count) if count > 0) {
                log.lock().unwrap().push_str(&line);
                line.clear();
            }
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        let ["listening", pg, http] = words[..] else {
            panic!("safekeeper did not start: {}", self.log());
        };
        (self.pg, self.http) = (pg.parse().unwrap(), http.parse().unwrap());
        self.process = Some(child);
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let mut child = self.process.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM; waits for the orderly end.
    pub fn stop(&mut self) {
        let mut child = self.process.take().unwrap();
        let status = Command::new("kill").arg(child.id().to_string()).status().unwrap();
        assert!(status.success());
        assert!(child.wait().unwrap().success(), "{}", self.log());
    }

    /// What it has logged, over all its lives.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits for a text in the log.
    pub fn wait_log(&self, text: &str) {
        wait_for(|| self.log().contains(text), || format!("no \"{text}\" in:\n{}", self.log()));
    }

    /// Files of the timeline.
    pub fn timeline_dir(&self) -> PathBuf {
        self.dir.path().join("data").join(TENANT.to_string()).join(TIMELINE.to_string())
    }

    /// Names of its WAL files.
    pub fn segments(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.timeline_dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("0000"))
            .collect();
        names.sort();
        names
    }

    /// A request; status and body.
    pub fn http(&self, method: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
        let agent: ureq::Agent =
            ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.http))
            .header("content-type", "application/json");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(body.to_owned()).unwrap();
        let mut response = agent.run(request).unwrap();
        let mut text = String::new();
        response.body_mut().as_reader().read_to_string(&mut text).unwrap();
        let value = serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text));
        (response.status().as_u16(), value)
    }

    /// Path of the timeline in the API.
    pub fn path() -> String {
        format!("/v1/tenant/{TENANT}/timeline/{TIMELINE}")
    }

    /// Creates the timeline.
    pub fn create(&self, start_lsn: Lsn) {
        let (status, body) = self.http("POST", "/v1/tenant/timeline", &create_body(start_lsn));
        assert_eq!(status, 201, "{body}");
    }

    /// A position from the timeline's status.
    pub fn lsn(&self, name: &str) -> Lsn {
        let (status, body) = self.http("GET", &Node::path(), "");
        assert_eq!(status, 200, "{body}");
        body[name].as_str().unwrap().parse().unwrap()
    }

    /// Waits until a position is reached.
    pub fn wait_lsn(&self, name: &str, at_least: Lsn) {
        wait_for(
            || at_least <= self.lsn(name),
            || format!("{name} is {}, expected {at_least}", self.lsn(name)),
        );
    }

    pub fn connect_params(&self) -> ConnectParams {
        let endpoint = Endpoint::Tcp { host: self.pg.ip().to_string(), port: self.pg.port() };
        let params = ConnectParams::new(endpoint, "test")
            .option("tenant_id", &TENANT.to_string())
            .option("timeline_id", &TIMELINE.to_string())
            .read_timeout(Some(PATIENCE))
            .write_timeout(Some(PATIENCE));
        match &self.token {
            Some(token) => params.password(token),
            None => params,
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("log of the safekeeper:\n{}", self.log());
        }
    }
}

pub fn create_body(start_lsn: Lsn) -> String {
    format!(
        r#"{{"tenant_id":"{TENANT}","timeline_id":"{TIMELINE}","pg_version":170011,"start_lsn":"{start_lsn}"}}"#
    )
}

/// Waits for a condition.
pub fn wait_for(condition: impl Fn() -> bool, otherwise: impl Fn() -> String) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{}", otherwise());
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn history(entries: &[(u64, Lsn)]) -> TermHistory {
    TermHistory::new(entries.iter().map(|&(term, lsn)| (term, lsn.0).into()).collect()).unwrap()
}

/// A proposer without a mind of its own.
pub struct Proposer {
    pub copy: CopyBoth,
    pub version: ProtocolVersion,
    pub greeting: AcceptorGreeting,
    pub term: u64,
    /// What it says that all safekeepers have.
    pub truncate_lsn: Lsn,
}

impl Proposer {
    /// Connects and exchanges greetings.
    pub async fn connect(node: &Node) -> Proposer {
        Proposer::try_connect(node).await.unwrap()
    }

    pub async fn try_connect(node: &Node) -> Result<Proposer, ClientError> {
        Proposer::speak(node, ProtocolVersion::V3).await
    }

    /// Connects as a proposer of this version.
    pub async fn speak(node: &Node, version: ProtocolVersion) -> Result<Proposer, ClientError> {
        let mut proposer = Proposer::push(node, version).await?;
        proposer.greet().await?;
        match proposer.recv().await? {
            AcceptorMessage::Greeting(greeting) => proposer.greeting = greeting,
            other => panic!("{other:?}"),
        }
        Ok(proposer)
    }

    /// Connects and says nothing yet.
    pub async fn push(node: &Node, version: ProtocolVersion) -> Result<Proposer, ClientError> {
        let client = Client::connect(&node.connect_params()).await?;
        let command = match version {
            // The oldest form: without the list, it is version 2.
            ProtocolVersion::V2 => "START_WAL_PUSH",
            ProtocolVersion::V3 => {
                "START_WAL_PUSH (proto_version '3', allow_timeline_creation 'false')"
            }
        };
        let copy = client.copy_both(command).await?;
        let greeting = AcceptorGreeting {
            node_id: NodeId(0),
            mconf: MembershipConf::default(),
            term: Term(0),
        };
        Ok(Proposer { copy, version, greeting, term: 0, truncate_lsn: Lsn(0) })
    }

    pub async fn greet(&mut self) -> Result<(), ClientError> {
        self.send(ProposerMessage::Greeting(ProposerGreeting {
            tenant_id: TENANT,
            timeline_id: TIMELINE,
            mconf: MembershipConf::default(),
            pg_version: 170_011,
            system_id: 77,
            wal_seg_size: 16 * 1024 * 1024,
        }))
        .await
    }

    pub async fn send(&mut self, message: ProposerMessage) -> Result<(), ClientError> {
        self.copy.writer.send_noflush(&self.version.encode_proposer(&message).unwrap())?;
        self.copy.writer.flush().await
    }

    pub async fn recv(&mut self) -> Result<AcceptorMessage, ClientError> {
        let payload = self.copy.reader.recv().await?.expect("stream goes on");
        Ok(self.version.decode_acceptor(payload).unwrap())
    }

    pub async fn vote(&mut self, term: u64) -> VoteResponse {
        self.term = term;
        let (generation, term) = (Generation(0), Term(term));
        self.send(ProposerMessage::VoteRequest(VoteRequest { generation, term })).await.unwrap();
        match self.recv().await.unwrap() {
            AcceptorMessage::VoteResponse(vote) => vote,
            other => panic!("{other:?}"),
        }
    }

    pub async fn elected(&mut self, start_streaming_at: Lsn, term_history: TermHistory) {
        let (generation, term) = (Generation(0), Term(self.term));
        let elected = ProposerElected { generation, term, start_streaming_at, term_history };
        self.send(ProposerMessage::Elected(elected)).await.unwrap();
    }

    /// Wins the next term at the end of the log, as the only safekeeper's proposer does.
    pub async fn elect_on(node: &Node) -> (Proposer, Lsn) {
        Proposer::elect_speaking(node, ProtocolVersion::V3).await
    }

    /// The same with this version.
    pub async fn elect_speaking(node: &Node, version: ProtocolVersion) -> (Proposer, Lsn) {
        let mut proposer = Proposer::speak(node, version).await.unwrap();
        let vote = proposer.vote(proposer.greeting.term.0 + 1).await;
        assert!(vote.vote_given);
        let mut entries: Vec<_> =
            vote.term_history.entries().iter().map(|entry| (entry.term.0, entry.lsn)).collect();
        entries.push((proposer.term, vote.flush_lsn));
        proposer.elected(vote.flush_lsn, history(&entries)).await;
        (proposer, vote.flush_lsn)
    }

    pub fn header(&self, begin_lsn: Lsn, end_lsn: Lsn, commit_lsn: Lsn) -> AppendHeader {
        AppendHeader {
            generation: Generation(0),
            term: Term(self.term),
            begin_lsn,
            end_lsn,
            commit_lsn,
            truncate_lsn: self.truncate_lsn,
        }
    }

    /// Sends WAL in messages of the greatest size, without waiting for answers.
    pub async fn append(&mut self, begin: Lsn, wal: &[u8], commit: Lsn) -> Result<(), ClientError> {
        let mut begin_lsn = begin;
        for chunk in wal.chunks(APPEND_BYTES_MAX) {
            let end_lsn = begin_lsn + chunk.len() as u64;
            let header = self.header(begin_lsn, end_lsn, commit);
            let wal = Bytes::copy_from_slice(chunk);
            self.send(ProposerMessage::Append(AppendRequest { header, wal })).await?;
            begin_lsn = end_lsn;
        }
        Ok(())
    }

    /// Sends a commit position alone, and takes the answer.
    pub async fn heartbeat(&mut self, end: Lsn, commit: Lsn) -> AppendResponse {
        let header = self.header(end, end, commit);
        let wal = Bytes::new();
        self.send(ProposerMessage::Append(AppendRequest { header, wal })).await.unwrap();
        self.response().await.unwrap()
    }

    pub async fn response(&mut self) -> Result<AppendResponse, ClientError> {
        match self.recv().await? {
            AcceptorMessage::AppendResponse(response) => Ok(response),
            other => panic!("{other:?}"),
        }
    }

    /// Takes answers until everything up to a position is durable.
    pub async fn wait_flushed(&mut self, lsn: Lsn) -> AppendResponse {
        loop {
            let response = self.response().await.unwrap();
            if lsn <= response.flush_lsn {
                return response;
            }
        }
    }
}

/// A reader of WAL.
pub struct WalClient {
    pub copy: CopyBoth,
    pub data: Vec<u8>,
    pub start: Lsn,
}

impl WalClient {
    pub async fn connect(node: &Node, command: &str, start: Lsn) -> Result<WalClient, ClientError> {
        let client = Client::connect(&node.connect_params()).await?;
        let copy = client.copy_both(command).await?;
        Ok(WalClient { copy, data: Vec::new(), start })
    }

    pub async fn start(node: &Node, start: Lsn) -> WalClient {
        let command = format!("START_REPLICATION PHYSICAL {start}");
        WalClient::connect(node, &command, start).await.unwrap()
    }

    pub fn end(&self) -> Lsn {
        self.start + self.data.len() as u64
    }

    /// Takes one message; what it was.
    pub async fn next(&mut self) -> Result<WalSenderMessage, ClientError> {
        let message = self.copy.reader.recv_wal().await?.expect("stream goes on");
        if let WalSenderMessage::XLogData { wal_start, wal_end, data, .. } = &message {
            assert_eq!(*wal_start, self.end());
            assert!(*wal_start + data.len() as u64 <= *wal_end);
            self.data.extend_from_slice(data);
        }
        Ok(message)
    }

    /// Reads up to a position.
    pub async fn read_to(&mut self, lsn: Lsn) {
        while self.end() < lsn {
            self.next().await.unwrap();
        }
    }

    /// Waits for a keepalive and returns the position it tells.
    pub async fn keepalive(&mut self) -> Lsn {
        loop {
            if let WalSenderMessage::KeepAlive { wal_end, .. } = self.next().await.unwrap() {
                return wal_end;
            }
        }
    }

    pub async fn report(&mut self, feedback: PageserverFeedback) {
        let message = StandbyMessage::PageserverFeedback(feedback);
        self.copy.writer.send_standby(&message).await.unwrap();
    }
}
