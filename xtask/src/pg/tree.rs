//! One build: source, build and installation below one folder.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::stat::{Mode, umask};
use sha2::{Digest, Sha256};

use super::PgInstallDirs;
use super::patches::Series;
use super::progress::{self, Step};
use super::source::{Source, hex};

/// Builds that are kept of each flavour, for checkouts with other patches; older ones are removed.
const KEPT: usize = 3;

/// How both flavours are configured, besides the prefix.
const CONFIGURE: &[&str] = &[
    "--with-icu",
    "--with-lz4",
    "--with-zstd",
    "--with-ssl=openssl",
    "CFLAGS=-O2 -g -fno-omit-frame-pointer",
];

/// A build in the cache, finished or not.
#[derive(Debug, Clone)]
pub struct Tree {
    flavour: &'static str,
    root: PathBuf,
    key: String,
}

impl Tree {
    /// The place of the build of `source` with `series`.
    pub fn new(cache: &Path, flavour: &'static str, source: &Source, series: &Series) -> Tree {
        let key = key(&source.sha256, series);
        let root =
            cache.join(format!("{flavour}-{}-{}", source.version, key.get(..12).unwrap_or(&key)));
        Tree { flavour, root, key }
    }

    /// Folders of the build.
    pub fn dirs(&self) -> PgInstallDirs {
        PgInstallDirs {
            install: self.root.join("install"),
            build: self.root.join("build"),
            source: self.root.join("source"),
        }
    }

    /// Whether the build is complete, and still where it was built: its makefiles have absolute paths.
    pub fn is_finished(&self) -> bool {
        fs::read_to_string(self.root.join("finished")).is_ok_and(|stamp| stamp == self.stamp())
    }

    fn stamp(&self) -> String {
        format!("{}\n{}\n", self.key, self.root.display())
    }

    /// Builds, unless that is done. What an interrupted run left is thrown away.
    pub fn make(&self, source: &Source, series: &Series) -> Result<()> {
        if self.is_finished() {
            return Ok(());
        }
        let name = format!("{} PostgreSQL {}", self.flavour, source.version);
        if self.root.exists() {
            fs::remove_dir_all(&self.root)
                .with_context(|| format!("could not remove {}", self.root.display()))?;
        }
        let dirs = self.dirs();
        for dir in [&dirs.source, &dirs.build] {
            fs::create_dir_all(dir)
                .with_context(|| format!("could not create {}", dir.display()))?;
        }
        self.unpack(&name, source, series)?;
        self.build(&name)?;
        let temp = self.root.join("finished.tmp");
        fs::write(&temp, self.stamp())?;
        fs::rename(&temp, self.root.join("finished"))?;
        Ok(())
    }

    fn unpack(&self, name: &str, source: &Source, series: &Series) -> Result<()> {
        let dirs = self.dirs();
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--strip-components=1", "--no-same-owner", "--no-same-permissions"])
            .arg("--file")
            .arg(&source.tarball)
            .arg("--directory")
            .arg(&dirs.source);
        progress::run(format!("unpack {name}"), tar, &self.root.join("unpack.log"))?;
        if !series.patches.is_empty() {
            let step = Step::begin(format!("apply {} patches", series.patches.len()));
            for patch in &series.patches {
                patch.apply(&dirs.source)?;
            }
            step.done();
        }
        Ok(())
    }

    fn build(&self, name: &str) -> Result<()> {
        let dirs = self.dirs();
        let mut configure = Command::new(dirs.source.join("configure"));
        configure.current_dir(&dirs.build).arg(format!("--prefix={}", dirs.install.display()));
        configure.args(CONFIGURE);
        progress::run(format!("configure {name}"), configure, &self.root.join("configure.log"))?;

        let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) + 1;
        // `world-bin` is everything but documentation: contrib and the regression programs too.
        let make = |target: &str| {
            let mut make = Command::new("make");
            // Settings of an outer make would reach this one.
            make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").env_remove("MFLAGS");
            make.current_dir(&dirs.build).arg(format!("-j{jobs}")).arg(target);
            make
        };
        progress::run(format!("compile {name}"), make("world-bin"), &self.root.join("make.log"))?;
        progress::run(
            format!("install {name}"),
            make("install-world-bin"),
            &self.root.join("install.log"),
        )?;
        for program in [
            dirs.install.join("bin/postgres"),
            dirs.build.join("src/test/regress/pg_regress"),
            dirs.build.join("src/test/regress/regress.so"),
            dirs.build.join("src/test/isolation/pg_isolation_regress"),
        ] {
            ensure!(program.exists(), "the build did not make {}", program.display());
        }
        Ok(())
    }

    /// Remembers that the build is in use, so that it is not the next to be removed. Another user's cache
    /// cannot be written to, and need not.
    pub fn note_use(&self) {
        if let Ok(file) = File::open(self.root.join("finished")) {
            let _ = file.set_modified(SystemTime::now());
        }
    }
}

/// A hash of everything that makes builds differ.
fn key(source_sha256: &str, series: &Series) -> String {
    let mut hasher = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(source_sha256.as_bytes());
    for option in CONFIGURE {
        part(option.as_bytes());
    }
    for patch in &series.patches {
        part(patch.name.as_bytes());
        part(patch.text.as_bytes());
    }
    hex(&hasher.finalize())
}

/// Removes builds that have not been used for longest, but none of `current`.
pub fn remove_old(cache: &Path, current: &[&Tree]) -> Result<()> {
    for tree in current {
        let mut others = Vec::new();
        for entry in fs::read_dir(cache)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with(&format!("{}-", tree.flavour)) && path != tree.root {
                let used =
                    fs::metadata(path.join("finished")).and_then(|meta| meta.modified()).ok();
                others.push((used, path));
            }
        }
        others.sort();
        others.reverse();
        for (_, path) in others.into_iter().skip(KEPT - 1) {
            fs::remove_dir_all(&path)
                .with_context(|| format!("could not remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Holds the lock of the cache until the returned file is closed, which a killed process does as well. Programs
/// that it started inherit the file: as long as an orphaned `make` works on a tree, nobody else does.
pub fn lock(cache: &Path) -> Result<File> {
    let path = cache.join("lock");
    let file = File::create(&path).with_context(|| format!("could not open {}", path.display()))?;
    fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("could not lock {}", path.display()));
        }
    }
    let step = Step::begin("wait for another run of `cargo xtask pg`");
    file.lock().with_context(|| format!("could not lock {}", path.display()))?;
    step.done();
    Ok(file)
}

/// While this lives, files are made so that other users can read them: Postgres runs as one.
#[derive(Debug)]
pub struct OpenUmask(Mode);

impl OpenUmask {
    /// Sets the file mode creation mask of this process to 022.
    pub fn set() -> OpenUmask {
        OpenUmask(umask(Mode::S_IWGRP | Mode::S_IWOTH))
    }
}

impl Drop for OpenUmask {
    fn drop(&mut self) {
        umask(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::patches::Patch;
    use super::*;

    fn source(sha256: &str) -> Source {
        Source { tarball: "x".into(), sha256: sha256.into(), version: "17.11".into() }
    }

    fn series(text: &str) -> Series {
        Series { patches: vec![Patch { name: "0001-x.patch".into(), text: text.into() }] }
    }

    #[test]
    fn another_source_or_patch_is_another_build() {
        let root = |sha256, series: &Series| {
            Tree::new(Path::new("/c"), "patched", &source(sha256), series).root
        };
        assert_eq!(root("a", &series("1")), root("a", &series("1")));
        assert_ne!(root("a", &series("1")), root("b", &series("1")));
        assert_ne!(root("a", &series("1")), root("a", &series("2")));
        assert_ne!(root("a", &series("1")), root("a", &Series::default()));
    }

    #[test]
    fn a_half_built_or_moved_tree_is_not_finished() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::new(dir.path(), "stock", &source("a"), &Series::default());
        fs::create_dir_all(tree.dirs().install).unwrap();
        assert!(!tree.is_finished());
        fs::write(tree.root.join("finished"), tree.stamp()).unwrap();
        assert!(tree.is_finished());

        let elsewhere = dir.path().join("moved");
        fs::create_dir(&elsewhere).unwrap();
        let moved = Tree::new(&elsewhere, "stock", &source("a"), &Series::default());
        fs::rename(&tree.root, &moved.root).unwrap();
        assert!(!moved.is_finished());
    }

    #[test]
    fn unused_builds_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let trees: Vec<Tree> = ["a", "b", "c", "d", "e"]
            .map(|sha256| Tree::new(dir.path(), "stock", &source(sha256), &Series::default()))
            .into();
        for (age, tree) in trees.iter().enumerate() {
            fs::create_dir_all(&tree.root).unwrap();
            // The last one is half built: it has no stamp and counts as the oldest.
            if age < 4 {
                fs::write(tree.root.join("finished"), tree.stamp()).unwrap();
                let used =
                    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(100 - age as u64);
                File::open(tree.root.join("finished")).unwrap().set_modified(used).unwrap();
            }
        }
        remove_old(dir.path(), &[&trees[3]]).unwrap();
        let left: Vec<bool> = trees.iter().map(|tree| tree.root.exists()).collect();
        assert_eq!(left, [true, true, false, true, false]);
    }

    #[test]
    fn the_lock_is_exclusive_and_ends_with_its_holder_and_his_children() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        let mut child = Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let other = File::open(dir.path().join("lock")).unwrap();
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        drop(held);
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        drop(child.stdin.take());
        child.wait().unwrap();
        // Programs that other tests have started meanwhile may hold it a little longer.
        other.lock().unwrap();
    }
}
