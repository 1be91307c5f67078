//! The template of a version: the few files of a cluster that a redo process starts from. Taken from the first cluster that
//! is made anyway for a timeline, or else made by `initdb`, once for each installation of PostgreSQL; and kept over restarts
//! of the page server, since a reader that needs redo right after one would otherwise wait for `initdb`.
//!
//! ```text
//! <work dir>/wal-redo-template.v17.SIZE.MTIME         of bin/postgres: another installation gets another template
//! ```
//!
//! It appears under its name when it is whole. It is not synced: a file with the checksum of the others tells one that a
//! crash of the machine damaged, which is made anew.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use pg_launch::{PgInstall, SystemUser};

use crate::datadir::{DATADIR_PREFIX, PrivateDir};
use crate::initdb::run_initdb;

const TEMPLATE_PREFIX: &str = "wal-redo-template.";
/// In the template: what the other files must add up to.
const CHECKSUM_FILE: &str = "crc32c";
const INITDB_PREFIX: &str = "wal-redo-initdb.";

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

/// See the module.
#[derive(Debug)]
pub struct Template {
    dir: PathBuf,
}

impl Template {
    /// The template of an installation below `parent`; made by initdb if there is none, which takes about a second.
    /// Called by one thread at a time.
    ///
    /// # Errors
    /// What initdb says, or the file system.
    pub fn open_or_create(
        install: &PgInstall,
        version: u32,
        parent: &Path,
        user: Option<&SystemUser>,
    ) -> io::Result<Template> {
        let (family, dir) = place(install, version, parent)?;
        if !is_whole(&dir) {
            remove_others(parent, &family)?;
            create(install, version, &dir, user)?;
        }
        Ok(Template { dir })
    }

    /// The same, from a cluster that `initdb` of this installation has just made; its files stay as they are.
    ///
    /// # Errors
    /// Of the file system.
    pub fn open_or_copy(
        install: &PgInstall,
        version: u32,
        parent: &Path,
        cluster: &Path,
    ) -> io::Result<Template> {
        let (family, dir) = place(install, version, parent)?;
        if !is_whole(&dir) {
            remove_others(parent, &family)?;
            let scratch = PrivateDir::create(parent, &format!("{INITDB_PREFIX}v{version}."), None)?;
            assemble(scratch.path(), &dir, |name, to| fs::copy(cluster.join(name), to).map(drop))?;
        }
        Ok(Template { dir })
    }

    /// A new data directory in `tenant_dir`.
    ///
    /// # Errors
    /// Of the file system.
    pub fn instantiate(
        &self,
        tenant_dir: &Path,
        user: Option<&SystemUser>,
    ) -> io::Result<PrivateDir> {
        let dir = PrivateDir::create(tenant_dir, DATADIR_PREFIX, user)?;
        for name in DIRECTORIES {
            fs::DirBuilder::new().mode(0o700).create(dir.path().join(name))?;
        }
        for name in FILES {
            fs::copy(self.dir.join(name), dir.path().join(name))?;
        }
        if let Some(user) = user {
            user.give(dir.path()).map_err(io::Error::other)?;
        }
        Ok(dir)
    }
}

/// How names of templates of the version begin, and the directory for this installation's.
fn place(install: &PgInstall, version: u32, parent: &Path) -> io::Result<(String, PathBuf)> {
    let program = install.program("postgres");
    let program = fs::metadata(&program).map_err(|error| {
        let text = format!("could not look at {}: {error}", program.display());
        io::Error::new(error.kind(), text)
    })?;
    let family = format!("{TEMPLATE_PREFIX}v{version}.");
    let (size, seconds, nanos) = (program.size(), program.mtime(), program.mtime_nsec());
    let dir = parent.join(format!("{family}{size}.{seconds}-{nanos}"));
    Ok((family, dir))
}

fn is_whole(dir: &Path) -> bool {
    let checksum = fs::read_to_string(dir.join(CHECKSUM_FILE));
    checksum.is_ok_and(|text| checksum_of(dir).is_ok_and(|found| text == found))
}

/// CRC-32C of the settings, so that others make another template, and of the files, in their order.
fn checksum_of(dir: &Path) -> io::Result<String> {
    let add = |crc, name: &&str| Ok(crc32c::crc32c_append(crc, &fs::read(dir.join(name))?));
    FILES
        .iter()
        .try_fold(crc32c::crc32c(CONFIG.as_bytes()), add)
        .map(|crc: u32| format!("{crc:08x}\n"))
}

/// Templates of other installations, and what is left of one that was being removed.
fn remove_others(parent: &Path, family: &str) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(family) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Runs initdb in a temporary directory, and moves the few files out of it.
fn create(
    install: &PgInstall,
    version: u32,
    target: &Path,
    user: Option<&SystemUser>,
) -> io::Result<()> {
    let parent = target.parent().unwrap_or(target);
    let cluster = PrivateDir::create(parent, &format!("{INITDB_PREFIX}v{version}."), user)?;
    run_initdb(install, cluster.path(), user)?;
    assemble(cluster.path(), target, |name, to| fs::rename(cluster.path().join(name), to))
}

/// Makes the template in a temporary directory, so that what a kill leaves here goes with that, and puts it in place.
fn assemble(
    scratch: &Path,
    target: &Path,
    bring: impl Fn(&str, &Path) -> io::Result<()>,
) -> io::Result<()> {
    let whole = scratch.join("template");
    fs::create_dir_all(whole.join("global"))?;
    for name in FILES {
        bring(name, &whole.join(name))?;
    }
    let config = whole.join("postgresql.conf");
    let mut text = fs::read(&config)?;
    text.extend_from_slice(CONFIG.as_bytes());
    fs::write(&config, text)?;
    fs::write(whole.join(CHECKSUM_FILE), checksum_of(&whole)?)?;
    fs::rename(whole, target)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An installation whose initdb makes the four files, and says so in a file beside it.
    fn installation(root: &Path) -> PgInstall {
        let script = |name: &str, text: &str| {
            test_programs::write_program(&root.join("bin").join(name), text).unwrap();
        };
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::create_dir_all(root.join("lib")).unwrap();
        script("postgres", "exit 1");
        script(
            "initdb",
            &format!(
                "echo run >> {}; mkdir $2/global; touch $2/PG_VERSION $2/postgresql.conf \
             $2/postgresql.auto.conf $2/global/pg_control",
                root.join("runs").display()
            ),
        );
        PgInstall::new(root.to_owned()).unwrap()
    }

    fn runs(root: &Path) -> usize {
        fs::read_to_string(root.join("runs")).map_or(0, |text| text.lines().count())
    }

    #[test]
    fn is_made_once_for_each_installation() {
        let (root, work, tenant) = (
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
        );
        let install = installation(root.path());
        let open = || Template::open_or_create(&install, 17, work.path(), None).unwrap();
        open();
        let template = open();
        assert_eq!(runs(root.path()), 1);
        assert_eq!(fs::read_dir(work.path()).unwrap().count(), 1, "initdb's directory is gone");
        let data = template.instantiate(tenant.path(), None).unwrap();
        assert_eq!(fs::read_to_string(data.path().join("postgresql.conf")).unwrap(), CONFIG);
        // One that is damaged, and one that lacks a file.
        fs::write(template.dir.join("PG_VERSION"), "1").unwrap();
        fs::remove_file(open().dir.join("global/pg_control")).unwrap();
        open();
        assert_eq!(runs(root.path()), 3);
        // Another installation.
        fs::write(root.path().join("bin/postgres"), "another").unwrap();
        open();
        assert_eq!(runs(root.path()), 4);
        assert_eq!(fs::read_dir(work.path()).unwrap().count(), 1, "the old one is gone");
    }

    #[test]
    fn a_cluster_that_is_there_saves_initdb() {
        let (root, work, cluster) = (
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
        );
        let install = installation(root.path());
        fs::create_dir(cluster.path().join("global")).unwrap();
        for name in FILES {
            fs::write(cluster.path().join(name), name).unwrap();
        }
        for _ in 0..2 {
            Template::open_or_copy(&install, 17, work.path(), cluster.path()).unwrap();
        }
        let template = Template::open_or_create(&install, 17, work.path(), None).unwrap();
        assert_eq!(runs(root.path()), 0);
        assert_eq!(fs::read_dir(work.path()).unwrap().count(), 1);
        let config = fs::read_to_string(template.dir.join("postgresql.conf")).unwrap();
        assert_eq!(config, format!("postgresql.conf{CONFIG}"));
        let untouched = fs::read_to_string(cluster.path().join("postgresql.conf")).unwrap();
        assert_eq!(untouched, "postgresql.conf");
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
