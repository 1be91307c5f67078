//! LWLocks.
#![expect(unsafe_code, reason = "calls the server's lock functions")]

use pgrx::pg_sys;

/// A held LWLock. Released when dropped, also when an error unwinds through the holder.
pub struct LwLockGuard {
    lock: *mut pg_sys::LWLock,
}

impl LwLockGuard {
    /// Waits for the lock. Interrupts are held off while it is held.
    ///
    /// # Safety
    /// `lock` is an initialised LWLock in shared memory that this process does not hold.
    pub unsafe fn acquire(lock: *mut pg_sys::LWLock, exclusive: bool) -> LwLockGuard {
        let mode = if exclusive {
            pg_sys::LWLockMode::LW_EXCLUSIVE
        } else {
            pg_sys::LWLockMode::LW_SHARED
        };
        // SAFETY: as required of the caller.
        unsafe { pg_sys::LWLockAcquire(lock, mode) };
        LwLockGuard { lock }
    }
}

impl Drop for LwLockGuard {
    fn drop(&mut self) {
        // SAFETY: acquired in `acquire` and not released since: the guard is neither copied nor leaked.
        unsafe { pg_sys::LWLockRelease(self.lock) };
    }
}
