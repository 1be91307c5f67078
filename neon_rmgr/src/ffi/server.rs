//! What the server offers, declared without pgrx's error guard: a jump buffer for each call is too much for
//! every WAL record, and nothing with a destructor lives across these calls.

use std::ffi::c_char;

use pgrx::pg_sys;

/// `xlog_insert_hook_type` of the patched `access/xloginsert.h`.
pub type XlogInsertHook = Option<unsafe extern "C-unwind" fn(pg_sys::RmgrId, u8) -> pg_sys::RmgrId>;

/// `XLogRecordBuffer` of `replication/decode.h`, which the bindings leave opaque.
#[repr(C)]
pub struct XLogRecordBuffer {
    pub origptr: pg_sys::XLogRecPtr,
    pub endptr: pg_sys::XLogRecPtr,
    pub record: *mut pg_sys::XLogReaderState,
}

// SAFETY: names and types are those of the headers of PostgreSQL 17 and of `postgres_patches/v17`.
unsafe extern "C-unwind" {
    /// Patched `access/xloginsert.h`.
    pub static mut xlog_insert_hook: XlogInsertHook;
    /// Patched `access/xloginsert.h`: page of a registered buffer, or null.
    pub fn XLogGetRegisteredPage(block_id: u8) -> *const c_char;
    /// Patched `access/xloginsert.h`: first chunk of main data, or null.
    pub fn XLogGetMainData() -> *const pg_sys::XLogRecData;
    /// `access/xloginsert.h`. Keeps the pointer until the record is inserted.
    pub fn XLogRegisterData(data: *const c_char, len: u32);
    /// `access/xlog_internal.h`.
    pub static RmgrTable: [pg_sys::RmgrData; 256];
    /// `access/xlogutils.h`.
    pub fn XLogReadBufferExtended(
        rlocator: pg_sys::RelFileLocator,
        fork: pg_sys::ForkNumber::Type,
        block: pg_sys::BlockNumber,
        mode: pg_sys::ReadBufferMode::Type,
        recent_buffer: pg_sys::Buffer,
    ) -> pg_sys::Buffer;
    /// `storage/bufmgr.h`.
    pub fn LockBuffer(buffer: pg_sys::Buffer, mode: i32);
    /// `storage/bufmgr.h`.
    pub fn MarkBufferDirty(buffer: pg_sys::Buffer);
    /// `storage/bufmgr.h`.
    pub fn UnlockReleaseBuffer(buffer: pg_sys::Buffer);
    /// `lib/stringinfo.h`.
    pub fn appendStringInfoString(buffer: pg_sys::StringInfo, text: *const c_char);
    /// `replication/reorderbuffer.h`.
    pub fn ReorderBufferProcessXid(
        buffer: *mut pg_sys::ReorderBuffer,
        xid: pg_sys::TransactionId,
        lsn: pg_sys::XLogRecPtr,
    );
}
