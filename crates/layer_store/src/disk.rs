//! The one door to the disk for everything that changes it.
//!
//! Every change is one [`Step`]; tests see each step before it happens, may stop it, and may copy the directory
//! as it is then: that is what a kill at that line leaves behind.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::IoFailed;

/// One change of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Make a directory.
    CreateDir(PathBuf),
    /// Make a file, which must not exist.
    Create(PathBuf),
    /// Append to a file.
    Write(PathBuf),
    /// Make a file's contents durable.
    SyncFile(PathBuf),
    /// Rename, replacing the target.
    Rename(PathBuf, PathBuf),
    /// Make the entries of a directory durable.
    SyncDir(PathBuf),
    /// Delete a file.
    Remove(PathBuf),
}

type Hook = Arc<dyn Fn(&Step) -> io::Result<()> + Send + Sync>;

/// The disk. Tests give it a hook.
#[derive(Clone, Default)]
pub(crate) struct Disk {
    hook: Option<Hook>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("hooked", &self.hook.is_some()).finish()
    }
}

/// A file that is being written.
#[derive(Debug)]
pub(crate) struct NewFile {
    file: File,
    path: PathBuf,
    disk: Disk,
}

impl Disk {
    /// A disk whose every step is first shown to `hook`; an error from it is the step's error.
    #[cfg(test)]
    pub(crate) fn with_hook(
        hook: impl Fn(&Step) -> io::Result<()> + Send + Sync + 'static,
    ) -> Disk {
        Disk { hook: Some(Arc::new(hook)) }
    }

    fn before(&self, step: impl FnOnce() -> Step) -> io::Result<()> {
        self.hook.as_ref().map_or(Ok(()), |hook| hook(&step()))
    }

    /// Makes a directory and its missing parents, durably.
    pub(crate) fn create_dir_all(&self, path: &Path) -> Result<(), IoFailed> {
        if path.is_dir() {
            return Ok(());
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            self.create_dir_all(parent)?;
        }
        self.before(|| Step::CreateDir(path.to_owned()))
            .and_then(|()| std::fs::create_dir(path))
            .map_err(|error| IoFailed::new("create directory", path, error))?;
        self.sync_dir(parent.unwrap_or(Path::new(".")))
    }

    /// Makes a file, which must not exist.
    pub(crate) fn create(&self, path: &Path) -> Result<NewFile, IoFailed> {
        let file = self
            .before(|| Step::Create(path.to_owned()))
            .and_then(|()| OpenOptions::new().write(true).create_new(true).open(path))
            .map_err(|error| IoFailed::new("create", path, error))?;
        Ok(NewFile { file, path: path.to_owned(), disk: self.clone() })
    }

    /// Renames a file, replacing the target.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<(), IoFailed> {
        self.before(|| Step::Rename(from.to_owned(), to.to_owned()))
            .and_then(|()| std::fs::rename(from, to))
            .map_err(|error| IoFailed::new("rename a file to", to, error))
    }

    /// Makes the entries of a directory durable.
    pub(crate) fn sync_dir(&self, path: &Path) -> Result<(), IoFailed> {
        self.before(|| Step::SyncDir(path.to_owned()))
            .and_then(|()| File::open(path)?.sync_all())
            .map_err(|error| IoFailed::new("sync directory", path, error))
    }

    /// Deletes a file; one that is gone already is no error.
    pub(crate) fn remove(&self, path: &Path) -> Result<(), IoFailed> {
        let removed =
            self.before(|| Step::Remove(path.to_owned())).and_then(|()| std::fs::remove_file(path));
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(IoFailed::new("delete", path, error))
            }
            _ => Ok(()),
        }
    }
}

impl NewFile {
    /// Appends.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), IoFailed> {
        self.disk
            .before(|| Step::Write(self.path.clone()))
            .and_then(|()| self.file.write_all(bytes))
            .map_err(|error| IoFailed::new("write", &self.path, error))
    }

    /// Makes the contents durable. After an error nothing is known about them: the file must be given up, never
    /// synced again, since the kernel may have dropped the pages that failed.
    pub(crate) fn sync(self) -> Result<(), IoFailed> {
        self.disk
            .before(|| Step::SyncFile(self.path.clone()))
            .and_then(|()| self.file.sync_all())
            .map_err(|error| IoFailed::new("sync", &self.path, error))
    }
}
