//! The three descriptors that are left.
#![expect(unsafe_code, reason = "read, write and _exit without the buffers and locks of std")]

/// Where requests come from.
const STDIN: libc::c_int = 0;
/// Where answers go.
pub(super) const STDOUT: libc::c_int = 1;
/// Where explanations go.
pub(super) const STDERR: libc::c_int = 2;

fn errno() -> libc::c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Reads what is there; 0 at the end of input.
pub(super) fn read_stdin(target: &mut [u8]) -> Result<usize, std::io::Error> {
    loop {
        // SAFETY: `target` is writable memory of the length given.
        let n = unsafe { libc::read(STDIN, target.as_mut_ptr().cast(), target.len()) };
        match usize::try_from(n) {
            Ok(n) => return Ok(n),
            Err(_) if errno() == libc::EINTR => (),
            Err(_) => return Err(std::io::Error::last_os_error()),
        }
    }
}

/// Writes all of `bytes`, or as much as the other side takes.
pub(super) fn write_all(fd: libc::c_int, mut bytes: &[u8]) -> Result<(), std::io::Error> {
    while !bytes.is_empty() {
        // SAFETY: `bytes` is readable memory of the length given.
        let n = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(n) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(_) if errno() == libc::EINTR => (),
            Err(_) => return Err(std::io::Error::last_os_error()),
        }
    }
    Ok(())
}

/// Ends the process at once: Postgres' exit callbacks would unlink files and detach shared memory, which the
/// jail forbids and nobody needs.
pub(super) fn exit(code: libc::c_int) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Says why and ends the process.
pub(super) fn die(message: &str) -> ! {
    // Nothing is left to do about a failing stderr.
    let _ = write_all(STDERR, format!("ERROR:  {message}\n").as_bytes());
    exit(1)
}
