//! The guest side of WAL redo: what runs inside `postgres --wal-redo`.
//!
//! The library `neon` calls [`install`] from `_PG_init` when `neon.wal_redo` is on. From there on the process
//! belongs to this crate: storage manager in memory, jail, request loop. It never returns to Postgres.
//!
//! What needs no server to be tested (messages, input buffering, which records are admitted) is in
//! `walredo_protocol`.

mod ffi;
mod repeat;

pub use ffi::install;
