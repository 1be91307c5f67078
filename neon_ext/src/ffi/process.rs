//! What kind of process this is and what it may do.
#![expect(unsafe_code, reason = "reads variables of the server")]

use pgrx::pg_sys;

/// `MyProcPid`.
pub fn pid() -> u32 {
    // SAFETY: set once when the process starts.
    unsafe { pg_sys::MyProcPid }.unsigned_abs()
}

/// Whether this process sends WAL. Such a process must never wait for WAL to arrive somewhere.
pub fn is_walsender() -> bool {
    // SAFETY: set when the process takes its role, and only by itself.
    unsafe { pg_sys::am_walsender }
}

/// Whether this process has a main loop that called `InitializeTimeouts`: backends, autovacuum and background workers.
/// Auxiliary processes, which read a page at most for an audit, have no timeouts.
pub fn has_timeouts() -> bool {
    // SAFETY: set when the process starts, and only by itself.
    let kind = unsafe { pg_sys::MyBackendType };
    use pg_sys::BackendType as Kind;
    [Kind::B_BACKEND, Kind::B_AUTOVAC_WORKER, Kind::B_BG_WORKER].contains(&kind)
}

/// Whether this is an autovacuum worker.
pub fn is_autovacuum_worker() -> bool {
    // SAFETY: set when the process starts, and only by itself.
    unsafe { pg_sys::MyBackendType == pg_sys::BackendType::B_AUTOVAC_WORKER }
}

/// Whether this process is the one that writes the shutdown checkpoint, and has been told to
/// (`CheckpointerMain`). From then on WAL inserted by it would be behind the checkpoint's position.
pub fn is_shutting_down() -> bool {
    // SAFETY: the flag is set by a signal handler of this process; reading an int is atomic.
    unsafe {
        pg_sys::MyBackendType == pg_sys::BackendType::B_CHECKPOINTER
            && (&raw const pg_sys::ShutdownRequestPending).read_volatile() != 0
    }
}

/// Whether an ERROR now would be a PANIC.
pub fn in_critical_section() -> bool {
    // SAFETY: a counter of this process.
    unsafe { pg_sys::CritSectionCount > 0 }
}

/// Whether libraries of `shared_preload_libraries` are being loaded.
pub fn is_preloading() -> bool {
    // SAFETY: a variable of this process.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Makes the next `CHECK_FOR_INTERRUPTS` call the interrupts hook.
pub fn request_interrupt_processing() {
    // SAFETY: signal handlers do the same; the variable is an int that only this process writes.
    unsafe { (&raw mut pg_sys::InterruptPending).write_volatile(1) };
}

/// `CATALOG_VERSION_NO`, part of directory names in tablespaces.
pub const CATALOG_VERSION: u32 = pg_sys::CATALOG_VERSION_NO;

/// `TablespaceCreateDbspace`: makes the database's directory in a tablespace unless it exists.
pub fn create_tablespace_directory(locator: pg_types::RelFileLocator) {
    // SAFETY: takes an LWLock and makes a directory; called outside critical sections, as `mdcreate` does.
    unsafe {
        pg_sys::TablespaceCreateDbspace(locator.spc_oid.into(), locator.db_oid.into(), false);
    }
}
