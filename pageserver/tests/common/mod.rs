//! Clusters and servers for tests with a real PostgreSQL.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::allow_attributes,
    reason = "each test program uses a part of this, and fails by panicking"
)]

pub mod safekeeper;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use page_protocol::{
    Payload, ProtocolVersion, Request, RequestKind, decode_response, encode_request,
};
use pageserver::config::Config;
use pageserver::tenants::initdb::{self, InitdbOptions};
use pageserver::tenants::layout::Layout;
use pageserver::tenants::metadata::{StateFile, TimelineMetadata};
use pageserver::{Server, import};
use pg_launch::PgInstall;
use pg_types::{BLCKSZ, ForkNumber, Lsn, RelFileLocator, RelTag, TenantId, TimelineId};
use pg_wire::{Client, ConnectParams, CopyBoth, Endpoint};

pub const TENANT: TenantId = TenantId([0x11; 16]);
pub const TIMELINE: TimelineId = TimelineId([0x22; 16]);
pub const V3: ProtocolVersion = ProtocolVersion::V3;

/// The installation that an environment variable names.
pub fn install(variable: &str) -> PgInstall {
    let root = std::env::var_os(variable).unwrap_or_else(|| {
        panic!("{variable} must name a PostgreSQL installation (cargo xtask pg)")
    });
    PgInstall::new(PathBuf::from(root)).unwrap()
}

/// A directory that PostgreSQL's user may enter.
pub fn open_tempdir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    dir
}

/// Runs `initdb` into `dir/pgdata`.
pub fn new_cluster(dir: &Path) -> PathBuf {
    let pgdata = dir.join("pgdata");
    let options = InitdbOptions { superuser: "cloud_admin".into(), locale: "C.UTF-8".into() };
    initdb::run(&install("NEON_PG_STOCK"), &pgdata, &options).unwrap();
    pgdata
}

pub fn config(dir: &Path) -> Config {
    Config::for_tests(&dir.join("data"), install("NEON_PG_INSTALL").root())
}

/// Imports a cluster as a timeline of a data directory that no server has open.
pub fn import_cluster(pgdata: &Path, config: &Config) -> Lsn {
    let layout = Layout::open_or_create(&config.data_dir).unwrap();
    let dir = layout.timeline_dir(TENANT, TIMELINE);
    std::fs::create_dir_all(&dir).unwrap();
    let shared = layer_store::Shared::new(layer_store::Options::default());
    let store_dir = layout.store_dir(TENANT, TIMELINE);
    let (_store, summary) = import::import_data_directory(pgdata, &store_dir, &shared).unwrap();
    let metadata = TimelineMetadata {
        timeline_id: TIMELINE,
        ancestor: None,
        pg_version: 17,
        initdb_lsn: summary.start_lsn,
    };
    metadata.save(&dir).unwrap();
    summary.start_lsn
}

/// A page stream to a server.
pub struct Pages {
    stream: CopyBoth,
}

impl Pages {
    pub async fn open(server: &Server, timeline: TimelineId) -> Pages {
        let query = V3.command(TENANT, timeline);
        Pages { stream: client(server).await.copy_both(&query).await.unwrap() }
    }

    /// Asks all at once and gives the answers in order.
    pub async fn ask<T>(
        &mut self,
        lsn: Lsn,
        kinds: &[RequestKind],
        mut answer: impl FnMut(usize, Payload<'_>) -> T,
    ) -> Vec<T> {
        let request = |index: usize| Request {
            request_id: index as u64,
            request_lsn: lsn,
            not_modified_since: if lsn == Lsn::MAX { Lsn(0) } else { lsn },
            kind: kinds[index],
        };
        let mut answers = Vec::new();
        for first in (0..kinds.len()).step_by(64) {
            let batch = first..(first + 64).min(kinds.len());
            for index in batch.clone() {
                let mut bytes = Vec::new();
                encode_request(V3, &request(index), &mut bytes);
                self.stream.writer.send_noflush(&bytes).unwrap();
            }
            self.stream.writer.flush().await.unwrap();
            for index in batch {
                let bytes: Bytes = self.stream.reader.recv().await.unwrap().unwrap();
                let payload = decode_response(V3, &bytes, &request(index)).unwrap();
                answers.push(answer(index, payload));
            }
        }
        answers
    }
}

pub async fn client(server: &Server) -> Client {
    let endpoint = Endpoint::Tcp { host: "127.0.0.1".into(), port: server.pg_addr().port() };
    let params = ConnectParams::new(endpoint, "test").read_timeout(Some(Duration::from_secs(120)));
    Client::connect(&params).await.unwrap()
}

/// Every relation file of a cluster: the fork, the number of its first block, the file.
pub fn relation_files(pgdata: &Path) -> Vec<(RelTag, u32, PathBuf)> {
    let mut files = Vec::new();
    let mut add_all = |dir: &Path, spc_oid, db_oid| {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if let Some((rel_number, fork, segment)) = parse_name(&name) {
                let rel = RelFileLocator { spc_oid, db_oid, rel_number }.fork(fork);
                files.push((rel, segment * 131_072, path));
            }
        }
    };
    add_all(&pgdata.join("global"), 1664, 0);
    for entry in std::fs::read_dir(pgdata.join("base")).unwrap() {
        let path = entry.unwrap().path();
        let db_oid = path.file_name().unwrap().to_str().unwrap().parse();
        if let Ok(db_oid) = db_oid {
            add_all(&path, 1663, db_oid);
        }
    }
    files.sort();
    files
}

fn parse_name(name: &str) -> Option<(u32, ForkNumber, u32)> {
    let (name, segment) = name.split_once('.').unwrap_or((name, "0"));
    let (number, suffix) = match name.find('_') {
        Some(at) => name.split_at(at),
        None => (name, ""),
    };
    let fork = ForkNumber::ALL.into_iter().find(|fork| fork.file_suffix() == suffix)?;
    Some((number.parse().ok()?, fork, segment.parse().ok()?))
}

/// Blocks of a file.
pub fn blocks(path: &Path) -> Vec<Vec<u8>> {
    std::fs::read(path).unwrap().chunks(BLCKSZ).map(<[u8]>::to_vec).collect()
}

/// Waits for something to become true.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(120);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
