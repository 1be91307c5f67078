//! The files of a stopped server: relations by fork, SLRU segments.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use pg_types::page::Page;
use pg_types::{BLCKSZ, ForkNumber, RelFileLocator, RelTag, SlruKind};

/// Forks of permanent relations with their segment files in order.
pub type Relations = BTreeMap<RelTag, Vec<PathBuf>>;

/// All relation forks below a data directory, but for free space maps (hints that are hardly ever logged),
/// temporary relations, and the other forks of unlogged relations, which WAL says nothing about.
pub fn relations(data: &Path) -> Relations {
    let mut found = BTreeMap::new();
    for (spc_oid, db_oid, path) in databases(data) {
        directory(&path, spc_oid, db_oid, &mut found);
    }
    let unlogged: BTreeSet<RelFileLocator> =
        found.keys().filter(|rel| rel.fork == ForkNumber::Init).map(|rel| rel.locator).collect();
    found.retain(|rel, _| is_compared(*rel, &unlogged));
    found
}

/// All database directories: tablespace, database, path.
pub fn databases(data: &Path) -> Vec<(u32, u32, PathBuf)> {
    let mut found = vec![(1664, 0, data.join("global"))];
    for (db_oid, path) in numbered(&data.join("base")) {
        found.push((1663, db_oid, path));
    }
    for (spc_oid, tablespace) in numbered(&data.join("pg_tblspc")) {
        for version in std::fs::read_dir(tablespace).unwrap() {
            for (db_oid, path) in numbered(&version.unwrap().path()) {
                found.push((spc_oid, db_oid, path));
            }
        }
    }
    found
}

/// Whether storage and files must agree on a fork.
pub fn is_compared(rel: RelTag, unlogged: &BTreeSet<RelFileLocator>) -> bool {
    match rel.fork {
        ForkNumber::Init => true,
        ForkNumber::Fsm => false,
        ForkNumber::Main | ForkNumber::Vm => !unlogged.contains(&rel.locator),
    }
}

fn numbered(dir: &Path) -> Vec<(u32, PathBuf)> {
    std::fs::read_dir(dir)
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.unwrap();
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path()))
        })
        .collect()
}

fn directory(dir: &Path, spc_oid: u32, db_oid: u32, found: &mut Relations) {
    let mut segments: BTreeMap<(RelTag, u32), PathBuf> = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if let Some((rel_number, fork, segment)) = parse_name(&name) {
            let rel = RelFileLocator { spc_oid, db_oid, rel_number }.fork(fork);
            segments.insert((rel, segment), entry.path());
        }
    }
    for ((rel, _), path) in segments {
        found.entry(rel).or_default().push(path);
    }
}

/// `16384`, `16384.1`, `16384_vm`; temporary relations begin with a `t`.
fn parse_name(name: &str) -> Option<(u32, ForkNumber, u32)> {
    let (name, segment) = match name.split_once('.') {
        Some((name, segment)) => (name, segment.parse().ok()?),
        None => (name, 0),
    };
    let (number, fork) = match name.split_once('_') {
        None => (name, ForkNumber::Main),
        Some((number, "fsm")) => (number, ForkNumber::Fsm),
        Some((number, "vm")) => (number, ForkNumber::Vm),
        Some((number, "init")) => (number, ForkNumber::Init),
        Some(_) => return None,
    };
    Some((number.parse().ok()?, fork, segment))
}

/// The pages of files, one after the other.
pub fn pages(paths: &[PathBuf]) -> Vec<Page> {
    let mut pages = Vec::new();
    for path in paths {
        let bytes = std::fs::read(path).unwrap();
        let (whole, rest) = bytes.as_chunks::<BLCKSZ>();
        assert!(rest.is_empty(), "{} has a piece of a page", path.display());
        pages.extend_from_slice(whole);
    }
    pages
}

/// Segments of an SLRU: number and pages.
pub fn slru(data: &Path, kind: SlruKind) -> BTreeMap<u32, Vec<Page>> {
    std::fs::read_dir(data.join(kind.directory()))
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.unwrap();
            let segno = u32::from_str_radix(entry.file_name().to_str()?, 16).ok()?;
            Some((segno, pages(&[entry.path()])))
        })
        .collect()
}
