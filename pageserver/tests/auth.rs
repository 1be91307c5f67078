//! Tokens on both ports of a server. It has no timelines: whoever may ask hears that, whoever may not hears no more than
//! that.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::allow_attributes,
    reason = "a test fails by panicking"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use auth_token::{Claims, Scope, SigningKey};
use pageserver::Server;
use pageserver::config::Config;
use pg_types::{TenantId, TimelineId};
use pg_wire::{Client, ClientError, ConnectParams, Endpoint};

const TENANT: TenantId = TenantId([0x11; 16]);
const STRANGER: TenantId = TenantId([0xCC; 16]);
const TIMELINE: TimelineId = TimelineId([0x22; 16]);
/// `{"alg":"none"}` and `{"scope":"admin"}`, not signed.
const UNSIGNED: &str = "eyJhbGciOiJub25lIn0.eyJzY29wZSI6ImFkbWluIn0.";

struct Place {
    dir: tempfile::TempDir,
    key: SigningKey,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let bin = dir.path().join("install/bin");
        std::fs::create_dir_all(&bin).unwrap();
        for program in ["postgres", "initdb"] {
            test_programs::write_program(&bin.join(program), "exit 1").unwrap();
        }
        let key = SigningKey::generate().unwrap();
        std::fs::write(dir.path().join("key.pem"), key.public_pem().unwrap()).unwrap();
        Place { dir, key }
    }

    fn config(&self, key: &Path) -> Config {
        let dir = self.dir.path();
        Config {
            auth_validation_public_key_path: Some(dir.join(key)),
            ..Config::for_tests(&dir.join("data"), &dir.join("install"))
        }
    }

    async fn start(&self) -> Server {
        Server::start(self.config(Path::new("key.pem"))).await.unwrap()
    }

    fn token(&self, scope: Scope) -> String {
        auth_token::mint(&Claims::new(scope), &self.key).unwrap()
    }

    /// Tokens that are worth nothing, and why.
    fn bad_tokens(&self) -> Vec<(String, &'static str)> {
        let hour = Duration::from_secs(3600);
        let expired = Claims::new(Scope::Admin).expiring(SystemTime::now() - 2 * hour, hour);
        let stranger = SigningKey::generate().unwrap();
        vec![
            (String::new(), "a token is needed"),
            ("nonsense".to_owned(), "is not a JSON Web Token"),
            (UNSIGNED.to_owned(), "is not one that is signed with EdDSA"),
            (
                auth_token::mint(&Claims::new(Scope::Admin), &stranger).unwrap(),
                "not signed with a key that is accepted here",
            ),
            (auth_token::mint(&expired, &self.key).unwrap(), "the token has expired"),
        ]
    }
}

async fn connect(server: &Server, token: Option<&str>) -> Result<Client, ClientError> {
    let endpoint = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: server.pg_addr().port() };
    let mut params = ConnectParams::new(endpoint, "compute");
    if let Some(token) = token {
        params = params.password(token);
    }
    Client::connect(&params.read_timeout(Some(Duration::from_secs(60)))).await
}

fn words(error: &ClientError) -> (String, String) {
    let server = error.server_error().unwrap_or_else(|| panic!("{error}"));
    (server.code.clone(), server.message.clone())
}

/// SQLSTATE of a page stream, of a base backup and of a full backup, which all cannot succeed.
async fn codes(server: &Server, token: &str, tenant: TenantId) -> [String; 3] {
    let ids = format!("{tenant} {TIMELINE}");
    let client = connect(server, Some(token)).await.unwrap();
    let stream = client.copy_both(&format!("pagestream_v3 {ids}")).await.unwrap_err();
    let mut client = connect(server, Some(token)).await.unwrap();
    let base = client.copy_out(&format!("basebackup {ids}")).await.map(drop).unwrap_err();
    let full = client.copy_out(&format!("fullbackup {ids}")).await.map(drop).unwrap_err();
    [stream, base, full].map(|error| words(&error).0)
}

/// Status and body.
async fn get(
    server: &Server,
    method: &'static str,
    path: &str,
    token: Option<&str>,
) -> (u16, serde_json::Value) {
    let url = format!("http://127.0.0.1:{}{path}", server.http_addr().port());
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(()).unwrap();
    let run = move || {
        let agent: ureq::Agent =
            ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut response = agent.run(request).unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), serde_json::from_str(&text).unwrap_or_default())
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_let_in_without_a_good_token() {
    let place = Place::new();
    let server = place.start().await;
    let error = connect(&server, None).await.unwrap_err();
    assert!(matches!(error, ClientError::Authentication(_)), "{error}");
    for (token, reason) in place.bad_tokens() {
        let (code, message) = words(&connect(&server, Some(&token)).await.unwrap_err());
        assert!(code == "28000" && message.contains(reason), "{code} {message}");
        let (status, body) = get(&server, "GET", "/v1/tenant", Some(&token)).await;
        assert!(status == 401 && body["code"] == "unauthorized", "{status} {body}");
        assert!(body["msg"].as_str().unwrap().contains(reason), "{body}");
    }
    assert_eq!(get(&server, "GET", "/v1/tenant", None).await.0, 401);
    // Whoever looks after the process needs none.
    assert_eq!(get(&server, "GET", "/v1/status", None).await.0, 200);
    assert_eq!(get(&server, "GET", "/metrics", None).await.0, 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_for_its_scope_alone() {
    let place = Place::new();
    let server = place.start().await;
    let (refused, not_found) = (["28000"; 3], ["42704"; 3]);
    for (scope, own, other, status) in [
        (Scope::Tenant(TENANT), not_found, refused, 403),
        (Scope::Tenant(STRANGER), refused, not_found, 403),
        (Scope::SafekeeperData, refused, refused, 403),
        (Scope::PageServerApi, not_found, not_found, 404),
        (Scope::Admin, not_found, not_found, 404),
    ] {
        let token = place.token(scope);
        assert_eq!(codes(&server, &token, TENANT).await, own, "{scope}");
        assert_eq!(codes(&server, &token, STRANGER).await, other, "{scope}");
        for method in ["GET", "DELETE"] {
            let path = format!("/v1/tenant/{TENANT}/timeline/{TIMELINE}");
            let answer = get(&server, method, &path, Some(&token)).await;
            assert_eq!(answer.0, status, "{scope}: {method}: {}", answer.1);
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_cannot_be_used_are_named_at_the_start() {
    let place = Place::new();
    let Err(error) = Server::start(place.config(Path::new("nowhere.pem"))).await else {
        panic!("it starts without keys");
    };
    let message = error.to_string();
    assert!(message.contains("auth_validation_public_key_path: could not read"), "{message}");
}
