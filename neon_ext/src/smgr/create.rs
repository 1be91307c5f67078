//! Creating, finding and dropping relations.

use std::fs;
use std::io;

use compute_core::relation_size::Known;
use compute_core::route::{self, Route};
use pg_types::{ForkNumber, RelFileLocator, RelTag};

use super::{Error, PageServerStorage};
use crate::ffi::{process, report, xlog};
use crate::{file_cache, last_written_lsn, page_client, relation_size, spill};

/// Who serves a relation that is being opened.
pub fn select(locator: RelFileLocator, is_temp: bool) -> Route {
    route::on_open(locator, is_temp, || has_local_main_file(locator))
}

/// Whether the main fork has a local file: then the relation is unlogged.
fn has_local_main_file(locator: RelFileLocator) -> bool {
    let path = route::relation_path(locator.fork(ForkNumber::Main), process::CATALOG_VERSION);
    fs::symlink_metadata(path).is_ok()
}

impl PageServerStorage {
    pub(super) fn create_fork(rel: RelTag) -> Result<(), Error> {
        if rel.fork == ForkNumber::Main {
            create_marker(rel.locator)?;
            relation_size::create_main(rel.locator);
        } else {
            relation_size::set(rel, 0);
        }
        // If the size is displaced before its first change, a question must wait for the record of the creation.
        last_written_lsn::set_metadata(rel, xlog::insert_position());
        forget_spilled(rel);
        Ok(())
    }

    pub(super) fn fork_exists(rel: RelTag) -> Result<bool, Error> {
        // Views have no storage; \d+ asks nevertheless. A relation with an init fork is unlogged, hence local.
        if rel.locator.rel_number == 0 || rel.fork == ForkNumber::Init {
            return Ok(false);
        }
        match relation_size::get(rel) {
            Some(known) => Ok(known != Known::Absent),
            None => Self::ask_for_fork(rel),
        }
    }

    /// Asks whether the fork exists, and no more: this may run after the commit that drops the relation, when a
    /// question for the size of a fork that is just gone would be an error.
    fn ask_for_fork(rel: RelTag) -> Result<bool, Error> {
        let exists = page_client::exists(rel, last_written_lsn::get_metadata(rel))?;
        if exists {
            return Ok(true);
        }
        Ok(relation_size::learn(rel, Known::Absent) != Known::Absent)
    }

    pub(super) fn unlink_fork(rel: RelTag) {
        match relation_size::get(rel) {
            Some(Known::Absent) => {}
            Some(Known::Blocks(blocks)) => file_cache::forget(rel, Some(blocks)),
            None => file_cache::forget(rel, None),
        }
        relation_size::forget(rel);
        forget_spilled(rel);
        if rel.fork == ForkNumber::Main {
            remove_marker(rel.locator);
        }
    }
}

fn forget_spilled(rel: RelTag) {
    if let Err(error) = spill::forget(rel) {
        report::log(&format!("could not remove the spill file of relation fork {rel}: {error}"));
    }
}

fn create_marker(locator: RelFileLocator) -> Result<(), Error> {
    let Some(path) = route::tablespace_marker(locator, process::CATALOG_VERSION) else {
        return Ok(());
    };
    // Makes the database's directory in the tablespace, with the locks against a concurrent DROP TABLESPACE.
    process::create_tablespace_directory(locator);
    match fs::File::create(&path) {
        Ok(_) => Ok(()),
        Err(source) => Err(Error::Marker { path, source }),
    }
}

fn remove_marker(locator: RelFileLocator) {
    let Some(path) = route::tablespace_marker(locator, process::CATALOG_VERSION) else { return };
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            report::log(&format!("could not remove file \"{path}\": {error}"));
        }
        _ => {}
    }
}
