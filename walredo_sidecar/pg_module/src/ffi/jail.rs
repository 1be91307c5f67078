//! The jail, closed before the first byte of a request is read.
//!
//! The steps are those of docs/threat_model.md, in that order. Every one is checked; a step that fails ends the
//! process, because a redo process outside its jail must not exist.
#![expect(unsafe_code, reason = "system calls that close the jail")]

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicI32, Ordering};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, compile_from_json};

use super::pg;
use super::stdio::{STDERR, die, exit};

/// Address space: a record of the greatest size that is accepted fits twice.
const MEMORY_LIMIT: libc::rlim_t = 1 << 30;

#[cfg(target_arch = "x86_64")]
const ALLOWED: &str = include_str!("../../../seccomp/x86_64.json");
#[cfg(target_arch = "aarch64")]
const ALLOWED: &str = include_str!("../../../seccomp/aarch64.json");
/// Name of the filter in the JSON file.
const FILTER: &str = "redo";

/// Step 1: Has the kernel kill this process when its parent ends, however busy it is then. (An idle one ends by itself,
/// at the end of its input.)
pub(super) fn die_with_parent() {
    // SAFETY: prctl with constants.
    let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    check(result, "ask to be killed with the parent process");
}

/// Closes the jail.
pub(super) fn enter() {
    refuse_root();
    release_shared_memory_name();
    let allowed = allowed_calls();
    close_descriptors();
    forbid_core_dumps();
    memory_from_brk_only();
    no_new_privileges();
    catch_trapped_calls();
    prove_that_filters_bite();
    limit_resources();
    load(&allowed);
}

fn check(result: c_int, what: &str) {
    if result != 0 {
        die(&format!("could not {what}: {}", std::io::Error::last_os_error()));
    }
}

/// Step 2: The parent has dropped to an unprivileged user.
fn refuse_root() {
    // SAFETY: no preconditions.
    let root = unsafe { libc::getuid() == 0 || libc::geteuid() == 0 };
    if root {
        die("the redo process must not run as root");
    }
}

/// Step 3: Postgres' interlock segment (System V shared memory) is marked for removal, so that nothing stays behind
/// when this process is killed. The mapping itself stays usable.
fn release_shared_memory_name() {
    // SAFETY: the key was set by PGSharedMemoryCreate; shmctl with IPC_RMID takes no buffer.
    unsafe {
        let key = libc::key_t::try_from(pg::UsedShmemSegID).unwrap_or(0);
        let id = libc::shmget(key, 0, 0);
        if id < 0 {
            check(-1, "find the shared memory segment");
        }
        check(
            libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()),
            "release the shared memory segment",
        );
    }
}

/// Step 4: The allow-list, compiled while files and memory are still to be had.
fn allowed_calls() -> BpfProgram {
    let arch = TargetArch::try_from(std::env::consts::ARCH)
        .unwrap_or_else(|error| die(&format!("no system call filter here: {error}")));
    let mut filters = compile_from_json(ALLOWED.as_bytes(), arch)
        .unwrap_or_else(|error| die(&format!("system call filter is malformed: {error}")));
    filters.remove(FILTER).unwrap_or_else(|| die("system call filter is missing"))
}

/// Step 5: No descriptor but 0, 1 and 2: whatever the parent leaked or Postgres opened is gone.
fn close_descriptors() {
    // SAFETY: closes descriptors nobody will use again; takes no pointer. The raw call, because older C
    // libraries have no wrapper.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    check(c_int::from(result != 0), "close inherited descriptors");
}

/// Step 6: No core dump (it would hold pages) and no debugger.
fn forbid_core_dumps() {
    set_limit(libc::RLIMIT_CORE, 0, "forbid core dumps");
    // SAFETY: prctl with constants.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }, "become undumpable");
}

/// Step 7: malloc takes memory with brk alone, so that mmap need not be allowed.
fn memory_from_brk_only() {
    // SAFETY: sets a parameter of the C library's allocator. It returns 1 on success.
    let result = unsafe { libc::mallopt(libc::M_MMAP_MAX, 0) };
    check(c_int::from(result != 1), "switch off mmap in malloc");
}

/// Step 8: No way back to privileges through a set-user-id program.
fn no_new_privileges() {
    // SAFETY: prctl with constants.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, "give up new privileges");
}

/// Step 11: Limits that hold even where the filter would let something through.
fn limit_resources() {
    set_limit(libc::RLIMIT_AS, MEMORY_LIMIT, "limit memory");
    set_limit(libc::RLIMIT_NPROC, 0, "forbid processes");
    set_limit(libc::RLIMIT_FSIZE, 0, "forbid writing files");
    set_limit(libc::RLIMIT_NOFILE, 3, "forbid descriptors");
}

#[cfg(target_env = "gnu")]
type Resource = libc::__rlimit_resource_t;
#[cfg(not(target_env = "gnu"))]
type Resource = c_int;

fn set_limit(resource: Resource, value: libc::rlim_t, what: &str) {
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: `limit` lives across the call.
    check(unsafe { libc::setrlimit(resource, &raw const limit) }, what);
}

/// Step 12, and, for its own filter, step 10.
fn load(program: &BpfProgram) {
    if let Err(error) = seccompiler::apply_filter(program) {
        die(&format!("could not load the system call filter: {error}"));
    }
}

/// Number of the call that the self-test trapped; [`SELF_TEST_OVER`] once traps are fatal.
static TRAPPED: AtomicI32 = AtomicI32::new(NOTHING_TRAPPED);
const NOTHING_TRAPPED: i32 = -1;
const SELF_TEST_OVER: i32 = -2;

/// `siginfo_t` of SIGSYS (`asm-generic/siginfo.h`); libc's type has no accessors for these fields.
#[repr(C)]
struct SigsysInfo {
    signo: c_int,
    errno: c_int,
    code: c_int,
    _pad: c_int,
    call_addr: *mut c_void,
    syscall: c_int,
    arch: libc::c_uint,
}

/// Step 9: A trapped call is named on stderr, then the process ends.
fn catch_trapped_calls() {
    // SAFETY: an all-zero sigaction is valid; the handler has the signature that SA_SIGINFO asks for and makes
    // async-signal-safe calls only.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigsys as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO;
        check(
            libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()),
            "catch trapped system calls",
        );
    }
}

extern "C" fn on_sigsys(_signo: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes the siginfo of a SIGSYS, which has the layout above.
    let number = unsafe { (*info.cast::<SigsysInfo>()).syscall };
    if TRAPPED
        .compare_exchange(NOTHING_TRAPPED, number, Ordering::Relaxed, Ordering::Relaxed)
        .is_ok()
    {
        return;
    }
    // No allocation in a signal handler: digits go into a local array, right to left.
    let mut digits = [b' '; 10];
    let mut rest = number.unsigned_abs();
    for place in digits.iter_mut().rev() {
        *place = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    for part in [b"ERROR:  system call ".as_slice(), &digits, b" is not allowed in WAL redo\n"] {
        // SAFETY: `part` is readable memory of the length given; `write` is async-signal-safe, as is `_exit`.
        unsafe { libc::write(STDERR, part.as_ptr().cast(), part.len()) };
    }
    exit(1);
}

fn open_dev_null() -> libc::c_long {
    // SAFETY: a constant path; the descriptor is closed by the caller or never exists.
    unsafe {
        libc::syscall(libc::SYS_openat, libc::AT_FDCWD, c"/dev/null".as_ptr(), libc::O_RDONLY)
    }
}

/// Step 10: Opens a file, loads a filter that traps just that call, and tries again: the trap must be seen. A kernel
/// or container that accepts filters and ignores them is found out here.
fn prove_that_filters_bite() {
    let before = open_dev_null();
    let Ok(fd) = c_int::try_from(before) else {
        die("self-test of the jail: unexpected descriptor")
    };
    // SAFETY: the descriptor was just opened.
    check(
        c_int::from(fd < 0 || unsafe { libc::close(fd) } != 0),
        "open /dev/null for the self-test",
    );
    load(&trap_openat());
    open_dev_null();
    let trapped = TRAPPED.swap(SELF_TEST_OVER, Ordering::Relaxed);
    if libc::c_long::from(trapped) != libc::SYS_openat {
        die("self-test of the jail failed: the system call filter does not bite");
    }
}

fn trap_openat() -> BpfProgram {
    let arch = TargetArch::try_from(std::env::consts::ARCH)
        .unwrap_or_else(|error| die(&format!("no system call filter here: {error}")));
    let rules = [(libc::SYS_openat, Vec::new())].into_iter().collect();
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Trap, arch)
        .and_then(BpfProgram::try_from)
        .unwrap_or_else(|error| die(&format!("filter of the self-test is malformed: {error}")))
}
