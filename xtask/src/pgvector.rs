//! A foreign extension for the tests: pgvector, compiled against the unpatched PostgreSQL and put beside our own
//! extensions in an installation of its own.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use pg_launch::PgInstall;

use crate::build::{Built, ExtensionDirs, link_tree, replace};
use crate::pg;
use crate::run::{check, step};

/// The distribution's source package.
const PACKAGE: &str = "pgvector";

/// An installation like the compute's, with pgvector. Made once for each compute installation.
pub fn install(built: &Built) -> Result<PgInstall> {
    let compiled = compiled(built)?;
    let name = built.compute.root().file_name().context("an installation has a name")?;
    let parent = pg_launch::cache_dir().join("compute-pgvector");
    let target = parent.join(name);
    if PgInstall::new(&target).is_err() {
        // What stands here belongs to installations that are gone.
        if parent.exists() {
            fs::remove_dir_all(&parent)?;
        }
        let temp = parent.join("tmp");
        link_tree(built.compute.root(), &temp)?;
        let dirs = ExtensionDirs::of(&built.pg.patched.install)?;
        for (from, to) in [("lib", &dirs.lib), ("extension", &dirs.share)] {
            for entry in fs::read_dir(compiled.join(from))? {
                let entry = entry?;
                replace(&entry.path(), &temp.join(to).join(entry.file_name()))?;
            }
        }
        fs::rename(&temp, &target)?;
    }
    Ok(PgInstall::new(target)?)
}

/// A folder with `lib/vector.so` and `extension/vector*`, cached for each unpatched build.
fn compiled(built: &Built) -> Result<std::path::PathBuf> {
    let key = built.pg.stock.install.parent().and_then(Path::file_name);
    let key = key.context("a build has a name")?;
    let parent = pg_launch::cache_dir().join(PACKAGE);
    let target = parent.join(key);
    if target.join("lib/vector.so").exists() {
        return Ok(target);
    }
    step("compile pgvector against the unpatched PostgreSQL", || {
        fs::create_dir_all(&parent)?;
        let work = tempfile::Builder::new().prefix("work-").tempdir_in(&parent)?;
        let tarball = pg::download_package(work.path(), PACKAGE)?;
        let source = work.path().join("source");
        fs::create_dir(&source)?;
        check(
            Command::new("tar")
                .args(["--extract", "--strip-components=1", "--file"])
                .arg(&tarball)
                .arg("--directory")
                .arg(&source),
        )?;
        let staging = work.path().join("staging");
        let log = fs::File::create(work.path().join("make.log"))?;
        let pg_config = built.pg.stock.install.join("bin/pg_config");
        for goal in ["all", "install"] {
            let mut make = Command::new("make");
            make.current_dir(&source).arg("OPTFLAGS=").arg(goal);
            make.arg(format!("PG_CONFIG={}", pg_config.display()));
            make.arg(format!("DESTDIR={}", staging.display()));
            make.stdout(log.try_clone()?).stderr(log.try_clone()?);
            if !make.status()?.success() {
                bail!("{}", fs::read_to_string(work.path().join("make.log"))?);
            }
        }
        let result = work.path().join("result");
        collect(&staging, &result)?;
        Ok(fs::rename(&result, &target)?)
    })?;
    Ok(target)
}

/// Sorts what `make install` made into `lib` and `extension`.
fn collect(staging: &Path, result: &Path) -> Result<()> {
    for name in ["lib", "extension"] {
        fs::create_dir_all(result.join(name))?;
    }
    let mut directories = vec![staging.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                directories.push(path);
            } else if name == "vector.so" {
                fs::copy(&path, result.join("lib").join(name))?;
            } else if name.starts_with("vector") && !name.ends_with(".h") {
                fs::copy(&path, result.join("extension").join(name))?;
            }
        }
    }
    Ok(())
}
