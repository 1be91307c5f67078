//! Files that are there, whole, after a crash at any point: write aside, fsync, rename, fsync the directory.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Suffix of files that are not yet, or no longer, part of anything: removed at load.
pub const TEMPORARY_SUFFIX: &str = ".tmp";

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("could not {action} {}: {source}", .path.display())]
pub struct FileError {
    /// What was tried, as a verb.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Cause.
    #[source]
    pub source: io::Error,
}

/// Adds action and path to an I/O result.
pub trait Context<T> {
    /// Names what was tried on what.
    fn context(self, action: &'static str, path: &Path) -> Result<T, FileError>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, FileError> {
        self.map_err(|source| FileError { action, path: path.to_owned(), source })
    }
}

/// Makes the entries of a directory durable.
pub fn fsync_dir(dir: &Path) -> Result<(), FileError> {
    File::open(dir).and_then(|dir| dir.sync_all()).context("fsync directory", dir)
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

/// Name beside `path` for a file under construction.
pub fn temporary_beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(TEMPORARY_SUFFIX);
    PathBuf::from(name)
}

/// Gives the file at `path` this content, durably: after a crash it has the old content or the new one.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let temporary = temporary_beside(path);
    let mut file = File::create(&temporary).context("create", &temporary)?;
    file.write_all(content).context("write", &temporary)?;
    file.sync_all().context("fsync", &temporary)?;
    rename(&temporary, path)
}

/// Renames, durably. The content must be durable already.
pub fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    fs::rename(from, to).context("rename", from)?;
    fsync_dir(parent(to))
}

/// Makes a directory with its parents, each one durable.
pub fn create_dir_all(dir: &Path) -> Result<(), FileError> {
    if dir.is_dir() {
        return Ok(());
    }
    create_dir_all(parent(dir))?;
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => result.context("create directory", dir)?,
    }
    fsync_dir(parent(dir))
}

/// Removes a directory with everything in it, durably; `false` when there is none. It is renamed first: a crash
/// half-way leaves something that is recognised as rubbish, not half of a timeline.
pub fn remove_dir_all(dir: &Path) -> Result<bool, FileError> {
    let aside = temporary_beside(dir);
    remove_if_there(&aside)?;
    match fs::rename(dir, &aside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        result => result.context("rename", dir)?,
    }
    fsync_dir(parent(dir))?;
    remove_if_there(&aside)?;
    fsync_dir(parent(dir))?;
    Ok(true)
}

/// Removes a directory that nobody will miss, not durably.
pub fn remove_if_there(dir: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.context("remove", dir),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replace_leaves_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn remove_says_whether_there_was_something() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        create_dir_all(&path).unwrap();
        fs::write(path.join("x"), b"x").unwrap();
        // Rubbish of an interrupted removal does not stop the next one.
        create_dir_all(&temporary_beside(&path)).unwrap();
        assert!(remove_dir_all(&path).unwrap());
        assert!(!remove_dir_all(&path).unwrap());
        assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 0);
    }

    #[test]
    fn errors_name_the_file() {
        let error = replace(Path::new("/proc/nowhere/f"), b"").unwrap_err();
        assert!(error.to_string().starts_with("could not create /proc/nowhere/f.tmp: "), "{error}");
    }
}
