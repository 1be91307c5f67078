//! The processes of one manager and version: at most `capacity`, each used by one request at a time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Things that are expensive to make and thrown away when they fail.
#[derive(Debug)]
pub(crate) struct Pool<T> {
    capacity: usize,
    state: Mutex<State<T>>,
    freed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    /// Ready for use, with the time of the last one; the most recently used is last.
    idle: Vec<(T, Instant)>,
    in_use: usize,
    waiting: usize,
    closed: bool,
}

/// The right to use one thing. Holds none at first when none was idle: the holder makes one with
/// [`Slot::set`]. What is in it when it is dropped goes back to the pool, unless the thread is panicking.
#[derive(Debug)]
pub(crate) struct Slot<'a, T> {
    pool: &'a Pool<T>,
    value: Option<T>,
}

impl<T> Pool<T> {
    pub(crate) fn new(capacity: usize) -> Pool<T> {
        let state = State { idle: Vec::new(), in_use: 0, waiting: 0, closed: false };
        Pool { capacity: capacity.max(1), state: Mutex::new(state), freed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing panics while the lock is held; the state is sound whatever happened.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a slot; `None` when the pool is closed or stays busy for `timeout`.
    pub(crate) fn acquire(&self, timeout: Duration) -> Option<Slot<'_, T>> {
        let mut state = self.lock();
        if state.in_use >= self.capacity && !state.closed {
            let deadline = Instant::now() + timeout;
            state.waiting += 1;
            while state.in_use >= self.capacity && !state.closed {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                let woken = self.freed.wait_timeout(state, left);
                state = woken.unwrap_or_else(PoisonError::into_inner).0;
            }
            state.waiting -= 1;
        }
        if state.closed || state.in_use >= self.capacity {
            return None;
        }
        state.in_use += 1;
        let value = state.idle.pop().map(|(value, _)| value);
        Some(Slot { pool: self, value })
    }

    /// Refuses every later request, and drops what is idle. What is in use is dropped when it comes back.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        self.freed.notify_all();
        drop(idle);
    }

    /// Drops what has been idle for `age`.
    pub(crate) fn drop_idle(&self, age: Duration) {
        let mut old = Vec::new();
        let mut state = self.lock();
        let mut i = 0;
        while let Some((_, since)) = state.idle.get(i) {
            if since.elapsed() >= age {
                old.push(state.idle.remove(i));
            } else {
                i += 1;
            }
        }
        drop(state);
        drop(old);
    }

    /// Whether anything exists, in use or idle.
    pub(crate) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.idle.is_empty() && state.in_use == 0
    }
}

impl<T> Slot<'_, T> {
    /// What the slot holds.
    pub(crate) fn get(&mut self) -> Option<&mut T> {
        self.value.as_mut()
    }

    /// Fills an empty slot.
    pub(crate) fn set(&mut self, value: T) -> &mut T {
        self.value.insert(value)
    }

    /// Takes the thing out, so that it does not go back.
    pub(crate) fn take(&mut self) -> Option<T> {
        self.value.take()
    }
}

impl<T> Drop for Slot<'_, T> {
    fn drop(&mut self) {
        // A panic in the middle of a request leaves the thing in an unknown state.
        let value = self.value.take().filter(|_| !std::thread::panicking());
        let mut state = self.pool.lock();
        state.in_use -= 1;
        let unwanted = match value {
            Some(value) if !state.closed => {
                state.idle.push((value, Instant::now()));
                None
            }
            other => other,
        };
        let waiting = state.waiting > 0;
        drop(state);
        if waiting {
            self.pool.freed.notify_one();
        }
        drop(unwanted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn things_come_back_unless_taken() {
        let pool = Pool::new(1);
        pool.acquire(LONG).unwrap().set(7);
        assert_eq!(pool.acquire(LONG).unwrap().get(), Some(&mut 7));
        assert_eq!(pool.acquire(LONG).unwrap().take(), Some(7));
        assert_eq!(pool.acquire(LONG).unwrap().get(), None);
        assert!(pool.is_empty());
    }

    #[test]
    fn a_panic_loses_the_thing_and_frees_the_slot() {
        let pool = Pool::new(1);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut slot = pool.acquire(LONG).unwrap();
            slot.set(7);
            panic!("in the middle of a request");
        }));
        assert!(caught.is_err());
        assert_eq!(pool.acquire(LONG).unwrap().get(), None);
    }

    #[test]
    fn a_busy_pool_gives_up_and_a_closed_one_refuses() {
        let pool = Pool::new(1);
        let mut slot = pool.acquire(LONG).unwrap();
        slot.set(1);
        assert!(pool.acquire(Duration::from_millis(1)).is_none());
        pool.close();
        assert!(pool.acquire(LONG).is_none());
        drop(slot);
        assert!(pool.is_empty(), "what was in use is dropped when it comes back");
    }

    #[test]
    fn never_more_than_capacity_at_once() {
        let pool = Pool::new(2);
        let (now, most, made) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let mut slot = pool.acquire(LONG).unwrap();
                        if slot.get().is_none() {
                            slot.set(made.fetch_add(1, Ordering::SeqCst));
                        }
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::yield_now();
                        now.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(most.load(Ordering::SeqCst) <= 2);
        assert!(made.load(Ordering::SeqCst) <= 2);
    }

    #[test]
    fn idle_things_are_dropped_by_age() {
        let pool = Pool::new(2);
        pool.acquire(LONG).unwrap().set(1);
        pool.drop_idle(LONG);
        assert!(!pool.is_empty());
        pool.drop_idle(Duration::ZERO);
        assert!(pool.is_empty());
    }
}
