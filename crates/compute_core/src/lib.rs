//! What the compute's storage manager decides, apart from Postgres and from sockets.
//!
//! `neon_ext` is a library that can only be linked into a server; everything in it that can be wrong in an
//! interesting way lives here instead, where plain tests reach it. State that backends share is passed in as
//! slices of plain data, because it lies in Postgres' shared memory.
#![forbid(unsafe_code)]

pub mod audit;
pub mod backpressure;
pub mod conninfo;
pub mod eviction;
pub mod feedback;
pub mod file_cache;
pub mod fixed_map;
pub mod frame;
pub mod group_commit;
pub mod handshake;
pub mod huge_pages;
pub mod last_written;
pub mod readahead;
pub mod relation_size;
pub mod request_lsn;
pub mod retry;
pub mod route;
pub mod spill;
pub mod working_set;
