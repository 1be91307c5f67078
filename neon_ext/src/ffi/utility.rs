//! Commands on databases that change pages behind the storage manager's back.
#![expect(unsafe_code, reason = "sets a hook variable of the server and reads parse trees")]

use std::ffi::c_char;

use pg_types::Oid;
use pgrx::pg_guard;
use pgrx::pg_sys::{self, NodeTag};

use super::xlog;
use crate::{last_written_lsn, relation_size};

static mut PREVIOUS: pg_sys::ProcessUtility_hook_type = None;

/// Installs the hook.
pub fn install() {
    // SAFETY: runs in the postmaster before it has children.
    unsafe {
        PREVIOUS = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
    }
}

/// What is left to do when a command has succeeded.
enum Afterwards {
    Nothing,
    /// CREATE DATABASE and ALTER DATABASE SET TABLESPACE: with the file copy strategy the page server copies all
    /// pages when it reads the record; nobody writes them here (L117).
    PagesCopied,
    /// DROP DATABASE: its number may be used again.
    DatabaseGone(Oid),
}

/// # Safety
/// `statement` is a valid statement.
unsafe fn plan(statement: *const pg_sys::PlannedStmt) -> Afterwards {
    // SAFETY: utility statements are nodes whose type the tag tells.
    unsafe {
        let node = (*statement).utilityStmt;
        match (*node).type_ {
            NodeTag::T_CreatedbStmt | NodeTag::T_AlterDatabaseStmt => Afterwards::PagesCopied,
            NodeTag::T_DropdbStmt => {
                let drop = node.cast::<pg_sys::DropdbStmt>();
                let oid = pg_sys::get_database_oid((*drop).dbname, true);
                Afterwards::DatabaseGone(oid.to_u32())
            }
            _ => Afterwards::Nothing,
        }
    }
}

#[pg_guard]
#[expect(clippy::too_many_arguments, reason = "the hook's type is Postgres'")]
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
    // SAFETY: the arguments are passed on as they came; the hook variable is only written before children exist.
    unsafe {
        let afterwards = plan(statement);
        let (query_env, dest) = (environment, destination);
        match PREVIOUS {
            Some(next) => pg_sys::ffi::pg_guard_ffi_boundary(|| {
                next(
                    statement,
                    query,
                    read_only_tree,
                    context,
                    params,
                    query_env,
                    dest,
                    completion,
                );
            }),
            None => pg_sys::standard_ProcessUtility(
                statement,
                query,
                read_only_tree,
                context,
                params,
                query_env,
                dest,
                completion,
            ),
        }
        match afterwards {
            Afterwards::Nothing => {}
            Afterwards::PagesCopied => last_written_lsn::raise_floors(xlog::insert_position()),
            Afterwards::DatabaseGone(oid) => relation_size::forget_database(oid),
        }
    }
}
