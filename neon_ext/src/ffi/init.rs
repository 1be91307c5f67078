//! Entry point of the library.
#![expect(unsafe_code, reason = "calls into Postgres while the library is loaded")]

use compute_core::conninfo::ConnInfo;
use pg_types::{TenantId, TimelineId};
use pgrx::pg_guard;
use pgrx::pg_sys;

use super::{
    explain, file_cache, file_cache_worker, guc, huge_pages, index_scan, interrupts,
    prewarm_worker, process, report, shmem, smgr_table, utility, walproposer_target,
};
use crate::{file_cache as cache, spill};

static mut PREVIOUS_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;

/// Called once by Postgres when it loads the library.
///
/// Three kinds of process load it: a compute's postmaster, a WAL redo process, and a session of a server that did not
/// preload it, which gets the SQL functions and nothing else.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    if !process::is_preloading() {
        return;
    }
    guc::define_redo();
    if guc::WAL_REDO.get() {
        // First, so that what loading the other library logs is not taken for an error by the page server.
        walredo_guest::install();
        load_rmgr_library();
        return;
    }
    guc::define_compute();
    if !guc::connstring().is_empty() {
        check_settings();
        install_compute();
    }
}

/// Loads `neon_rmgr` when it is installed, so that the redo process knows the custom resource manager (L035).
fn load_rmgr_library() {
    // SAFETY: `pkglib_path` is a NUL-terminated array filled in before libraries are loaded.
    let dir = unsafe { std::ffi::CStr::from_ptr((&raw const pg_sys::pkglib_path).cast()) };
    let path = format!("{}/neon_rmgr.so", dir.to_string_lossy());
    if !std::path::Path::new(&path).exists() {
        return;
    }
    // SAFETY: loading a library is what Postgres itself does at this point of start-up; an error is FATAL there
    // as well.
    unsafe { pg_sys::load_file(c"neon_rmgr".as_ptr(), false) };
}

/// A typing error is told at start, not at the first read.
fn check_settings() {
    if let Err(error) = ConnInfo::parse(&guc::connstring()) {
        report::fatal(&format!("neon.pageserver_connstring: {error}"));
    }
    if let Err(error) = guc::tenant_id().parse::<TenantId>() {
        report::fatal(&format!("neon.tenant_id: {error}"));
    }
    if let Err(error) = guc::timeline_id().parse::<TimelineId>() {
        report::fatal(&format!("neon.timeline_id: {error}"));
    }
}

fn install_compute() {
    // SAFETY: runs in the postmaster before it has children.
    unsafe {
        PREVIOUS_REQUEST = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(request_shmem);
        PREVIOUS_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(startup_shmem);
    }
    smgr_table::install();
    utility::install();
    index_scan::install();
    explain::install();
    file_cache_worker::register();
    prewarm_worker::register();
    huge_pages::register();
    walproposer_target::install();
}

#[pg_guard]
unsafe extern "C-unwind" fn request_shmem() {
    // SAFETY: written only in `install_compute`; a hook of the same type.
    unsafe {
        if let Some(previous) = PREVIOUS_REQUEST {
            previous();
        }
    }
    shmem::request();
    file_cache::request();
}

#[pg_guard]
unsafe extern "C-unwind" fn startup_shmem() {
    // SAFETY: written only in `install_compute`; a hook of the same type.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP {
            previous();
        }
    }
    check_server();
    shmem::startup();
    file_cache::startup();
    cache::start();
    if let Err(error) = spill::reset() {
        report::fatal(&format!("could not make an empty directory for spill files: {error}"));
    }
    interrupts::install();
}

/// Settings of the server that would lose data.
fn check_server() {
    // SAFETY: the settings and the control file have been read when shared memory is made.
    let (wal_level, checksums) = unsafe { (pg_sys::wal_level, pg_sys::DataChecksumsEnabled()) };
    if wal_level < pg_sys::WalLevel::WAL_LEVEL_REPLICA.cast_signed() {
        report::fatal(
            "wal_level must be replica or logical: with minimal, new relations are not logged",
        );
    }
    if checksums {
        report::fatal("data checksums must be off: pages of the page server carry none");
    }
}
