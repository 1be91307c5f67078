//! The client against a stock PostgreSQL 17: authentication methods, queries, and its walsender.
//! `NEON_PG_STOCK` names the installation.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Child;
use std::time::{Duration, Instant};

use pg_launch::{PgInstall, ensure_system_user};
use pg_types::Lsn;
use pg_wire::replication::{StandbyMessage, StandbyStatusUpdate, WalSenderMessage};
use pg_wire::{Client, ClientError, ConnectParams, Endpoint};

const PATIENCE: Duration = Duration::from_secs(60);

struct Server {
    dir: tempfile::TempDir,
    process: Child,
    port: u16,
}

impl Server {
    fn unix(&self, user: &str) -> ConnectParams {
        let directory = self.dir.path().to_owned();
        ConnectParams::new(Endpoint::Unix { directory, port: self.port }, user)
            .param("database", "postgres")
            .read_timeout(Some(PATIENCE))
    }

    fn tcp(&self, user: &str) -> ConnectParams {
        ConnectParams::new(Endpoint::Tcp { host: "127.0.0.1".into(), port: self.port }, user)
            .param("database", "postgres")
    }

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
        let mut initdb = install.command("initdb", user.as_ref());
        initdb.args(["--no-sync", "--username=test", "--auth=trust", "--pgdata"]).arg(&data);
        assert!(initdb.stdout(std::process::Stdio::null()).status().unwrap().success());
        // Over the socket everybody is let in; over TCP each user by another method.
        let hba = "local all all trust\nlocal replication all trust\n\
                   host all scram 127.0.0.1/32 scram-sha-256\nhost all md5 127.0.0.1/32 md5\n\
                   host all clear 127.0.0.1/32 password\n";
        std::fs::write(data.join("pg_hba.conf"), hba).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut postgres = install.command("postgres", user.as_ref());
        postgres.arg("-D").arg(&data).args(["-p", &port.to_string(), "-c", "fsync=off"]);
        postgres.arg("-c").arg(format!("unix_socket_directories={}", dir.path().display()));
        let process = postgres.stderr(std::process::Stdio::null()).spawn().unwrap();
        let server = Server { dir, process, port };
        let started = Instant::now();
        while let Err(error) = Client::connect(&server.unix("test")).await {
            assert!(started.elapsed() < PATIENCE, "{error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn authentication(server: &Server) {
    let mut sql = Client::connect(&server.unix("test")).await.unwrap();
    sql.simple_query(
        "CREATE ROLE scram LOGIN PASSWORD 'p1'; CREATE ROLE clear LOGIN PASSWORD 'p1';
         SET password_encryption = 'md5'; CREATE ROLE md5 LOGIN PASSWORD 'p1'",
    )
    .await
    .unwrap();
    for user in ["scram", "md5", "clear"] {
        let mut client = Client::connect(&server.tcp(user).password("p1")).await.unwrap();
        let results = client.simple_query("SELECT current_user").await.unwrap();
        assert_eq!(results[0].value(0, "current_user"), Some(user));
        let error = Client::connect(&server.tcp(user).password("p2")).await.unwrap_err();
        assert_eq!(error.server_error().unwrap().code, "28P01", "{user}");
        let error = Client::connect(&server.tcp(user)).await.unwrap_err();
        assert!(matches!(error, ClientError::Authentication(_)), "{user}: {error}");
    }
}

async fn queries(server: &Server) {
    let mut sql = Client::connect(&server.unix("test").option("work_mem", "7 MB")).await.unwrap();
    assert!(sql.parameter("server_version").unwrap().starts_with("17."));
    let results = sql.simple_query("SHOW work_mem; SELECT NULL AS n, 5 AS five").await.unwrap();
    assert_eq!(results[0].value(0, "work_mem"), Some("7MB"));
    assert_eq!((results[1].value(0, "n"), results[1].value(0, "five")), (None, Some("5")));
    let error = sql.simple_query("SELECT 1/0").await.unwrap_err();
    assert_eq!(error.server_error().unwrap().code, "22012");
    let mut copy = sql.copy_out("COPY (SELECT generate_series(1, 3)) TO STDOUT").await.unwrap();
    let mut text = Vec::new();
    while let Some(piece) = copy.next().await.unwrap() {
        text.extend_from_slice(&piece);
    }
    assert_eq!(text, b"1\n2\n3\n");
    sql.simple_query("SELECT 1").await.unwrap();
}

async fn replication(server: &Server) {
    let mut sql = Client::connect(&server.unix("test")).await.unwrap();
    let mut walsender = Client::connect(&server.unix("test").replication()).await.unwrap();
    let identity = walsender.simple_query("IDENTIFY_SYSTEM").await.unwrap();
    let start: Lsn = identity[0].value(0, "xlogpos").unwrap().parse().unwrap();
    let slot = "CREATE_REPLICATION_SLOT s PHYSICAL RESERVE_WAL";
    assert_eq!(walsender.simple_query(slot).await.unwrap()[0].value(0, "slot_name"), Some("s"));
    let command = format!("START_REPLICATION SLOT s PHYSICAL {start}");
    let mut copy = walsender.copy_both(&command).await.unwrap();
    sql.simple_query("CREATE TABLE t AS SELECT generate_series(1, 100000)").await.unwrap();
    let position = sql.simple_query("SELECT pg_current_wal_flush_lsn()").await.unwrap();
    let end: Lsn = position[0].rows[0].text(0).unwrap().parse().unwrap();
    let mut received = start;
    while received < end {
        match copy.reader.recv_wal().await.unwrap().unwrap() {
            WalSenderMessage::XLogData { wal_start, data, .. } => {
                assert_eq!(wal_start, received);
                received += data.len() as u64;
            }
            WalSenderMessage::KeepAlive { .. } => {}
        }
    }
    let status = StandbyStatusUpdate {
        write_lsn: received,
        flush_lsn: received,
        apply_lsn: received,
        ..StandbyStatusUpdate::default()
    };
    copy.writer.send_standby(&StandbyMessage::Status(status)).await.unwrap();
    // The server took the answer for what it is: the slot moves with it.
    let started = Instant::now();
    loop {
        let query = "SELECT restart_lsn FROM pg_replication_slots";
        let slot = sql.simple_query(query).await.unwrap();
        if slot[0].value(0, "restart_lsn") == Some(received.to_string().as_str()) {
            break;
        }
        assert!(started.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut walsender = copy.finish().await.unwrap();
    walsender.simple_query("IDENTIFY_SYSTEM").await.unwrap();
}

#[tokio::test]
async fn stock_server_is_understood() {
    let server = Server::start().await;
    authentication(&server).await;
    queries(&server).await;
    replication(&server).await;
}
