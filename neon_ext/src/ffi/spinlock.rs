//! Postgres' spinlocks (`s_lock.h`, 17: a byte on x86-64, an int elsewhere; 1 is taken).
#![expect(unsafe_code, reason = "takes a lock in shared memory")]

use std::sync::atomic::Ordering;

use pgrx::pg_sys;

#[cfg(target_arch = "x86_64")]
type Word = std::sync::atomic::AtomicU8;
#[cfg(not(target_arch = "x86_64"))]
type Word = std::sync::atomic::AtomicI32;

const _: () = assert!(size_of::<Word>() == size_of::<pg_sys::slock_t>());

/// Runs `work`, a few stores that cannot fail, with the lock held.
///
/// # Safety
/// `lock` points to an initialized spinlock that this process does not hold.
pub unsafe fn with_lock<T>(lock: *mut pg_sys::slock_t, work: impl FnOnce() -> T) -> T {
    // SAFETY: as required of the caller; the type is the lock's by the assertion above.
    let word = unsafe { Word::from_ptr(lock.cast()) };
    if word.swap(1, Ordering::Acquire) != 0 {
        let (file, function) = (c"spinlock.rs".as_ptr(), c"with_lock".as_ptr());
        // SAFETY: the slow path of `S_LOCK`: returns when the lock is taken.
        unsafe { pg_sys::s_lock(lock, file, 0, function) };
    }
    let result = work();
    word.store(0, Ordering::Release);
    result
}
