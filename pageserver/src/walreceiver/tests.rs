//! What a receiver shows to a safekeeper.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use pg_wire::postgres_backend::Timeouts;
use pg_wire::{AuthType, Handler, PostgresBackend, QueryError};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::fixture::{Fixture, TENANT, timeline_id};
use crate::server::Server;
use crate::tenants::metadata::WalSource;

type Passwords = Arc<Mutex<Vec<Vec<u8>>>>;

/// A safekeeper that lets nobody in and remembers who came.
struct Doorkeeper(Passwords);

impl Handler<TcpStream> for Doorkeeper {
    fn check_password(&mut self, password: &[u8]) -> Result<(), QueryError> {
        self.0.lock().unwrap().push(password.to_vec());
        Err(QueryError::Unauthorized("not you".into()))
    }

    async fn process_query(
        &mut self,
        _pgb: &mut PostgresBackend<TcpStream>,
        query: &str,
    ) -> Result<(), QueryError> {
        panic!("{query}");
    }
}

async fn serve(listener: TcpListener, passwords: Passwords) {
    while let Ok((stream, _)) = listener.accept().await {
        let auth = AuthType::CleartextPassword;
        let backend = PostgresBackend::new(stream, auth, Timeouts::default());
        let mut doorkeeper = Doorkeeper(Arc::clone(&passwords));
        drop(backend.run(&mut doorkeeper, &CancellationToken::new()).await);
    }
}

async fn eventually(condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "never");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn safekeepers_are_shown_the_token_as_it_is_by_then() {
    let mut fixture = Fixture::new();
    fixture.timeline(timeline_id(1));
    let file = fixture.config.data_dir.with_file_name("token");
    fixture.config.auth_token_path = Some(file.clone());
    std::fs::write(&file, "old").unwrap();
    let server = Server::start(fixture.config.clone()).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let safekeepers = vec![listener.local_addr().unwrap().to_string()];
    let passwords = Passwords::default();
    let serving = tokio::spawn(serve(listener, Arc::clone(&passwords)));
    let source = WalSource { safekeepers };
    server.tenants().set_wal_source(TENANT, timeline_id(1), source).await.unwrap();
    let shown = |token: &[u8]| passwords.lock().unwrap().iter().any(|password| password == token);
    eventually(|| shown(b"old")).await;
    std::fs::write(&file, "new\n").unwrap();
    eventually(|| shown(b"new")).await;
    serving.abort();
    server.stop().await;
}
