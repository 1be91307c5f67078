//! Postgres functions used while redo runs, declared without pgrx's error guard.
//!
//! The guard costs a jump buffer per call and is of no use here: see the module above.
#![expect(unsafe_code, reason = "declarations of C functions")]

use std::ffi::{c_char, c_int, c_ulong, c_void};

use pgrx::pg_sys;

unsafe extern "C-unwind" {
    /// `xlogreader.c`.
    pub(super) fn DecodeXLogRecordRequiredSpace(xl_tot_len: usize) -> usize;
    /// `xlogreader.c`.
    pub(super) fn DecodeXLogRecord(
        state: *mut pg_sys::XLogReaderState,
        decoded: *mut pg_sys::DecodedXLogRecord,
        record: *mut pg_sys::XLogRecord,
        lsn: pg_sys::XLogRecPtr,
        errormsg: *mut *mut c_char,
    ) -> bool;
    /// `bufmgr.c`.
    pub(super) fn ReadBufferWithoutRelcache(
        rlocator: pg_sys::RelFileLocator,
        fork: pg_sys::ForkNumber::Type,
        block: pg_sys::BlockNumber,
        mode: pg_sys::ReadBufferMode::Type,
        strategy: *mut c_void,
        permanent: bool,
    ) -> pg_sys::Buffer;
    /// `bufmgr.c`.
    pub(super) fn ReleaseBuffer(buffer: pg_sys::Buffer);
    /// `bufmgr.c`.
    pub(super) fn DropRelationsAllBuffers(rels: *mut pg_sys::SMgrRelation, n: c_int);
    /// `smgr.c`.
    pub(super) fn smgropen(
        rlocator: pg_sys::RelFileLocator,
        backend: pg_sys::ProcNumber,
    ) -> pg_sys::SMgrRelation;
    /// `smgr.c`.
    pub(super) fn smgrdestroyall();
    /// `mcxt.c`.
    pub(super) fn MemoryContextReset(context: pg_sys::MemoryContext);
    /// `sysv_shmem.c`: key of the interlock segment. (Not in pgrx's bindings.)
    pub(super) static UsedShmemSegID: c_ulong;
}
