//! The library `neon_rmgr`: resource manager 134, heap records that carry command ids.
//!
//! Stock WAL does not hold command ids (`t_cid`), because stock redo never runs on a page whose transaction is
//! still running. A page that leaves the buffer cache here is rebuilt from WAL, and the transaction that wrote
//! it goes on reading it. So each heap record whose tuples have a command id that stock redo would not give them
//! is logged under this resource manager, with the command ids behind the stock main data.
//!
//! Bytes and decisions are in `neon_wal`; here is what only a server can do.

mod ffi;

pgrx::pg_module_magic!();
