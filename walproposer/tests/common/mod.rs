//! A PostgreSQL, safekeepers and walproposers for the tests beside.
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pg_launch::{PgInstall, SystemUser, ensure_system_user};
use pg_types::{Lsn, NodeId, TenantId, TimelineId};
use pg_wire::client::{Client, ConnectParams, Endpoint};
use pg_wire::replication::WalSenderMessage;
use safekeeper::Safekeeper;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use walproposer::{ComputeConfig, Config, Outcome, ProtocolVersion, WalproposerError};

pub const TENANT: TenantId = TenantId([0xA1; 16]);
pub const TIMELINE: TimelineId = TimelineId([0xB2; 16]);
const DEADLINE: Duration = Duration::from_secs(60);
const SOCKET_PORT: u16 = 5432;

/// Waits until `condition` gives a value.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(begun.elapsed() < DEADLINE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// An unpatched PostgreSQL whose commits wait for a walproposer.
pub struct Postgres {
    dir: tempfile::TempDir,
    install: PgInstall,
    user: Option<SystemUser>,
    child: Child,
}

impl Postgres {
    pub fn start() -> Postgres {
        let root = std::env::var_os("NEON_PG_STOCK")
            .expect("NEON_PG_STOCK must name an installation of unpatched PostgreSQL 17");
        let install = PgInstall::new(PathBuf::from(root)).unwrap();
        let user = ensure_system_user().unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o711)).unwrap();
        for name in ["pgdata", "socket"] {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
            if let Some(user) = &user {
                user.give(&path).unwrap();
            }
        }
        let mut initdb = install.command("initdb", user.as_ref());
        initdb.arg("-D").arg(dir.path().join("pgdata"));
        initdb.args(["-U", "postgres", "-A", "trust", "--no-sync", "--no-instructions"]);
        run(initdb);
        let child = spawn(&install, user.as_ref(), dir.path());
        let postgres = Postgres { dir, install, user, child };
        postgres.wait_ready();
        postgres
    }

    pub fn pgdata(&self) -> PathBuf {
        self.dir.path().join("pgdata")
    }

    fn socket_dir(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn params(&self) -> ConnectParams {
        let endpoint = Endpoint::Unix { directory: self.socket_dir(), port: SOCKET_PORT };
        ConnectParams::new(endpoint, "postgres").param("database", "postgres")
    }

    fn wait_ready(&self) {
        let runtime = runtime();
        let params = self.params();
        wait_for("PostgreSQL", || runtime.block_on(Client::connect(&params)).ok());
    }

    /// A session; queries wait for their commits to be durable on the quorum.
    pub async fn session(&self) -> Client {
        Client::connect(&self.params()).await.unwrap()
    }

    /// First column of the first row, from a session that waits for nobody.
    pub fn value(&self, query: &str) -> String {
        runtime().block_on(async {
            let mut session = self.session().await;
            session.simple_query("SET synchronous_commit = local").await.unwrap();
            let results = session.simple_query(query).await.unwrap();
            results[0].rows[0].text(0).unwrap().to_owned()
        })
    }

    /// A position at which a record ends.
    pub fn record_end(&self) -> Lsn {
        self.value("SELECT pg_create_restore_point('here')").parse().unwrap()
    }

    /// Shuts down in good order, without waiting for it.
    pub fn request_stop(&self) {
        let mut stop = self.install.command("pg_ctl", self.user.as_ref());
        stop.arg("-D").arg(self.pgdata()).args(["stop", "-m", "fast", "-W"]);
        run(stop);
    }

    pub fn wait_stopped(&mut self) {
        wait_for("PostgreSQL to stop", || self.child.try_wait().unwrap());
    }

    /// The bytes of its WAL files.
    pub fn wal(&self, begin_lsn: Lsn, end_lsn: Lsn) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut lsn = begin_lsn;
        while lsn < end_lsn {
            let segno = pg_types::xlog::segment_number(lsn);
            let name = pg_types::xlog::segment_file_name(1, segno);
            let segment = std::fs::read(self.pgdata().join("pg_wal").join(name)).unwrap();
            let from = usize::try_from(pg_types::xlog::segment_offset(lsn)).unwrap();
            let next = pg_types::xlog::segment_start(segno + 1).min(end_lsn);
            let length = usize::try_from(next - lsn).unwrap();
            bytes.extend_from_slice(&segment[from..from + length]);
            lsn = next;
        }
        bytes
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let mut stop = self.install.command("pg_ctl", self.user.as_ref());
            stop.arg("-D").arg(self.pgdata()).args(["stop", "-m", "immediate", "-s"]);
            drop(stop.status());
            drop(self.child.wait());
        }
    }
}

fn spawn(install: &PgInstall, user: Option<&SystemUser>, dir: &Path) -> Child {
    let mut postgres = install.command("postgres", user);
    postgres.arg("-D").arg(dir.join("pgdata"));
    let socket = format!("unix_socket_directories={}", dir.join("socket").display());
    for setting in [
        "listen_addresses=",
        &format!("port={SOCKET_PORT}"),
        &socket,
        "synchronous_standby_names=walproposer",
        "fsync=off",
        "full_page_writes=off",
        "wal_level=replica",
        "max_wal_senders=8",
        "restart_after_crash=off",
        "autovacuum=off",
        "max_wal_size=64MB",
    ] {
        postgres.args(["-c", setting]);
    }
    postgres.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn run(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A safekeeper in this process, with a runtime of its own so that it can be stopped like one.
pub struct TestSafekeeper {
    id: u64,
    dir: tempfile::TempDir,
    pub pg: SocketAddr,
    http: SocketAddr,
    running: Option<(Runtime, CancellationToken, tokio::task::JoinHandle<()>)>,
}

impl TestSafekeeper {
    pub fn start(id: u64, start_lsn: Lsn) -> TestSafekeeper {
        let any = "127.0.0.1:0".parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut safekeeper = TestSafekeeper { id, dir, pg: any, http: any, running: None };
        safekeeper.restart();
        let body = format!(
            r#"{{"tenant_id":"{TENANT}","timeline_id":"{TIMELINE}","pg_version":170011,"start_lsn":"{start_lsn}"}}"#
        );
        let url = format!("http://{}/v1/tenant/timeline", safekeeper.http);
        ureq::post(&url).content_type("application/json").send(body).unwrap();
        safekeeper
    }

    /// Starts it again, at the addresses it had.
    pub fn restart(&mut self) {
        let config = safekeeper::Config {
            id: NodeId(self.id),
            data_dir: self.dir.path().join("data"),
            listen_pg_addr: self.pg,
            listen_http_addr: self.http,
            connection_timeout: Duration::from_secs(30),
            max_connections: 100,
            keepalive_interval: Duration::from_secs(1),
            maintenance_interval: Duration::from_millis(200),
            peer_interval: Duration::from_secs(2),
            auth_validation_public_key_path: None,
            auth_token_path: None,
            remote_storage: None,
            partial_backup_timeout: Duration::from_secs(900),
        };
        let runtime = runtime();
        let safekeeper = wait_for("a safekeeper to start", || {
            runtime.block_on(Safekeeper::start(config.clone())).ok()
        });
        (self.pg, self.http) = safekeeper.addresses().unwrap();
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let task = runtime.spawn(async move { safekeeper.run(token).await.unwrap() });
        self.running = Some((runtime, shutdown, task));
    }

    pub fn stop(&mut self) {
        if let Some((runtime, shutdown, task)) = self.running.take() {
            shutdown.cancel();
            runtime.block_on(task).unwrap();
        }
    }

    pub fn address(&self) -> String {
        self.pg.to_string()
    }

    /// A position of the timeline's status.
    pub fn position(&self, name: &str) -> Option<Lsn> {
        let url = format!("http://{}/v1/tenant/{TENANT}/timeline/{TIMELINE}", self.http);
        let text = ureq::get(&url).call().ok()?.body_mut().read_to_string().ok()?;
        let at = text.find(&format!("\"{name}\":"))?;
        text[at..].split('"').nth(3)?.parse().ok()
    }

    /// Makes it the only member of generation 1.
    pub fn become_member(&self) {
        let (id, host, port) = (self.id, self.pg.ip(), self.pg.port());
        let body = format!(
            r#"{{"generation":1,"members":[{{"id":{id},"host":"{host}","pg_port":{port}}}],"new_members":null}}"#
        );
        let path = format!("v1/tenant/{TENANT}/timeline/{TIMELINE}/membership");
        let url = format!("http://{}/{path}", self.http);
        ureq::put(&url).content_type("application/json").send(body).unwrap();
    }

    /// Connections of proposers and readers that it ended because something was wrong.
    pub fn failed_connections(&self) -> u64 {
        let url = format!("http://{}/metrics", self.http);
        let text = ureq::get(&url).call().unwrap().body_mut().read_to_string().unwrap();
        let line = text.lines().find(|line| {
            line.starts_with("safekeeper_connections_ended") && line.contains("\"failed\"")
        });
        line.and_then(|line| line.rsplit(' ').next()).map_or(0, |count| count.parse().unwrap())
    }

    /// Committed WAL, as a page server would read it.
    pub fn wal(&self, begin_lsn: Lsn, end_lsn: Lsn) -> Vec<u8> {
        runtime().block_on(async {
            let endpoint: Endpoint = self.address().parse().unwrap();
            let params = ConnectParams::new(endpoint, "pageserver")
                .replication()
                .option("tenant_id", &TENANT.to_string())
                .option("timeline_id", &TIMELINE.to_string());
            let client = Client::connect(&params).await.unwrap();
            let command = format!("START_REPLICATION PHYSICAL {begin_lsn}");
            let mut copy = client.copy_both(&command).await.unwrap();
            let wanted = usize::try_from(end_lsn - begin_lsn).unwrap();
            let mut bytes = Vec::new();
            while bytes.len() < wanted {
                let next = tokio::time::timeout(DEADLINE, copy.reader.recv_wal());
                match next.await.expect("WAL in time").unwrap() {
                    Some(WalSenderMessage::XLogData { data, .. }) => bytes.extend_from_slice(&data),
                    Some(WalSenderMessage::KeepAlive { .. }) => {}
                    None => panic!("the safekeeper ended the stream"),
                }
            }
            bytes.truncate(wanted);
            bytes
        })
    }
}

impl Drop for TestSafekeeper {
    fn drop(&mut self) {
        self.stop();
    }
}

pub fn config(
    safekeepers: &[&TestSafekeeper],
    postgres: Option<&Postgres>,
    start_lsn: Lsn,
) -> Config {
    Config {
        tenant_id: TENANT,
        timeline_id: TIMELINE,
        safekeepers: safekeepers.iter().map(|sk| sk.address()).collect(),
        mconf: Default::default(),
        auth_token: None,
        protocol_version: ProtocolVersion::V3,
        compute: postgres.map(|postgres| ComputeConfig {
            pgdata: postgres.pgdata(),
            socket_dir: postgres.socket_dir(),
            port: SOCKET_PORT,
            user: "postgres".to_owned(),
            start_lsn,
            hosts: false,
        }),
    }
}

/// Runs `walproposer sync`.
pub fn sync(safekeepers: &[&TestSafekeeper]) -> Lsn {
    sync_with(&config(safekeepers, None, Lsn(0)))
}

pub fn sync_with(config: &Config) -> Lsn {
    let runtime = runtime();
    runtime.block_on(async {
        let sync = walproposer::sync(config, CancellationToken::new());
        tokio::time::timeout(DEADLINE, sync).await.expect("sync in time").unwrap()
    })
}

/// A walproposer on a thread of its own, as its process would be.
pub struct TestWalproposer {
    kill: CancellationToken,
    thread: Option<JoinHandle<Option<Result<Outcome, WalproposerError>>>>,
}

impl TestWalproposer {
    pub fn start(config: Config) -> TestWalproposer {
        let kill = CancellationToken::new();
        let token = kill.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                tokio::select! {
                    () = token.cancelled() => None,
                    result = walproposer::run(&config, CancellationToken::new()) => Some(result),
                }
            })
        });
        TestWalproposer { kill, thread: Some(thread) }
    }

    /// Drops everything it was doing, as SIGKILL would.
    pub fn kill(&mut self) {
        self.kill.cancel();
        assert!(self.thread.take().unwrap().join().unwrap().is_none(), "it had ended by itself");
    }

    /// Starts it after it was killed.
    pub fn start_again(&mut self, config: Config) {
        *self = TestWalproposer::start(config);
    }

    /// How it ends by itself.
    pub fn outcome(mut self) -> Outcome {
        let thread = self.thread.take().unwrap();
        wait_for("the walproposer to end", || thread.is_finished().then_some(()));
        thread.join().unwrap().expect("it was not killed").unwrap()
    }
}

impl Drop for TestWalproposer {
    fn drop(&mut self) {
        self.kill.cancel();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
