//! The extension `neon`: pages of permanent relations come from a page server.

mod audit;
mod backpressure;
mod counters;
mod ffi;
mod file_cache;
mod histogram;
mod hosted_walproposer;
mod last_written_lsn;
mod page_client;
mod relation_size;
mod smgr;
mod spill;
mod sql;

pgrx::pg_module_magic!();
