//! How a walsender comes to run the walproposer: as a target of `BASE_BACKUP`.
//!
//! An extension can neither add replication commands nor start walsenders; but it can name targets of base backups, whose
//! `check_detail` is called by the walsender that was given the command, before a backup begins and outside any
//! transaction (`basebackup_target.c`, `parse_basebackup_options`). Ours does not return.
#![expect(unsafe_code, reason = "registers a callback with the server")]

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;

use pgrx::pg_guard;

use super::{report, xlog_sender};
use crate::hosted_walproposer;

mod raw {
    use super::{c_char, c_void};

    // SAFETY: the declaration of `backup/basebackup_target.h`; sinks are only passed through.
    unsafe extern "C-unwind" {
        pub fn BaseBackupAddTarget(
            name: *mut c_char,
            check_detail: unsafe extern "C-unwind" fn(*mut c_char, *mut c_char) -> *mut c_void,
            get_sink: unsafe extern "C-unwind" fn(*mut c_void, *mut c_void) -> *mut c_void,
        );
    }
}

/// Registers the target.
pub fn install() {
    let name = CString::new(walproposer::TARGET).unwrap_or_default();
    // SAFETY: runs in the postmaster before it has children, which inherit the list. The name is copied.
    unsafe { raw::BaseBackupAddTarget(name.as_ptr().cast_mut(), run, never) };
}

/// # Safety
/// Called by the server: `detail` is null or a NUL-terminated text.
#[pg_guard]
unsafe extern "C-unwind" fn run(_target: *mut c_char, detail: *mut c_char) -> *mut c_void {
    if !xlog_sender::is_walsender() || !xlog_sender::is_bootstrap_superuser() {
        report::not_permitted("only the superuser that initdb has made runs the walproposer");
    }
    // SAFETY: as required of the caller.
    let path = (!detail.is_null()).then(|| unsafe { CStr::from_ptr(detail) }.to_string_lossy());
    let end = hosted_walproposer::run(Path::new(path.as_deref().unwrap_or_default()));
    report::walproposer_ended(end)
}

/// # Safety
/// Called by the server, and never, since [`run`] does not return.
#[pg_guard]
unsafe extern "C-unwind" fn never(_next: *mut c_void, _detail: *mut c_void) -> *mut c_void {
    report::not_permitted("this is no target for backups");
}
