//! Commands on databases that change pages behind the storage manager's back.
//!
//! The hook itself is a plain frame without destructors that errors of the command jump over: pgrx would carry them
//! through as well, but without their cursor position and context.
#![expect(unsafe_code, reason = "sets a hook variable of the server and reads parse trees")]

use std::ffi::c_char;

use pg_types::Oid;
use pgrx::pg_guard;
use pgrx::pg_sys::{self, NodeTag};

use super::{report, xlog};
use crate::{file_cache, last_written_lsn, relation_size, spill};

type Hook = unsafe extern "C-unwind" fn(
    *mut pg_sys::PlannedStmt,
    *const c_char,
    bool,
    pg_sys::ProcessUtilityContext::Type,
    pg_sys::ParamListInfo,
    *mut pg_sys::QueryEnvironment,
    *mut pg_sys::DestReceiver,
    *mut pg_sys::QueryCompletion,
);

mod raw {
    use super::{c_char, pg_sys};

    // SAFETY: the declaration of `tcop/utility.h`, without the wrapper that pgrx puts around it.
    unsafe extern "C-unwind" {
        #[link_name = "standard_ProcessUtility"]
        pub fn standard(
            statement: *mut pg_sys::PlannedStmt,
            query: *const c_char,
            read_only_tree: bool,
            context: pg_sys::ProcessUtilityContext::Type,
            params: pg_sys::ParamListInfo,
            environment: *mut pg_sys::QueryEnvironment,
            destination: *mut pg_sys::DestReceiver,
            completion: *mut pg_sys::QueryCompletion,
        );
    }
}

static mut PREVIOUS: Option<Hook> = None;

/// Installs the hook.
pub fn install() {
    // SAFETY: runs in the postmaster before it has children.
    unsafe {
        PREVIOUS = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
    }
}

/// What is left to do when a command has succeeded.
#[derive(Clone, Copy)]
enum Afterwards {
    Nothing,
    /// CREATE DATABASE: with the file copy strategy the page server copies all pages when it reads the record; nobody
    /// writes them here (L117).
    PagesCopied,
    /// DROP DATABASE, whose number may be used again, and ALTER DATABASE SET TABLESPACE, which copies pages as above,
    /// perhaps to where the database has been before.
    DatabaseChanged(Oid),
}

/// # Safety
/// `name` is a NUL-terminated text.
unsafe fn database(name: *const c_char) -> Afterwards {
    // SAFETY: as required of the caller; a look-up in a catalog cache within the command's transaction.
    match unsafe { pg_sys::get_database_oid(name, true) }.to_u32() {
        0 => Afterwards::Nothing,
        oid => Afterwards::DatabaseChanged(oid),
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn plan(
    statement: *const pg_sys::PlannedStmt,
    afterwards: *mut Afterwards,
) {
    // SAFETY: called below with a valid statement, whose utility statement is a node with a tag, and a valid place for
    // the result.
    unsafe {
        let node = (*statement).utilityStmt;
        *afterwards = match (*node).type_ {
            NodeTag::T_CreatedbStmt => Afterwards::PagesCopied,
            NodeTag::T_AlterDatabaseStmt => {
                database((*node.cast::<pg_sys::AlterDatabaseStmt>()).dbname)
            }
            NodeTag::T_DropdbStmt => database((*node.cast::<pg_sys::DropdbStmt>()).dbname),
            _ => return,
        };
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn finish(afterwards: *const Afterwards) {
    // SAFETY: called below with a valid place.
    match unsafe { *afterwards } {
        Afterwards::Nothing => {}
        Afterwards::PagesCopied => last_written_lsn::raise_floors(xlog::insert_position()),
        Afterwards::DatabaseChanged(oid) => {
            last_written_lsn::forget_database(oid, xlog::insert_position());
            relation_size::forget_database(oid);
            file_cache::forget_database(oid);
            if let Err(error) = spill::forget_database(oid) {
                report::log(&format!("could not remove spill files of database {oid}: {error}"));
            }
        }
    }
}

unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    let mut afterwards = Afterwards::Nothing;
    // SAFETY: the arguments are passed on as they came; the hook variable is only written before children exist. No value
    // here has a destructor, so an error may jump over this frame.
    unsafe {
        plan(statement, &raw mut afterwards);
        PREVIOUS.unwrap_or(raw::standard)(
            statement,
            query,
            read_only_tree,
            context,
            params,
            environment,
            destination,
            completion,
        );
        finish(&raw const afterwards);
    }
}
