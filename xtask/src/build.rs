//! Building our own programs and joining the extensions with the patched PostgreSQL.
//!
//! The patched build in the cache is shared by all checkouts, so nothing is installed into it. Each set of
//! extensions gets an installation of its own beside it: hard links to the patched build (PostgreSQL finds its
//! files relative to its programs) and the extensions, named by a hash of their bytes.

use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result};
use pg_launch::PgInstall;

use crate::pg::{self, PgBuilds};
use crate::run::{capture, cargo, check, root, step};

/// Installations with extensions that are kept; older ones are removed.
const KEPT_INSTALLS: usize = 4;

/// Everything that a demo, a test or a benchmark runs.
#[derive(Debug)]
pub struct Built {
    /// Builds of PostgreSQL.
    pub pg: PgBuilds,
    /// Patched PostgreSQL with our extensions.
    pub compute: PgInstall,
    /// Unpatched PostgreSQL.
    pub stock: PgInstall,
    /// The `neon` binary.
    pub neon: PathBuf,
}

/// Builds everything that is out of date.
pub fn everything() -> Result<Built> {
    let pg = pg::ensure(&pg::Options::default())?;
    pg_launch::ensure_system_user()?;
    step("build the servers and the command line", || {
        check(&mut cargo(&["build", "--release", "--package", "neon_cli"]))
    })?;
    let compute = extensions(&pg)?;
    let stock = PgInstall::new(&pg.stock.install)?;
    let neon = target_dir().join("release/neon");
    Ok(Built { pg, compute, stock, neon })
}

/// Where cargo puts what it builds.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A cargo command for the crates that need PostgreSQL's headers.
pub fn cargo_with_postgres(pg: &PgBuilds, args: &[&str]) -> Command {
    let mut command = cargo(args);
    command.env("PGRX_PG_CONFIG_PATH", pg.patched.install.join("bin/pg_config"));
    command
}

fn extensions(pg: &PgBuilds) -> Result<PgInstall> {
    step("build the extensions", || {
        check(&mut cargo_with_postgres(
            pg,
            &["build", "--release", "--package", "neon_ext", "--package", "neon_rmgr"],
        ))
    })?;
    let release = target_dir().join("release");
    let files = [
        (release.join("libneon.so"), "neon.so"),
        (release.join("libneon_rmgr.so"), "neon_rmgr.so"),
    ];
    let sql = sql_files()?;
    let mut hasher = DefaultHasher::new();
    hasher.write(pg.patched.install.as_os_str().as_encoded_bytes());
    for path in files.iter().map(|(path, _)| path).chain(&sql) {
        hasher.write(path.file_name().unwrap_or_default().as_encoded_bytes());
        hasher.write(&fs::read(path).with_context(|| format!("{}", path.display()))?);
    }
    let parent = pg_launch::cache_dir().join("compute");
    let target = parent.join(format!("{:016x}", hasher.finish()));
    if PgInstall::new(&target).is_err() {
        let temp = parent.join(format!("tmp-{}", std::process::id()));
        link_tree(&pg.patched.install, &temp)?;
        let dirs = ExtensionDirs::of(&pg.patched.install)?;
        for (path, name) in &files {
            replace(path, &temp.join(&dirs.lib).join(name))?;
        }
        for path in &sql {
            replace(path, &temp.join(&dirs.share).join(path.file_name().unwrap_or_default()))?;
        }
        match fs::rename(&temp, &target) {
            // Another run was faster.
            Err(_) if target.exists() => fs::remove_dir_all(&temp)?,
            result => result?,
        }
    }
    fs::File::open(&target)?.set_modified(SystemTime::now())?;
    remove_old(&parent, &target)?;
    let pointer = pg_launch::cache_dir().join("current-install");
    fs::write(&pointer, format!("{}\n", target.display()))?;
    Ok(PgInstall::new(target)?)
}

/// Where an installation has libraries and extension scripts, below its root. PostgreSQL's `configure` adds a
/// folder of its own name unless the prefix has it, so only `pg_config` knows.
pub struct ExtensionDirs {
    pub lib: PathBuf,
    pub share: PathBuf,
}

impl ExtensionDirs {
    /// As `pg_config` of the installation says.
    pub fn of(install: &Path) -> Result<ExtensionDirs> {
        let ask = |option: &str| -> Result<PathBuf> {
            let text = capture(Command::new(install.join("bin/pg_config")).arg(option))?;
            let path = Path::new(text.trim());
            let below = path.strip_prefix(install.canonicalize()?);
            Ok(below.with_context(|| format!("{} is elsewhere", path.display()))?.to_owned())
        };
        Ok(ExtensionDirs { lib: ask("--pkglibdir")?, share: ask("--sharedir")?.join("extension") })
    }
}

fn sql_files() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(root().join("sql"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ext| ext == "sql" || ext == "control") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Copies a tree with hard links.
pub fn link_tree(source: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("create {}", target.display()))?;
    for entry in fs::read_dir(source).with_context(|| format!("read {}", source.display()))? {
        let entry = entry?;
        let (from, to) = (entry.path(), target.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            link_tree(&from, &to)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&from)?, &to)?;
        } else {
            fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop))?;
        }
    }
    Ok(())
}

/// Puts a file in place of what may be a hard link: the link is removed, never written through.
pub fn replace(from: &Path, to: &Path) -> Result<()> {
    match fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
    Ok(())
}

fn remove_old(parent: &Path, current: &Path) -> Result<()> {
    let mut all = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        all.push((entry.metadata()?.modified()?, entry.path()));
    }
    all.sort();
    all.reverse();
    for (_, path) in all.into_iter().skip(KEPT_INSTALLS) {
        if path != current {
            fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}
