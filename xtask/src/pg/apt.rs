//! Source packages of the distribution, without touching the machine's configuration.
//!
//! apt verifies what it gets against the keys of the distribution. It works here on private folders and on a
//! list of one line that is derived from the machine's own sources: same archive, same keys, but sources
//! instead of programs and, if need be, a newer suite.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::{MAJOR, progress};

/// The Debian suite that carries the wanted major version; older and newer machines find it beside their own.
const DEBIAN_SUITE: &str = "trixie";

/// The release that the patches were made and tested for, where the archive keeps it, and the sha256 of its tarball,
/// as in the package's signed description.
const PINNED_FILE: &str = "postgresql-17_17.11.orig.tar.bz2";
const PINNED_SHA256: &str = "dd27f2b3c59e73ed14aa3324901242bf69a032a6347805f274e6260322d42979";
/// Folders of an archive: of releases, and of security updates.
const POOLS: [&str; 2] = ["pool/main/p/postgresql-17", "pool/updates/main/p/postgresql-17"];
/// apt's own means to get one file and check its sum.
const APT_HELPER: &str = "/usr/lib/apt/apt-helper";

/// A place that apt gets packages from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Archive {
    uri: String,
    /// File or fingerprints; none: the keys that apt always trusts.
    signed_by: Option<String>,
    suites: Vec<String>,
}

/// Downloads PostgreSQL's source into `dir`, and returns the tarball.
///
/// First the pinned release, so that machines build the same; archives drop old releases, so then the newest one
/// that the archive's index names. Either alone has failed: an index can be ahead of the files of its archive.
pub fn download_postgres(dir: &Path) -> Result<PathBuf> {
    let (_, codename) = os_release(&fs::read_to_string("/etc/os-release").unwrap_or_default());
    match download_pinned(dir, &archives_of(&codename, archives())) {
        Ok(tarball) => Ok(tarball),
        Err(error) => {
            eprintln!("    {error:#}; looking for the newest release instead");
            download(dir, &format!("postgresql-{MAJOR}"))
        }
    }
}

/// The pinned release from the first archive that still has it.
fn download_pinned(dir: &Path, archives: &[Archive]) -> Result<PathBuf> {
    let tarball = dir.join(PINNED_FILE);
    let mut uris: Vec<&str> = archives.iter().map(|archive| archive.uri.as_str()).collect();
    uris.dedup();
    for uri in pinned_uris(&uris) {
        let mut get = Command::new(APT_HELPER);
        get.args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2", "download-file"]);
        get.arg(&uri).arg(&tarball).arg(format!("SHA256:{PINNED_SHA256}"));
        let log = dir.join("pinned.log");
        if progress::run(format!("get {PINNED_FILE}"), get, &log).is_ok() && tarball.exists() {
            return Ok(tarball);
        }
    }
    bail!("no archive of this machine has {PINNED_FILE}");
}

/// The distribution's own archives: of this machine's release, and of its security updates.
fn archives_of(codename: &str, mut archives: Vec<Archive>) -> Vec<Archive> {
    let security = format!("{codename}-security");
    archives.retain(|archive| {
        archive.suites.iter().any(|suite| *suite == codename || *suite == security)
    });
    archives
}

/// Where the pinned file could be.
fn pinned_uris(archives: &[&str]) -> Vec<String> {
    let at = |pool: &'static str| {
        archives
            .iter()
            .map(move |uri| format!("{}/{pool}/{PINNED_FILE}", uri.trim_end_matches('/')))
    };
    POOLS.into_iter().flat_map(at).collect()
}

/// Downloads a source package, the newest that the index of the distribution's sources names, into `dir`, and returns the
/// tarball with the upstream source.
pub fn download(dir: &Path, package: &str) -> Result<PathBuf> {
    let (id, codename) = os_release(&fs::read_to_string("/etc/os-release").unwrap_or_default());
    let archive = archives()
        .into_iter()
        .find(|archive| archive.suites.contains(&codename))
        .with_context(|| format!("no source of packages for \"{codename}\" in /etc/apt"))?;
    let suite = if id == "debian" { DEBIAN_SUITE } else { codename.as_str() };
    let signed_by =
        archive.signed_by.as_ref().map(|keys| format!("[signed-by={keys}] ")).unwrap_or_default();
    let list = dir.join("sources.list");
    fs::write(&list, format!("deb-src {signed_by}{} {suite} main\n", archive.uri))?;
    for private in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(dir.join(private))?;
    }
    let apt_get = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.current_dir(dir);
        for (key, value) in [
            ("Dir::Etc::sourcelist", list.display().to_string()),
            ("Dir::Etc::sourceparts", "-".to_owned()),
            ("Dir::State::Lists", dir.join("lists").display().to_string()),
            ("Dir::Cache", dir.join("cache").display().to_string()),
            ("APT::Sandbox::User", "root".to_owned()),
            ("APT::Update::Error-Mode", "any".to_owned()),
            ("Acquire::Retries", "2".to_owned()),
        ] {
            command.arg("-o").arg(format!("{key}={value}"));
        }
        command.args(args);
        command
    };
    progress::run(
        format!("read the list of source packages of {suite}"),
        apt_get(&["update"]),
        &dir.join("update.log"),
    )?;
    let get = apt_get(&["source", "--download-only", package]);
    progress::run(format!("get the source package {package}"), get, &dir.join("source.log"))?;
    tarball_in(dir)
}

/// The upstream tarball among the files of a source package.
fn tarball_in(dir: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.contains(".orig.tar.") && !name.ends_with(".asc") {
            return Ok(path);
        }
    }
    bail!("the source package has no file *.orig.tar.*");
}

/// `ID` and `VERSION_CODENAME` of os-release(5).
fn os_release(text: &str) -> (String, String) {
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches('"').to_owned()
    };
    (value("ID"), value("VERSION_CODENAME"))
}

/// What apt is configured with, in the order of file names.
fn archives() -> Vec<Archive> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let mut parts: Vec<PathBuf> = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    parts.sort();
    files.extend(parts);
    let mut archives = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap_or_default();
        if file.extension().is_some_and(|ext| ext == "sources") {
            archives.extend(parse_deb822(&text));
        } else {
            archives.extend(text.lines().filter_map(parse_one_line));
        }
    }
    archives
}

/// `deb [option=value …] URI SUITE COMPONENT …` of sources.list(5).
fn parse_one_line(line: &str) -> Option<Archive> {
    let line = line.split('#').next()?.trim().strip_prefix("deb ")?.trim();
    let (options, rest) = match line.strip_prefix('[') {
        Some(line) => line.split_once(']')?,
        None => ("", line),
    };
    let signed_by = options
        .split_whitespace()
        .find_map(|option| option.strip_prefix("signed-by="))
        .map(str::to_owned);
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Archive { uri: words.next()?, suites: vec![words.next()?], signed_by })
}

/// Paragraphs of `Key: value` lines of sources.list(5). Keys written into the paragraph are left out: apt then
/// uses those it always trusts.
fn parse_deb822(text: &str) -> Vec<Archive> {
    let mut archives = Vec::new();
    for paragraph in text.split("\n\n") {
        let value = |key: &str| {
            paragraph.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case(key).then(|| value.trim().to_owned())
            })
        };
        let enabled = value("Enabled").is_none_or(|value| !value.eq_ignore_ascii_case("no"));
        let suites: Vec<_> =
            value("Suites").unwrap_or_default().split_whitespace().map(str::to_owned).collect();
        let signed_by = value("Signed-By").filter(|keys| keys.starts_with('/'));
        if !enabled
            || !value("Types").unwrap_or_default().split_whitespace().any(|kind| kind == "deb")
        {
            continue;
        }
        for uri in value("URIs").unwrap_or_default().split_whitespace() {
            archives.push(Archive {
                uri: uri.to_owned(),
                signed_by: signed_by.clone(),
                suites: suites.clone(),
            });
        }
    }
    archives
}

/// Whether this machine has apt at all.
pub fn check() -> Result<()> {
    let found =
        Command::new("apt-get").arg("--version").output().is_ok_and(|out| out.status.success());
    ensure!(found, "there is no apt-get on this machine");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(uri: &str, signed_by: Option<&str>, suites: &[&str]) -> Archive {
        let suites = suites.iter().map(|&suite| suite.to_owned()).collect();
        Archive { uri: uri.to_owned(), signed_by: signed_by.map(str::to_owned), suites }
    }

    #[test]
    fn one_line_sources() {
        assert_eq!(
            parse_one_line(
                "deb [arch=amd64 signed-by=/k.gpg] http://a/dist bookworm main contrib # x"
            ),
            Some(archive("http://a/dist", Some("/k.gpg"), &["bookworm"]))
        );
        assert_eq!(parse_one_line("deb http://a b main"), Some(archive("http://a", None, &["b"])));
        assert_eq!(parse_one_line("# deb http://a b main"), None);
        assert_eq!(parse_one_line("deb-src http://a b main"), None);
        assert_eq!(parse_one_line("deb [x http://a"), None);
    }

    #[test]
    fn deb822_sources() {
        let text = "Types: deb\n# a comment: here\nURIs: http://a/dist http://b/dist\nSuites: s s-updates\n\
                    Components: main\nSigned-By: /k.gpg\n\nTypes: deb-src\nURIs: http://c\nSuites: s\n\n\
                    types: deb\nuris: http://d\nsuites: t\nEnabled: no\n\nTypes: deb\nURIs: http://e\nSuites: t\n\
                    Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n";
        assert_eq!(
            parse_deb822(text),
            [
                archive("http://a/dist", Some("/k.gpg"), &["s", "s-updates"]),
                archive("http://b/dist", Some("/k.gpg"), &["s", "s-updates"]),
                archive("http://e", None, &["t"]),
            ]
        );
    }

    #[test]
    fn the_pinned_release_is_looked_for_in_every_pool() {
        let uris = pinned_uris(&["first/", "second"]);
        assert_eq!(uris.len(), 4);
        assert_eq!(uris[0], format!("first/pool/main/p/postgresql-17/{PINNED_FILE}"));
        assert_eq!(uris[3], format!("second/pool/updates/main/p/postgresql-17/{PINNED_FILE}"));
        let all = ["s", "s-security", "other"].map(|suite| archive(suite, None, &[suite]));
        let ours = archives_of("s", all.to_vec());
        assert_eq!(ours, all[..2]);
    }

    #[test]
    fn os_release_values() {
        let text =
            "PRETTY_NAME=\"D\"\nVERSION_ID=\"12\"\nID=debian\nVERSION_CODENAME=\"bookworm\"\n";
        assert_eq!(os_release(text), ("debian".to_owned(), "bookworm".to_owned()));
        assert_eq!(os_release(""), (String::new(), String::new()));
    }
}
