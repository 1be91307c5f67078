//! LWLocks.
#![expect(unsafe_code, reason = "calls the server's lock functions")]

use pgrx::pg_sys;

/// A held LWLock. Released when dropped, also when an error unwinds through the holder.
pub struct LwLockGuard {
    lock: *mut pg_sys::LWLock,
}

/// Locks of the server's own, by their numbers in `storage/lwlocklist.h` (17).
#[derive(Clone, Copy, Debug)]
pub enum ServerLock {
    /// `AddinShmemInitLock`
    AddinShmemInit = 21,
    /// `SyncRepLock`
    SyncRep = 32,
}

impl LwLockGuard {
    /// Waits for a lock of the server's.
    ///
    /// # Safety
    /// Shared memory is attached, and this process does not hold the lock.
    pub unsafe fn acquire_server_lock(lock: ServerLock, exclusive: bool) -> LwLockGuard {
        // SAFETY: the array has all individual locks, initialised before the first process starts.
        unsafe {
            let lock = &raw mut (*pg_sys::MainLWLockArray.add(lock as usize)).lock;
            LwLockGuard::acquire(lock, exclusive)
        }
    }

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
