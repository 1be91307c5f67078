//! The guest side of WAL redo: what runs inside `postgres --wal-redo`.
//!
//! The library `neon` calls [`install`] from `_PG_init` when `neon.wal_redo` is on. From there on the process
//! belongs to this crate: storage manager in memory, jail, request loop. It never returns to Postgres.

mod input;
mod policy;

#[cfg(feature = "pg17")]
mod ffi;
#[cfg(feature = "pg17")]
pub use ffi::install;

pub use input::Input;
pub use policy::{RecordRefusal, check_record};
