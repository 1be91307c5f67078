//! Who is about to commit, and who waits for it.
#![expect(
    unsafe_code,
    reason = "reads the queue of commits and the array of processes in shared memory"
)]

use compute_core::group_commit::Transactions;
use pgrx::pg_sys;

use super::lwlock::{LwLockGuard, ServerLock};

/// `SYNC_REP_WAIT_FLUSH` of `replication/syncrep.h`: what commits wait for with `synchronous_commit = on`.
const WAIT_FLUSH: usize = 1;

/// The transactions of this server.
pub struct ServerTransactions;

impl Transactions for ServerTransactions {
    fn committing(&self) -> u32 {
        // SAFETY: only `SyncRepReleaseWaiters` takes the lock in a walsender, and gives it back. The queue changes only under it; its nodes lie in shared memory and form a ring that begins and ends at the head, or are null before first use
        // (`dlist_is_empty`).
        unsafe {
            let _held = LwLockGuard::acquire_server_lock(ServerLock::SyncRep, false);
            let head = &raw mut (*pg_sys::WalSndCtl).SyncRepQueue[WAIT_FLUSH].head;
            let mut node = (*head).next;
            let mut count = 0;
            while !node.is_null() && !std::ptr::eq(node, head) {
                count += 1;
                node = (*node).next;
            }
            count
        }
    }

    fn are_more_than(&self, count: u32) -> bool {
        let at_least = i32::try_from(count).unwrap_or(i32::MAX).saturating_add(1);
        // SAFETY: looks at the array of processes without a lock, as commits do themselves (`XLogFlush`).
        unsafe { pg_sys::MinimumActiveBackends(at_least) }
    }
}
