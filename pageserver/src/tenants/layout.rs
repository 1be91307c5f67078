//! Where things are below the data directory, and how they come and go durably.
//!
//! ```text
//! DATA_DIR/
//!   tmp/                              contents removed at start: initdb directories
//!   tenants/TENANT/                   one directory is one tenant
//!     timelines/TIMELINE/             one directory with `metadata` is one timeline
//!       metadata                      what the timeline is (metadata.rs); written last at creation
//!       wal_source                    where its WAL comes from
//!       store/                        page versions (crate layer_store)
//!     timelines/TIMELINE.deleted/     a deletion in progress; removed at start
//!   tenants/TENANT.deleted/           the same for a tenant
//! ```
//!
//! A thing exists from one rename on and is gone from one rename on; what a crash leaves before the first or
//! behind the second is removed at the next start.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use pg_types::{TenantId, TimelineId};

/// Suffix of a directory whose deletion has been decided.
pub const DELETED_SUFFIX: &str = ".deleted";
/// Suffix of a file that is not yet complete.
const TEMP_SUFFIX: &str = ".tmp";

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("could not {action} {path}")]
pub struct LayoutError {
    /// What was tried, as a verb.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Cause.
    #[source]
    pub source: io::Error,
}

/// Adds what was done on which path to an I/O error.
pub(crate) trait IoContext<T> {
    fn doing(self, action: &'static str, path: &Path) -> Result<T, LayoutError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn doing(self, action: &'static str, path: &Path) -> Result<T, LayoutError> {
        self.map_err(|source| LayoutError { action, path: path.to_owned(), source })
    }
}

/// Paths below one data directory.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// [`Layout::open`], with `root` itself made when missing.
    pub fn open_or_create(root: &Path) -> Result<Layout, LayoutError> {
        create_dir_durably(root)?;
        Layout::open(root)
    }

    /// The layout below `root`, whose top directories are made when missing. What an earlier process left in
    /// the directory for temporary things is removed.
    pub fn open(root: &Path) -> Result<Layout, LayoutError> {
        let layout = Layout { root: root.to_owned() };
        fs::create_dir_all(layout.tenants_dir()).doing("create", &layout.tenants_dir())?;
        let tmp = layout.tmp_dir();
        if tmp.exists() {
            fs::remove_dir_all(&tmp).doing("remove", &tmp)?;
        }
        fs::create_dir(&tmp).doing("create", &tmp)?;
        sync_dir(root)?;
        Ok(layout)
    }

    /// Directory of temporary things.
    pub fn tmp_dir(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Directory of all tenants.
    pub fn tenants_dir(&self) -> PathBuf {
        self.root.join("tenants")
    }

    /// Directory of a tenant.
    pub fn tenant_dir(&self, tenant: TenantId) -> PathBuf {
        self.tenants_dir().join(tenant.to_string())
    }

    /// Directory of a tenant's timelines.
    pub fn timelines_dir(&self, tenant: TenantId) -> PathBuf {
        self.tenant_dir(tenant).join("timelines")
    }

    /// Directory of a timeline.
    pub fn timeline_dir(&self, tenant: TenantId, timeline: TimelineId) -> PathBuf {
        self.timelines_dir(tenant).join(timeline.to_string())
    }

    /// Directory of a timeline's page versions.
    pub fn store_dir(&self, tenant: TenantId, timeline: TimelineId) -> PathBuf {
        self.timeline_dir(tenant, timeline).join("store")
    }
}

/// Makes the directory entries of `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), LayoutError> {
    File::open(dir).and_then(|file| file.sync_all()).doing("sync", dir)
}

/// Replaces a file with `bytes`: after a crash it has its old contents or the new ones.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), LayoutError> {
    let temp = with_suffix(path, TEMP_SUFFIX);
    let mut file = File::create(&temp).doing("create", &temp)?;
    file.write_all(bytes).doing("write", &temp)?;
    file.sync_all().doing("sync", &temp)?;
    fs::rename(&temp, path).doing("rename", &temp)?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Makes a directory and its parents, durably.
pub(crate) fn create_dir_durably(dir: &Path) -> Result<(), LayoutError> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        create_dir_durably(parent)?;
        fs::create_dir(dir).doing("create", dir)?;
        sync_dir(parent)?;
    }
    Ok(())
}

/// Decides that `dir` is deleted: from here on a restart finishes the deletion. Returns its new name.
pub(crate) fn mark_deleted(dir: &Path) -> Result<PathBuf, LayoutError> {
    let marked = with_suffix(dir, DELETED_SUFFIX);
    if marked.exists() {
        fs::remove_dir_all(&marked).doing("remove", &marked)?;
    }
    fs::rename(dir, &marked).doing("rename", dir)?;
    dir.parent().map_or(Ok(()), sync_dir)?;
    Ok(marked)
}

/// Removes a directory whose deletion has been decided.
pub(crate) fn remove_marked(marked: &Path) -> Result<(), LayoutError> {
    fs::remove_dir_all(marked).doing("remove", marked)?;
    marked.parent().map_or(Ok(()), sync_dir)
}

/// Directories directly below `dir`, with their names; deletions in progress are finished on the way, and
/// names that are not UTF-8 are left alone.
pub(crate) fn live_directories(dir: &Path) -> Result<Vec<(String, PathBuf)>, LayoutError> {
    let mut live = Vec::new();
    for entry in fs::read_dir(dir).doing("read", dir)? {
        let entry = entry.doing("read", dir)?;
        let path = entry.path();
        if !entry.file_type().doing("inspect", &path)?.is_dir() {
            continue;
        }
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.ends_with(DELETED_SUFFIX) {
            remove_marked(&path)?;
        } else {
            live.push((name, path));
        }
    }
    live.sort();
    Ok(live)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_clears_what_is_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        fs::write(layout.tmp_dir().join("left"), b"over").unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        assert_eq!(fs::read_dir(layout.tmp_dir()).unwrap().count(), 0);
    }

    #[test]
    fn a_deletion_is_finished_by_the_next_look() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            create_dir_durably(&dir.path().join(name).join("inner")).unwrap();
        }
        let marked = mark_deleted(&dir.path().join("a")).unwrap();
        assert!(marked.exists());
        let live = live_directories(dir.path()).unwrap();
        assert_eq!(live, [("b".to_owned(), dir.path().join("b"))]);
        assert!(!marked.exists());
    }

    #[test]
    fn a_name_can_be_deleted_again_while_its_last_deletion_is_unfinished() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("a");
        for _ in 0..2 {
            create_dir_durably(&name).unwrap();
            mark_deleted(&name).unwrap();
        }
        assert!(live_directories(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn a_written_file_replaces_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write_durably(&path, b"one").unwrap();
        write_durably(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
