//! Statics of a process that has one thread.
#![expect(unsafe_code, reason = "callbacks from C have no other way to their state")]

use std::cell::UnsafeCell;

/// A mutable static for code that Postgres calls back.
pub(super) struct Single<T>(UnsafeCell<T>);

// SAFETY: the redo process starts no thread (the jail forbids `clone`), so there is nobody to race with.
unsafe impl<T> Sync for Single<T> {}

impl<T> Single<T> {
    pub(super) const fn new(value: T) -> Single<T> {
        Single(UnsafeCell::new(value))
    }

    /// Pointer to the value. The caller keeps no reference from it across a call into Postgres.
    pub(super) fn get(&self) -> *mut T {
        self.0.get()
    }
}
