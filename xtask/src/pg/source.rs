//! The tarball with PostgreSQL's source.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::{MAJOR, apt, patches_dir};

/// The patches are made for this minor version and expected to apply to later ones.
const FIRST_MINOR: u32 = 11;

/// A tarball in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Where it is.
    pub tarball: PathBuf,
    /// Checksum of the tarball, in hexadecimal.
    pub sha256: String,
    /// `17.N`.
    pub version: String,
}

/// The source that was used last, if there is one. Trusts the checksum that was written when it was found.
pub fn current(cache: &Path) -> Result<Option<Source>> {
    let dir = cache.join("source");
    let text = match fs::read_to_string(dir.join("current")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error)
                .with_context(|| format!("could not read {}", dir.join("current").display()));
        }
    };
    let mut lines = text.lines().map(str::to_owned);
    let (Some(sha256), Some(version), Some(name)) = (lines.next(), lines.next(), lines.next())
    else {
        return Ok(None);
    };
    let tarball = dir.join(name);
    Ok(tarball.exists().then_some(Source { tarball, sha256, version }))
}

/// Finds the source: the given tarball, else what the cache has, else the distribution's source package.
pub fn find(cache: &Path, given: Option<&Path>) -> Result<Source> {
    if let Some(tarball) = given {
        return adopt(cache, tarball);
    }
    if let Some(source) = current(cache)? {
        let sha256 = checksum(&source.tarball)?;
        ensure!(
            sha256 == source.sha256,
            "{} is damaged: its sha256 is {sha256}, not {}; remove it",
            source.tarball.display(),
            source.sha256
        );
        return Ok(source);
    }
    // What a failed or killed run left is of no use, except for reading its logs.
    let dir = cache.join("download");
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("could not remove {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("could not create {}", dir.display()))?;
    let tarball = apt::check().and_then(|()| apt::download_postgres(&dir)).with_context(|| {
        format!(
            "could not get the source package postgresql-{MAJOR} (is there a network?); \
             with a tarball of PostgreSQL {MAJOR}.{FIRST_MINOR} or later at hand, run \
             `cargo xtask pg --pg-source TARBALL`"
        )
    })?;
    let source = adopt(cache, &tarball)?;
    fs::remove_dir_all(&dir)?;
    Ok(source)
}

/// Copies a tarball into the cache and makes it the current source.
fn adopt(cache: &Path, tarball: &Path) -> Result<Source> {
    let version = version(tarball)?;
    let sha256 = checksum(tarball)?;
    let name = tarball.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let dir = cache.join("source");
    fs::create_dir_all(&dir)?;
    let target = dir.join(&name);
    if !target.exists() || checksum(&target)? != sha256 {
        let temp = dir.join(format!("{name}.tmp"));
        fs::copy(tarball, &temp)
            .with_context(|| format!("could not copy {}", tarball.display()))?;
        File::open(&temp)?.sync_all()?;
        fs::rename(&temp, &target)?;
    }
    let temp = dir.join("current.tmp");
    fs::write(&temp, format!("{sha256}\n{version}\n{name}\n"))?;
    fs::rename(&temp, dir.join("current"))?;
    Ok(Source { tarball: target, sha256, version })
}

/// The version in the `configure` of a tarball; an error when it is not one that the patches are for.
fn version(tarball: &Path) -> Result<String> {
    ensure!(tarball.is_file(), "{} is not a file", tarball.display());
    let output = Command::new("tar")
        .args(["--extract", "--to-stdout", "--wildcards", "--no-wildcards-match-slash"])
        .arg("--file")
        .arg(tarball)
        .arg("*/configure")
        .output()
        .context("could not run `tar`")?;
    let configure = String::from_utf8_lossy(&output.stdout);
    let Some(version) = configure
        .lines()
        .find_map(|line| line.strip_prefix("PACKAGE_VERSION='")?.strip_suffix('\''))
        .filter(|_| configure.contains("PACKAGE_NAME='PostgreSQL'"))
    else {
        bail!(
            "{} does not look like a tarball of PostgreSQL's source: {}",
            tarball.display(),
            String::from_utf8_lossy(&output.stderr)
                .lines()
                .next()
                .unwrap_or("there is no configure in it")
        );
    };
    check_version(version)?;
    Ok(version.to_owned())
}

fn check_version(version: &str) -> Result<()> {
    let fits = version.split_once('.').is_some_and(|(major, minor)| {
        major.parse() == Ok(MAJOR) && minor.parse::<u32>().is_ok_and(|minor| minor >= FIRST_MINOR)
    });
    ensure!(
        fits,
        "this is PostgreSQL {version}, but the patches in {} are for {MAJOR}.{FIRST_MINOR} or a later {MAJOR}.x",
        patches_dir().display()
    );
    Ok(())
}

/// sha256 of a file in hexadecimal.
fn checksum(path: &Path) -> Result<String> {
    let mut file =
        File::open(path).with_context(|| format!("could not open {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file
            .read(&mut buffer)
            .with_context(|| format!("could not read {}", path.display()))?
        {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tarball(dir: &Path, configure: &str) -> PathBuf {
        let top = dir.join("postgresql-x");
        fs::create_dir_all(&top).unwrap();
        fs::write(top.join("configure"), configure).unwrap();
        let path = dir.join("pg.tar.gz");
        let status = Command::new("tar")
            .args(["--create", "--gzip", "--file"])
            .arg(&path)
            .arg("--directory")
            .arg(dir)
            .arg("postgresql-x")
            .status();
        assert!(status.unwrap().success());
        path
    }

    #[test]
    fn later_minors_are_taken_and_others_are_not() {
        for version in ["17.11", "17.12", "17.20"] {
            check_version(version).unwrap();
        }
        for version in ["17.10", "16.13", "18.1", "17", "17beta1", "17.x", ""] {
            let error = check_version(version).unwrap_err().to_string();
            assert!(error.contains("17.11"), "{error}");
        }
    }

    #[test]
    fn a_given_tarball_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        let path = tarball(
            dir.path(),
            "PACKAGE_NAME='PostgreSQL'\nPACKAGE_TARNAME='x'\nPACKAGE_VERSION='17.13'\n",
        );
        assert_eq!(current(&cache).unwrap(), None);
        let source = find(&cache, Some(&path)).unwrap();
        assert_eq!(source.version, "17.13");
        fs::remove_file(&path).unwrap();
        assert_eq!(current(&cache).unwrap(), Some(source.clone()));
        assert_eq!(find(&cache, None).unwrap(), source);

        fs::write(&source.tarball, "x").unwrap();
        let error = find(&cache, None).unwrap_err().to_string();
        assert!(error.contains("is damaged"), "{error}");
    }

    #[test]
    fn what_is_not_a_source_tarball_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let other = tarball(dir.path(), "PACKAGE_NAME='Other'\nPACKAGE_VERSION='17.13'\n");
        let text = dir.path().join("text");
        fs::write(&text, "text").unwrap();
        for path in [other, text, dir.path().join("missing")] {
            let error = find(dir.path(), Some(&path)).unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
        let old = tarball(dir.path(), "PACKAGE_NAME='PostgreSQL'\nPACKAGE_VERSION='17.4'\n");
        let error = find(dir.path(), Some(&old)).unwrap_err().to_string();
        assert!(error.contains("this is PostgreSQL 17.4"), "{error}");
    }
}
