//! The one raw entry point of this crate: what must happen between fork and exec.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Marks every descriptor from 3 up close-on-exec in the child, so that a program inherits 0, 1 and 2 only,
/// even when a library of ours opened a file without that flag (L077).
#[expect(unsafe_code, reason = "pre_exec is the only place between fork and exec")]
pub fn close_inherited_descriptors(command: &mut Command) {
    let mark = || {
        // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC only sets a flag on descriptors of this process;
        // it takes no pointer.
        let result = unsafe {
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
        };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: the closure runs in the forked child, where only async-signal-safe calls are allowed; it makes
    // one raw system call, allocates nothing and takes no lock.
    unsafe { command.pre_exec(mark) };
}
