//! Data directories of redo processes: one template for each version, and a private copy for each process.
//!
//! ```text
//! <work dir>/wal-redo-template.v17.XXXXXX.___temp     made by initdb -N, once in a process' life
//! <tenant>/wal-redo-datadir.XXXXXX.___temp            what a redo process starts in: four files of the above
//! ```
//!
//! The names are unique, so any number of managers of one tenant work side by side (L080). Each directory is
//! locked (flock) by whoever made it for as long as it is in use: one that nobody holds was left by a process
//! that was killed, and is removed (L079).

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{Flock, FlockArg};
use pg_launch::{PgInstall, SystemUser};
use tracing::{info, warn};

use crate::initdb::run_initdb;

/// Marks files and directories that nobody misses after a restart.
pub const TEMP_SUFFIX: &str = ".___temp";
/// Start of the name of a redo process' data directory (L078).
pub const DATADIR_PREFIX: &str = "wal-redo-datadir.";
const TEMPLATE_PREFIX: &str = "wal-redo-template.";

/// Settings of a redo process (L083).
pub const CONFIG: &str = "shared_buffers=128kB\n\
                          fsync=off\n\
                          shared_preload_libraries=neon\n\
                          neon.wal_redo=on\n";

/// What a redo process reads before it takes over: nothing else of a cluster is needed.
const FILES: [&str; 4] =
    ["PG_VERSION", "postgresql.conf", "postgresql.auto.conf", "global/pg_control"];
/// Directories that must exist: one for the files above, one that Postgres creates a file in, and one that it
/// cleans at start.
const DIRECTORIES: [&str; 3] = ["global", "pg_dynshmem", "pg_notify"];

/// Serialises making, locking and sweeping of directories within this process: a directory that was just made
/// and is not locked yet must not be taken for a stale one.
static SWEEP: Mutex<()> = Mutex::new(());

/// A directory of this process; removed when dropped.
#[derive(Debug)]
pub struct PrivateDir {
    dir: tempfile::TempDir,
    _lock: Flock<File>,
}

impl PrivateDir {
    /// Makes a directory in `parent`, after removing what dead processes left there under the same prefix.
    pub fn create(
        parent: &Path,
        prefix: &str,
        user: Option<&SystemUser>,
    ) -> io::Result<PrivateDir> {
        let _guard = SWEEP.lock().unwrap_or_else(PoisonError::into_inner);
        remove_stale(parent, prefix)?;
        let dir = tempfile::Builder::new()
            .prefix(prefix)
            .suffix(TEMP_SUFFIX)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(parent)?;
        let lock = try_lock(dir.path())?
            .ok_or_else(|| io::Error::other("a directory that was just made is locked"))?;
        if let Some(user) = user {
            user.check_searchable(parent).map_err(io::Error::other)?;
            user.give(dir.path()).map_err(io::Error::other)?;
        }
        Ok(PrivateDir { dir, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Locks a directory; `None` when somebody else holds it.
fn try_lock(path: &Path) -> io::Result<Option<Flock<File>>> {
    match Flock::lock(File::open(path)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// Removes directories of dead processes.
fn remove_stale(parent: &Path, prefix: &str) -> io::Result<()> {
    for entry in std::fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with(prefix) || !name.ends_with(TEMP_SUFFIX) {
            continue;
        }
        let path = entry.path();
        match try_lock(&path) {
            Ok(Some(_lock)) => {
                info!("removing old temporary data directory {}", path.display());
                std::fs::remove_dir_all(&path)?;
            }
            Ok(None) => (),
            // Its owner may have removed it meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => warn!("could not inspect {}: {error}", path.display()),
        }
    }
    Ok(())
}

/// A cluster made by initdb that redo processes get their few files from.
#[derive(Debug)]
pub struct Template {
    dir: PrivateDir,
}

impl Template {
    /// Runs initdb in a new directory below `parent` and adds the settings. Takes about a second.
    pub fn create(
        install: &PgInstall,
        version: u32,
        parent: &Path,
        user: Option<&SystemUser>,
    ) -> io::Result<Template> {
        let prefix = format!("{TEMPLATE_PREFIX}v{version}.");
        let dir = PrivateDir::create(parent, &prefix, user)?;
        run_initdb(install, dir.path(), user)?;
        let path = dir.path().join("postgresql.conf");
        let mut config = std::fs::read(&path)?;
        config.extend_from_slice(CONFIG.as_bytes());
        std::fs::write(&path, config)?;
        Ok(Template { dir })
    }

    /// A new data directory in `tenant_dir`.
    pub fn instantiate(
        &self,
        tenant_dir: &Path,
        user: Option<&SystemUser>,
    ) -> io::Result<PrivateDir> {
        let dir = PrivateDir::create(tenant_dir, DATADIR_PREFIX, user)?;
        for name in DIRECTORIES {
            std::fs::DirBuilder::new().mode(0o700).create(dir.path().join(name))?;
        }
        for name in FILES {
            let from: PathBuf = self.dir.path().join(name);
            std::fs::copy(&from, dir.path().join(name))?;
        }
        if let Some(user) = user {
            user.give(dir.path()).map_err(io::Error::other)?;
        }
        Ok(dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_directories_go_and_live_ones_stay() {
        let parent = tempfile::tempdir().unwrap();
        let stale = parent.path().join("wal-redo-datadir.dead.___temp");
        std::fs::create_dir_all(stale.join("global")).unwrap();
        let bystander = parent.path().join("wal-redo-datadir.kept");
        std::fs::create_dir(&bystander).unwrap();

        let first = PrivateDir::create(parent.path(), DATADIR_PREFIX, None).unwrap();
        assert!(!stale.exists(), "nobody holds it");
        assert!(bystander.exists(), "not a temporary name");
        let second = PrivateDir::create(parent.path(), DATADIR_PREFIX, None).unwrap();
        assert!(first.path().exists() && second.path().exists());
        assert_ne!(first.path(), second.path());

        let path = first.path().to_owned();
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn the_four_settings() {
        assert_eq!(
            CONFIG.lines().collect::<Vec<_>>(),
            [
                "shared_buffers=128kB",
                "fsync=off",
                "shared_preload_libraries=neon",
                "neon.wal_redo=on"
            ]
        );
    }
}
