//! What the tests with a real Postgres share. Not every test binary uses all of it.
#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses its own part")]

pub mod direct;
pub mod fake;
pub mod logs;
pub mod mask;
pub mod server;
pub mod wal;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pg_launch::{PgInstall, SystemUser};
use pg_types::{Lsn, TenantId};
use walredo_sidecar::{PostgresRedoManager, WalRedoConfig, WalRedoEnv};

pub const PG_VERSION: u32 = 17;
pub const TENANT: TenantId = TenantId([7; 16]);

/// The installation whose `postgres --wal-redo` is tested.
pub fn patched() -> PgInstall {
    install("NEON_PG_INSTALL", "the patched PostgreSQL with the neon library")
}

/// The installation that makes WAL and pages to compare with.
pub fn stock() -> PgInstall {
    install("NEON_PG_STOCK", "the unpatched PostgreSQL")
}

fn install(variable: &str, what: &str) -> PgInstall {
    let root = std::env::var_os(variable).unwrap_or_else(|| {
        panic!("{variable} is not set: it names the root of {what} (cargo xtask pg)")
    });
    PgInstall::new(PathBuf::from(root)).unwrap()
}

pub fn system_user() -> Option<SystemUser> {
    pg_launch::ensure_system_user().unwrap()
}

/// A temporary directory that the system user may enter.
pub fn open_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    dir
}

/// Managers over one temporary page server directory.
pub struct Fixture {
    pub dir: tempfile::TempDir,
    pub env: Arc<WalRedoEnv>,
}

impl Fixture {
    pub fn new() -> Fixture {
        Fixture::with(|_| ())
    }

    pub fn with(change: impl FnOnce(&mut WalRedoConfig)) -> Fixture {
        Fixture::bare(|config| {
            config.installs.insert(PG_VERSION, patched());
            change(config);
        })
    }

    /// Without any installation.
    pub fn bare(change: impl FnOnce(&mut WalRedoConfig)) -> Fixture {
        logs::capture();
        let dir = open_dir();
        let mut config = WalRedoConfig {
            installs: BTreeMap::new(),
            user: system_user(),
            work_dir: dir.path().to_owned(),
            wal_redo_timeout: Duration::from_secs(60),
            pool_size: NonZeroUsize::MIN,
        };
        change(&mut config);
        Fixture { dir, env: Arc::new(WalRedoEnv::new(config)) }
    }

    pub fn tenant_dir(&self) -> PathBuf {
        let path = self.dir.path().join("tenant");
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    pub fn manager(&self) -> PostgresRedoManager {
        PostgresRedoManager::new(Arc::clone(&self.env), TENANT, self.tenant_dir())
    }
}

/// Processes whose data directory is below `dir`: the redo processes of a fixture. Not their children.
pub fn redo_pids(dir: &Path) -> Vec<u32> {
    let below = |environ: &[u8]| {
        let wanted = format!("PGDATA={}", dir.display());
        environ.split(|byte| *byte == 0).any(|entry| entry.starts_with(wanted.as_bytes()))
    };
    let parent = format!("PPid:\t{}\n", std::process::id());
    let ours = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/status"))
            .is_ok_and(|status| status.contains(&parent))
    };
    let mut pids: Vec<u32> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter(ours)
        .filter(|pid| std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|e| below(&e)))
        .collect();
    pids.sort_unstable();
    pids
}

/// A field of /proc/PID/status.
pub fn status_field(pid: u32, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
    line.unwrap_or_else(|| panic!("no {field} in {status}")).trim().to_owned()
}

pub const fn lsn(value: u64) -> Lsn {
    Lsn(value)
}
