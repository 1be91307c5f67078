//! Entry point of the library.
#![expect(unsafe_code, reason = "calls into Postgres while the library is loaded")]

use super::guc;

/// Called once by Postgres when it loads the library.
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    guc::define_redo();
    if guc::WAL_REDO.get() {
        load_rmgr_library();
    }
}

/// Loads `neon_rmgr` when it is installed, so that the redo process knows the custom resource manager (L035).
fn load_rmgr_library() {
    // SAFETY: `pkglib_path` is a NUL-terminated array filled in before libraries are loaded.
    let dir = unsafe { std::ffi::CStr::from_ptr((&raw const pgrx::pg_sys::pkglib_path).cast()) };
    let path = format!("{}/neon_rmgr.so", dir.to_string_lossy());
    if !std::path::Path::new(&path).exists() {
        return;
    }
    // SAFETY: loading a library is what Postgres itself does at this point of start-up; an error is FATAL there
    // as well.
    unsafe { pgrx::pg_sys::load_file(c"neon_rmgr".as_ptr(), false) };
}
