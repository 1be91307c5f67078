//! Which storage manager serves a relation, and where local files are.

use std::fmt::Write;

use pg_types::relation::{DEFAULTTABLESPACE_OID, GLOBALTABLESPACE_OID};
use pg_types::{Oid, RelFileLocator, RelTag};

/// `FirstNormalObjectId` of `access/transam.h`: lower numbers belong to relations that `initdb` made, none of
/// which is unlogged.
pub const FIRST_NORMAL_OBJECT_ID: Oid = 16384;

/// Who keeps the pages of a relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Local files, as in stock Postgres: temporary and unlogged relations.
    Local,
    /// The page server: permanent relations.
    PageServer,
}

/// Routes a relation when it is opened. `is_temp`: it belongs to one backend. `local_main_file` says whether
/// the main fork has a local file; only unlogged relations have one, since nothing else here makes any
/// (design D3). It is asked only when the answer matters.
pub fn on_open(
    locator: RelFileLocator,
    is_temp: bool,
    local_main_file: impl FnOnce() -> bool,
) -> Route {
    let made_by_initdb =
        locator.rel_number < FIRST_NORMAL_OBJECT_ID || locator.spc_oid == GLOBALTABLESPACE_OID;
    if is_temp || (!made_by_initdb && local_main_file()) { Route::Local } else { Route::PageServer }
}

/// Routes a relation that is being created, by `pg_class.relpersistence`: 'p', 'u' or 't'.
pub fn on_create(relpersistence: u8) -> Route {
    if relpersistence == b'p' { Route::PageServer } else { Route::Local }
}

/// `TABLESPACE_VERSION_DIRECTORY` of `common/relpath.h`.
fn version_directory(catalog_version: u32) -> String {
    format!("PG_{}_{catalog_version}", pg_types::PG_MAJORVERSION)
}

/// Directory of a database in a tablespace, relative to the data directory (`GetDatabasePath`).
pub fn database_directory(spc_oid: Oid, db_oid: Oid, catalog_version: u32) -> String {
    match spc_oid {
        GLOBALTABLESPACE_OID => "global".to_owned(),
        DEFAULTTABLESPACE_OID => format!("base/{db_oid}"),
        _ => format!("pg_tblspc/{spc_oid}/{}/{db_oid}", version_directory(catalog_version)),
    }
}

/// First file of a fork, relative to the data directory (`GetRelationPath` for a relation that is not temporary).
pub fn relation_path(rel: RelTag, catalog_version: u32) -> String {
    let RelFileLocator { spc_oid, db_oid, rel_number } = rel.locator;
    let mut path = database_directory(spc_oid, db_oid, catalog_version);
    // Writing to a string does not fail.
    let _ = write!(path, "/{rel_number}{}", rel.fork.file_suffix());
    path
}

/// A file without content that says "this tablespace holds a permanent relation"; `None` in the tablespaces
/// that every cluster has.
///
/// `DROP TABLESPACE` refuses only if it finds files (`destroy_tablespace_directories`); permanent relations have
/// none here, so without the marker a tablespace in use could be dropped.
pub fn tablespace_marker(locator: RelFileLocator, catalog_version: u32) -> Option<String> {
    let RelFileLocator { spc_oid, db_oid, rel_number } = locator;
    if spc_oid == DEFAULTTABLESPACE_OID || spc_oid == GLOBALTABLESPACE_OID {
        return None;
    }
    let directory = database_directory(spc_oid, db_oid, catalog_version);
    Some(format!("{directory}/neon_relation_{rel_number}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg_types::ForkNumber;

    fn locator(spc_oid: Oid, rel_number: Oid) -> RelFileLocator {
        RelFileLocator { spc_oid, db_oid: 5, rel_number }
    }

    #[test]
    fn routes_by_what_is_known() {
        let never = || panic!("not to be asked");
        assert_eq!(on_open(locator(1663, 16384), true, never), Route::Local);
        assert_eq!(on_open(locator(1663, 1259), false, never), Route::PageServer);
        assert_eq!(on_open(locator(1664, 20000), false, never), Route::PageServer);
        assert_eq!(on_open(locator(1663, 16384), false, || true), Route::Local);
        assert_eq!(on_open(locator(1663, 16384), false, || false), Route::PageServer);
        assert_eq!(on_create(b'p'), Route::PageServer);
        assert_eq!(on_create(b'u'), Route::Local);
        assert_eq!(on_create(b't'), Route::Local);
    }

    #[test]
    fn paths_are_those_of_relpath_c() {
        let version = 202_406_281;
        let path = |spc, fork| relation_path(locator(spc, 16384).fork(fork), version);
        assert_eq!(path(1663, ForkNumber::Main), "base/5/16384");
        assert_eq!(path(1664, ForkNumber::Vm), "global/16384_vm");
        assert_eq!(path(17000, ForkNumber::Init), "pg_tblspc/17000/PG_17_202406281/5/16384_init");
        assert_eq!(tablespace_marker(locator(1663, 1), version), None);
        assert_eq!(
            tablespace_marker(locator(17000, 16384), version).as_deref(),
            Some("pg_tblspc/17000/PG_17_202406281/5/neon_relation_16384")
        );
    }
}
