//! Data directories of redo processes: a private one for each process, and the temporary ones that they come from.
//!
//! ```text
//! <work dir>/wal-redo-initdb.v17.XXXXXX.___temp       where initdb -N runs, for as long as it does
//! <tenant>/wal-redo-datadir.XXXXXX.___temp            what a redo process starts in: files of the template
//! ```
//!
//! The names are unique, so any number of managers of one tenant work side by side (L080). Each directory is
//! locked (flock) by whoever made it for as long as it is in use: one that nobody holds was left by a process
//! that was killed, and is removed (L079).

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{Flock, FlockArg};
use pg_launch::SystemUser;
use tracing::{info, warn};

/// Marks files and directories that nobody misses after a restart.
pub const TEMP_SUFFIX: &str = ".___temp";
/// Start of the name of a redo process' data directory (L078).
pub const DATADIR_PREFIX: &str = "wal-redo-datadir.";

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
}
