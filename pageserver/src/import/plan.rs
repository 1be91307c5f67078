//! What there is to import, in the order of keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pg_types::relation::{DEFAULTTABLESPACE_OID, GLOBALTABLESPACE_OID};
use pg_types::{BLCKSZ, ForkNumber, Oid, RelFileLocator, RelTag, SlruKind, slru};

use super::{ImportError, files};
use crate::control_file::{CATALOG_VERSION_NO, RELSEG_SIZE};

/// Everything to import.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// By tablespace, then database.
    pub(super) databases: Vec<Database>,
    /// By kind, then number.
    pub(super) slru_segments: Vec<(SlruKind, u32, PathBuf)>,
    /// By full transaction id.
    pub(super) two_phase: Vec<(u64, PathBuf)>,
}

/// A directory of relations.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) spc_oid: Oid,
    pub(super) db_oid: Oid,
    pub(super) relmap: Option<PathBuf>,
    /// By relation, then fork.
    pub(super) forks: Vec<ForkFiles>,
}

/// A relation fork and its files, in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ForkFiles {
    pub(super) rel: RelTag,
    pub(super) segments: Vec<PathBuf>,
}

/// Lists a data directory.
pub(super) fn list(data_dir: &Path) -> Result<Contents, ImportError> {
    let mut databases = BTreeMap::new();
    databases.insert((GLOBALTABLESPACE_OID, 0), data_dir.join("global"));
    add_databases(DEFAULTTABLESPACE_OID, &data_dir.join("base"), &mut databases)?;
    for (name, path) in files::list(&data_dir.join("pg_tblspc"))? {
        if let Some(spc_oid) = parse_oid(&name) {
            let version_dir = path.join(format!("PG_17_{CATALOG_VERSION_NO}"));
            add_databases(spc_oid, &version_dir, &mut databases)?;
        }
    }
    let databases = databases
        .into_iter()
        .map(|((spc_oid, db_oid), path)| list_database(spc_oid, db_oid, &path))
        .collect::<Result<_, _>>()?;
    let mut slru_segments = Vec::new();
    for kind in SlruKind::ALL {
        slru_segments.extend(list_slru(kind, &data_dir.join(kind.directory()))?);
    }
    let mut two_phase: Vec<_> = files::list(&data_dir.join("pg_twophase"))?
        .into_iter()
        .filter_map(|(name, path)| Some((parse_hex(&name, 16)?, path)))
        .collect();
    two_phase.sort();
    Ok(Contents { databases, slru_segments, two_phase })
}

fn add_databases(
    spc_oid: Oid,
    path: &Path,
    into: &mut BTreeMap<(Oid, Oid), PathBuf>,
) -> Result<(), ImportError> {
    let found = files::list(path)?;
    into.extend(
        found.into_iter().filter_map(|(name, path)| Some(((spc_oid, parse_oid(&name)?), path))),
    );
    Ok(())
}

fn list_database(spc_oid: Oid, db_oid: Oid, path: &Path) -> Result<Database, ImportError> {
    let mut relmap = None;
    let mut segments: BTreeMap<RelTag, BTreeMap<u32, PathBuf>> = BTreeMap::new();
    for (name, path) in files::list(path)? {
        if name == "pg_filenode.map" {
            relmap = Some(path);
        } else if let Some((rel_number, fork, segno)) = parse_relation_file(&name) {
            let rel = RelFileLocator { spc_oid, db_oid, rel_number }.fork(fork);
            segments.entry(rel).or_default().insert(segno, path);
        }
    }
    let unlogged = |rel: &RelTag| segments.contains_key(&rel.locator.fork(ForkNumber::Init));
    let forks = segments
        .iter()
        .filter(|(rel, _)| rel.fork == ForkNumber::Init || !unlogged(rel))
        .map(|(rel, segments)| Ok(ForkFiles { rel: *rel, segments: in_use(segments)? }))
        .collect::<Result<_, ImportError>>()?;
    Ok(Database { spc_oid, db_oid, relmap, forks })
}

/// The segments that count: up to the first that is missing or not full (`mdnblocks`).
fn in_use(segments: &BTreeMap<u32, PathBuf>) -> Result<Vec<PathBuf>, ImportError> {
    let full = u64::from(RELSEG_SIZE) * BLCKSZ as u64;
    let mut used = Vec::new();
    for (path, (segno, _)) in segments.values().zip(segments.iter()) {
        if usize::try_from(*segno) != Ok(used.len()) {
            break;
        }
        let metadata = std::fs::metadata(path);
        let len = metadata.map_err(|error| ImportError::io("inspect", path, error))?.len();
        used.push(path.clone());
        if len > full {
            return Err(ImportError::damaged(path, "longer than a segment"));
        }
        if len < full {
            break;
        }
    }
    Ok(used)
}

fn list_slru(kind: SlruKind, path: &Path) -> Result<Vec<(SlruKind, u32, PathBuf)>, ImportError> {
    let mut segments = Vec::new();
    for (name, path) in files::list(path)? {
        let number = u32::from_str_radix(&name, 16).ok();
        let Some(segno) = number.filter(|segno| slru::segment_file_name(*segno) == name) else {
            continue;
        };
        let metadata = std::fs::metadata(&path);
        let len = metadata.map_err(|error| ImportError::io("inspect", &path, error))?.len();
        if len > u64::from(slru::SLRU_PAGES_PER_SEGMENT) * BLCKSZ as u64 {
            return Err(ImportError::damaged(&path, "longer than a segment"));
        }
        segments.push((kind, segno, path));
    }
    segments.sort_by_key(|(_, segno, _)| *segno);
    Ok(segments)
}

/// `<relation>[_<fork>][.<segment>]` (`parse_filename_for_nontemp_relation` in `reinit.c`); `None` for anything
/// else: temporary relations, caches, version files.
fn parse_relation_file(name: &str) -> Option<(Oid, ForkNumber, u32)> {
    let (rest, segno) = match name.split_once('.') {
        Some((rest, segno)) => (rest, parse_oid(segno)?),
        None => (name, 0),
    };
    let fork = ForkNumber::ALL
        .into_iter()
        .rev()
        .find(|fork| rest.ends_with(fork.file_suffix()))
        .unwrap_or(ForkNumber::Main);
    Some((parse_oid(rest.strip_suffix(fork.file_suffix())?)?, fork, segno))
}

/// A number as Postgres writes it: digits, no leading zero, not 0.
fn parse_oid(text: &str) -> Option<Oid> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| plain)
}

fn parse_hex(text: &str, digits: usize) -> Option<u64> {
    let plain = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u64::from_str_radix(text, 16).ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_relation_files_from_others() {
        let cases = [
            ("16384", Some((16384, ForkNumber::Main, 0))),
            ("16384.1", Some((16384, ForkNumber::Main, 1))),
            ("16384_fsm", Some((16384, ForkNumber::Fsm, 0))),
            ("16384_vm.2", Some((16384, ForkNumber::Vm, 2))),
            ("16384_init", Some((16384, ForkNumber::Init, 0))),
            ("t3_16384", None),
            ("PG_VERSION", None),
            ("pg_internal.init", None),
            ("pg_filenode.map", None),
            ("0", None),
            ("016384", None),
            ("16384.", None),
            ("16384.0", None),
            ("16384_", None),
            ("16384_main", None),
            ("99999999999", None),
            ("+16384", None),
            ("_fsm", None),
        ];
        for (name, expected) in cases {
            assert_eq!(parse_relation_file(name), expected, "{name}");
        }
    }

    fn touch(path: &Path, blocks: u64) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::File::create(path).unwrap().set_len(blocks * BLCKSZ as u64).unwrap();
    }

    #[test]
    fn lists_in_key_order_and_leaves_out_unlogged_contents() {
        let dir = tempfile::tempdir().unwrap();
        let names = [
            "base/5/16400",
            "base/5/16400_init",
            "base/5/16400_fsm",
            "base/5/16384_vm",
            "base/5/16384",
            "base/5/t3_16500",
            "base/5/pg_filenode.map",
            "base/1/1259",
            "base/pgsql_tmp/x",
            "global/1260",
            "pg_tblspc/16390/PG_17_202406281/5/16391",
        ];
        for name in names {
            touch(&dir.path().join(name), 1);
        }
        touch(&dir.path().join("pg_xact/0001"), 2);
        touch(&dir.path().join("pg_xact/0000"), 32);
        touch(&dir.path().join("pg_twophase/00000001000002DA"), 0);
        let contents = list(dir.path()).unwrap();
        let listed: Vec<String> = contents
            .databases
            .iter()
            .flat_map(|database| database.forks.iter().map(|fork| fork.rel.to_string()))
            .collect();
        let wanted = [
            "1663/1/1259",
            "1663/5/16384",
            "1663/5/16384_vm",
            "1663/5/16400_init",
            "1664/0/1260",
            "16390/5/16391",
        ];
        assert_eq!(listed, wanted);
        assert!(contents.databases[1].relmap.is_some());
        let segments: Vec<u32> = contents.slru_segments.iter().map(|(_, s, _)| *s).collect();
        assert_eq!(segments, [0, 1]);
        assert_eq!(contents.two_phase[0].0, 0x1_0000_02DA);
    }

    #[test]
    fn a_short_segment_ends_a_fork() {
        let dir = tempfile::tempdir().unwrap();
        for (name, blocks) in [("1", u64::from(RELSEG_SIZE)), ("1.1", 3), ("1.2", 0), ("2.1", 1)] {
            touch(&dir.path().join("base/5").join(name), blocks);
        }
        let contents = list(dir.path()).unwrap();
        let forks = &contents.databases.iter().find(|d| d.db_oid == 5).unwrap().forks;
        let counts: Vec<usize> = forks.iter().map(|fork| fork.segments.len()).collect();
        assert_eq!(counts, [2, 0]);
    }
}
