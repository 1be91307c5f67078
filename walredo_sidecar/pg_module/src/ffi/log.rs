//! What Postgres reports: warnings go to stderr, errors end the process.
//!
//! No error may unwind or jump out of a redo routine: half-applied state must not meet the next request, and
//! there is no handler to return to. `emit_log_hook` runs while the error is being reported, before Postgres
//! decides how to leave, so the process ends right there. Nothing here asks for the time or opens a file, which
//! the jail would not allow; that is why Postgres' own log line is switched off.
#![expect(unsafe_code, reason = "callback from Postgres' error reporting")]

use std::ffi::{CStr, c_char};
use std::fmt::Write as _;

use pgrx::pg_sys;

use super::redo;
use super::stdio::{STDERR, exit, write_all};

/// Takes over error reporting.
pub(super) fn install() {
    // SAFETY: a plain store into a hook variable by the only thread.
    unsafe { pg_sys::emit_log_hook = Some(report) };
}

fn severity(elevel: u32) -> &'static str {
    match elevel {
        ..=pg_sys::WARNING => "WARNING",
        pg_sys::PGERROR => "ERROR",
        pg_sys::FATAL => "FATAL",
        _ => "PANIC",
    }
}

/// Text of a C string, empty for NULL.
///
/// # Safety
/// `text` is NULL or points to a NUL-terminated string that outlives the result.
unsafe fn text<'a>(text: *const c_char) -> std::borrow::Cow<'a, str> {
    if text.is_null() {
        return "".into();
    }
    // SAFETY: by contract.
    unsafe { CStr::from_ptr(text) }.to_string_lossy()
}

unsafe extern "C-unwind" fn report(edata: *mut pg_sys::ErrorData) {
    let mut out = String::new();
    // SAFETY: EmitErrorReport passes the error being reported; its strings live until the report is over.
    let elevel = unsafe {
        let edata = &mut *edata;
        edata.output_to_server = false;
        let elevel = u32::try_from(edata.elevel).unwrap_or(pg_sys::PANIC);
        if elevel < pg_sys::WARNING {
            // The parent takes every line for a complaint.
            return;
        }
        // Writing to a String does not fail.
        let _ = writeln!(out, "{}:  {}", severity(elevel), text(edata.message));
        for (label, part) in
            [("DETAIL", edata.detail), ("HINT", edata.hint), ("CONTEXT", edata.context)]
        {
            if !part.is_null() {
                let _ = writeln!(out, "{label}:  {}", text(part));
            }
        }
        elevel
    };
    let _ = writeln!(out, "CONTEXT:  {}", redo::current_position());
    // A closed stderr is no reason to go on, and there is nowhere else to complain.
    let _ = write_all(STDERR, out.as_bytes());
    if elevel >= pg_sys::PGERROR {
        exit(1);
    }
}
