//! Hooks of interrupt processing and of WAL insertion.
#![expect(unsafe_code, reason = "sets hook variables of the server")]

use pgrx::pg_guard;
use pgrx::pg_sys;

use super::hooks::{self, ProcessInterruptsHook, XlogInsertHook};
use super::timer;
use crate::{backpressure, page_client};

static mut PREVIOUS_INTERRUPTS: ProcessInterruptsHook = None;
static mut PREVIOUS_INSERT: XlogInsertHook = None;

/// Installs the hooks. Called when all preloaded libraries have set theirs, so that each record is seen here first.
pub fn install() {
    // SAFETY: runs in the postmaster before it has children; nobody else touches the variables.
    unsafe {
        PREVIOUS_INTERRUPTS = hooks::process_interrupts_hook;
        hooks::process_interrupts_hook = Some(on_interrupts);
        PREVIOUS_INSERT = hooks::xlog_insert_hook;
        hooks::xlog_insert_hook = Some(on_insert);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_interrupts() -> bool {
    // SAFETY: the variable is only written before children exist.
    let previous = unsafe { PREVIOUS_INTERRUPTS };
    // SAFETY: a hook of the same type, called as the server would.
    let again = previous.is_some_and(|hook| unsafe { hook() });
    if timer::take_due() {
        page_client::attend();
    }
    backpressure::on_interrupts() || again
}

/// Not guarded: it runs for every record, allocates nothing and raises nothing.
unsafe extern "C-unwind" fn on_insert(rmid: pg_sys::RmgrId, info: u8) -> pg_sys::RmgrId {
    backpressure::wal_inserted();
    // SAFETY: the variable is only written before children exist; a hook of the same type, called as the server would.
    unsafe { PREVIOUS_INSERT.map_or(rmid, |hook| hook(rmid, info)) }
}
