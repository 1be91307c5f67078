//! What the patched server offers beyond stock Postgres (`postgres_patches/v17`).
#![expect(unsafe_code, reason = "declares variables and functions of the server")]

use pgrx::pg_sys;

/// Storage manager of a relation that is being opened.
pub type SmgrSelectHook = Option<unsafe extern "C-unwind" fn(pg_sys::SMgrRelation) -> i32>;
/// Tells the persistence of a relation whose storage is about to be created.
pub type SmgrCreateStorageHook =
    Option<unsafe extern "C-unwind" fn(pg_sys::SMgrRelation, std::ffi::c_char)>;
/// Called at the end of interrupt processing; `true` starts it again.
pub type ProcessInterruptsHook = Option<unsafe extern "C-unwind" fn() -> bool>;
/// Bytes of a database that are not in its local directory.
pub type DbsizeHook = Option<unsafe extern "C-unwind" fn(pg_sys::Oid) -> i64>;
/// Called before a WAL record is put together.
pub type XlogInsertHook = Option<unsafe extern "C-unwind" fn(pg_sys::RmgrId, u8) -> pg_sys::RmgrId>;

// SAFETY: names and types are those of the patched headers `storage/smgr.h`, `miscadmin.h`, `commands/dbcommands.h` and
// `access/xloginsert.h`.
unsafe extern "C-unwind" {
    pub static mut smgr_select_hook: SmgrSelectHook;
    pub static mut smgr_create_storage_hook: SmgrCreateStorageHook;
    pub static mut process_interrupts_hook: ProcessInterruptsHook;
    pub static mut dbsize_hook: DbsizeHook;
    pub static mut xlog_insert_hook: XlogInsertHook;
    pub fn smgr_register(implementation: *const pg_sys::f_smgr) -> i32;
}
