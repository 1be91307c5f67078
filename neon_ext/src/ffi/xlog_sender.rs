//! What `walsender.c` does with its own state, for a walsender that runs the walproposer.
#![expect(unsafe_code, reason = "reads and writes this walsender's slot in shared memory")]

use pg_types::Lsn;
use pgrx::pg_sys;

use super::spinlock::with_lock;

/// How far the standby that this walsender stands for is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    /// Sent to safekeepers.
    pub sent_lsn: Lsn,
    /// On a quorum, for `write_lsn` and `flush_lsn`.
    pub committed_lsn: Lsn,
    /// Taken by the page server.
    pub applied_lsn: Lsn,
}

/// Where a walsender stands, as `pg_stat_replication` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Does not stream.
    Startup,
    /// Streams; what it reports releases commits.
    Streaming,
    /// Streams, and the server may begin its shutdown checkpoint.
    Stopping,
}

/// Whether this process is a walsender with a slot in shared memory (`InitWalSender`).
pub fn is_walsender() -> bool {
    // SAFETY: set when the process takes its role, and only by itself.
    unsafe { pg_sys::am_walsender && !pg_sys::MyWalSnd.is_null() }
}

/// `WalSndSetState`.
pub fn set_state(state: State) {
    let state = match state {
        State::Startup => pg_sys::WalSndState::WALSNDSTATE_STARTUP,
        State::Streaming => pg_sys::WalSndState::WALSNDSTATE_STREAMING,
        State::Stopping => pg_sys::WalSndState::WALSNDSTATE_STOPPING,
    };
    // SAFETY: this is a walsender.
    unsafe { pg_sys::WalSndSetState(state) };
}

/// Takes this standby's priority from `synchronous_standby_names`.
pub fn take_priority() {
    // SAFETY: this is a walsender.
    unsafe { pg_sys::SyncRepInitConfig() };
}

/// Publishes positions and releases the commits that they make durable, as `ProcessStandbyReplyMessage` does.
pub fn report(positions: Positions) {
    // SAFETY: this is a walsender; its slot is written under its spinlock, with nothing in between that could fail.
    unsafe {
        let now = pg_sys::GetCurrentTimestamp();
        let slot = pg_sys::MyWalSnd;
        with_lock(&raw mut (*slot).mutex, || {
            (*slot).sentPtr = positions.sent_lsn.0;
            (*slot).write = positions.committed_lsn.0;
            (*slot).flush = positions.committed_lsn.0;
            (*slot).apply = positions.applied_lsn.0;
            (*slot).replyTime = now;
        });
        pg_sys::SyncRepReleaseWaiters();
    }
}

/// Takes the replication slot, which is there.
pub fn acquire_slot(name: &str) {
    let name = std::ffi::CString::new(name).unwrap_or_default();
    // SAFETY: the name is NUL-terminated; an error unwinds.
    unsafe { pg_sys::ReplicationSlotAcquire(name.as_ptr(), true) };
}

/// WAL below is not needed any more (`PhysicalConfirmReceivedLocation`).
pub fn advance_slot(lsn: Lsn) {
    // SAFETY: this process has acquired a slot; it is written under its spinlock, with nothing in between that could fail.
    unsafe {
        let slot = pg_sys::MyReplicationSlot;
        with_lock(&raw mut (*slot).mutex, || (*slot).data.restart_lsn = lsn.0);
        pg_sys::ReplicationSlotMarkDirty();
        pg_sys::ReplicationSlotsComputeRequiredLSN();
        pg_sys::PhysicalWakeupLogicalWalSnd();
    }
}

/// From now on the latch of this process is set when WAL has been flushed, once; WAL that was flushed before is not told.
pub fn watch_flushes() {
    // SAFETY: the condition variable lives as long as shared memory; a process waits for one at a time, and this takes
    // the process off whichever it was.
    unsafe {
        pg_sys::ConditionVariablePrepareToSleep(&raw mut (*pg_sys::WalSndCtl).wal_flush_cv);
    }
}

/// Ends [`watch_flushes`].
pub fn ignore_flushes() {
    // SAFETY: allowed at any time.
    unsafe { pg_sys::ConditionVariableCancelSleep() };
}

/// Timeline into which this server writes WAL.
pub fn timeline() -> u32 {
    // SAFETY: the server is not in recovery, since the walproposer has been asked for by a client.
    unsafe { pg_sys::GetWALInsertionTimeLine() }
}

/// The beginning of `wal` from WAL buffers; how many bytes, perhaps none. WAL up to the end of `wal` has been written.
pub fn read_from_buffers(begin_lsn: Lsn, wal: &mut [u8], timeline: u32) -> usize {
    // SAFETY: as many bytes as are said; all of them are below the flush position, so below what was inserted.
    unsafe { pg_sys::WALReadFromBuffers(wal.as_mut_ptr().cast(), begin_lsn.0, wal.len(), timeline) }
}

/// Serves a change of the configuration files.
pub fn reload_configuration_if_told() {
    // SAFETY: what every process does in its main loop; the flag is set by a signal handler of this process.
    unsafe {
        if (&raw const pg_sys::ConfigReloadPending).read_volatile() != 0 {
            (&raw mut pg_sys::ConfigReloadPending).write_volatile(0);
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
            pg_sys::SyncRepInitConfig();
            // Commits may wait for what this standby has reported before it counted.
            pg_sys::SyncRepReleaseWaiters();
        }
    }
}

/// Identity of this server: system identifier and version.
pub fn server_identity() -> (u64, u32) {
    // SAFETY: the control file has been read.
    (unsafe { pg_sys::GetSystemIdentifier() }, pg_sys::PG_VERSION_NUM)
}

/// Whether the role of this session is the one that `initdb` has made, which needs no look into catalogs.
pub fn is_bootstrap_superuser() -> bool {
    // SAFETY: a variable of this process.
    unsafe { pg_sys::GetUserId() == pg_sys::BOOTSTRAP_SUPERUSERID.into() }
}

/// Leaves the text of the replication command out of what this process logs from now on, which it has no more to do with.
pub fn forget_statement() {
    // SAFETY: a variable of this process, which every command sets again (`exec_replication_command`).
    unsafe { pg_sys::debug_query_string = std::ptr::null() };
}

/// Serves interrupts; one that ends the command or the process does so from here.
pub fn check_for_interrupts() {
    pgrx::check_for_interrupts!();
}
