//! WAL of a real server: what its walsender sends is stored byte for byte, every record end is recognised, and it
//! survives a kill. Needs an unpatched PostgreSQL 17: `NEON_PG_STOCK` names its installation.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::process::{Child, Command};

use common::{Node, PATIENCE, Proposer, WalClient};
use pg_launch::{PgInstall, SystemUser, ensure_system_user};
use pg_types::Lsn;
use pg_types::xlog::{segment_file_name, segment_number, segment_offset, segment_start};
use pg_wire::{Client, ConnectParams, Endpoint};

/// A stock server that lives as long as the test.
struct Server {
    dir: tempfile::TempDir,
    install: PgInstall,
    user: Option<SystemUser>,
    process: Child,
    port: u16,
}

impl Server {
    async fn start() -> Server {
        let root = std::env::var_os("NEON_PG_STOCK")
            .expect("set NEON_PG_STOCK to the installation of an unpatched PostgreSQL 17");
        let install = PgInstall::new(root).unwrap();
        let user = ensure_system_user().unwrap();
        let dir = tempfile::tempdir().unwrap();
        if let Some(user) = &user {
            user.give(dir.path()).unwrap();
        }
        let data = dir.path().join("data");
        let status = install
            .command("initdb", user.as_ref())
            .args(["--no-sync", "--username=test", "--auth=trust", "--pgdata"])
            .arg(&data)
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        let port = 5432;
        let process =
            server_command(&install, user.as_ref(), &data, dir.path(), port).spawn().unwrap();
        let server = Server { dir, install, user, process, port };
        let started = std::time::Instant::now();
        while let Err(error) = Client::connect(&server.params()).await {
            assert!(started.elapsed() < PATIENCE, "{error}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        server
    }

    /// Over the unix socket; it listens to nothing else, so the port needs not be free.
    fn params(&self) -> ConnectParams {
        let directory = self.dir.path().to_owned();
        ConnectParams::new(Endpoint::Unix { directory, port: self.port }, "test")
            .param("database", "postgres")
            .read_timeout(Some(PATIENCE))
    }

    fn pgbench(&self, args: &[&str]) {
        let status = self
            .install
            .command("pgbench", self.user.as_ref())
            .args(["-h", self.dir.path().to_str().unwrap(), "-p", "5432", "-U", "test"])
            .args(args)
            .arg("postgres")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
    }
}

fn server_command(
    install: &PgInstall,
    user: Option<&SystemUser>,
    data: &Path,
    socket_dir: &Path,
    port: u16,
) -> Command {
    let mut command = install.command("postgres", user);
    command
        .arg("-D")
        .arg(data)
        .args(["-p", &port.to_string(), "-c", "listen_addresses=", "-c", "fsync=off"])
        .args(["-c", "wal_keep_size=1GB", "-c", "max_wal_size=4GB"])
        .arg("-c")
        .arg(format!("unix_socket_directories={}", socket_dir.display()))
        .stderr(std::process::Stdio::null());
    command
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn lsn(text: &str) -> Lsn {
    text.parse().unwrap()
}

/// Tells the safekeeper's proposer port what the stock walsender says, up to `end`.
async fn copy_wal(server: &Server, proposer: &mut Proposer, start: Lsn, end: Lsn) -> Vec<u8> {
    let walsender = Client::connect(&server.params().replication()).await.unwrap();
    let copy = walsender.copy_both(&format!("START_REPLICATION PHYSICAL {start}")).await.unwrap();
    let mut source = WalClient { copy, data: Vec::new(), start };
    let mut sent = start;
    while sent < end {
        source.next().await.unwrap();
        let available = source.end().min(end);
        let at = |lsn: Lsn| usize::try_from(lsn - start).unwrap();
        let piece = source.data[at(sent)..at(available)].to_vec();
        proposer.append(sent, &piece, start).await.unwrap();
        sent = available;
    }
    source.data.truncate(usize::try_from(end - start).unwrap());
    source.data
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_of_pgbench_is_kept() {
    let server = Server::start().await;
    let mut sql = Client::connect(&server.params()).await.unwrap();
    let mut ask = async |query: &str| {
        sql.simple_query(query).await.unwrap()[0].rows[0].text(0).unwrap().to_owned()
    };
    let start = lsn(&ask("SELECT pg_current_wal_flush_lsn()").await);
    server.pgbench(&["-i", "-s", "3", "-q"]);
    ask("SELECT pg_switch_wal()").await;
    server.pgbench(&["-t", "500", "-c", "4", "-N"]);
    ask("SELECT 1 FROM (SELECT pg_logical_emit_message(true, 'x', repeat('y', 300000))) AS big")
        .await;
    let end = lsn(&ask("SELECT pg_current_wal_flush_lsn()").await);
    assert!(segment_number(start) + 2 <= segment_number(end), "{start}..{end} spans segments");
    let mut node = Node::start("");
    node.create(start);
    let (mut proposer, first) = Proposer::elect_on(&node).await;
    assert_eq!(first, start);
    let wal = copy_wal(&server, &mut proposer, start, end).await;
    // Every record end was recognised: the last one is the server's flush position.
    assert_eq!(proposer.wait_flushed(end).await.flush_lsn, end);
    proposer.heartbeat(end, end).await;
    let identity = Client::connect(&node.connect_params())
        .await
        .unwrap()
        .simple_query("IDENTIFY_SYSTEM")
        .await
        .unwrap();
    assert_eq!(identity[0].value(0, "xlogpos"), Some(end.to_string().as_str()));
    node.kill();
    node.restart();
    assert_eq!(node.lsn("flush_lsn"), end);
    let (mut proposer, _) = Proposer::elect_on(&node).await;
    proposer.heartbeat(end, end).await;
    let mut reader = WalClient::start(&node, start).await;
    reader.read_to(end).await;
    assert!(reader.data == wal);
    compare_with_server_files(&server, &node, start, end);
}

/// The segments are the server's own, as far as the timeline goes.
fn compare_with_server_files(server: &Server, node: &Node, start: Lsn, end: Lsn) {
    for segno in segment_number(start)..=segment_number(end) {
        let name = segment_file_name(1, segno);
        let theirs = std::fs::read(server.dir.path().join("data/pg_wal").join(&name)).unwrap();
        let complete = node.timeline_dir().join(&name);
        let partial = node.timeline_dir().join(name + ".partial");
        let ours = std::fs::read(if complete.exists() { complete } else { partial }).unwrap();
        let offset = |lsn: Lsn| usize::try_from(segment_offset(lsn)).unwrap();
        let from = if segment_start(segno) < start { offset(start) } else { 0 };
        let to = if segno == segment_number(end) { offset(end) } else { ours.len() };
        assert!(ours[from..to] == theirs[from..to], "segment {segno}");
    }
}
