//! Everything that touches Postgres' memory or functions directly. See `README.md` in this folder.

pub mod feedback_map;
pub mod file_cache;
mod file_cache_worker;
pub mod guc;
pub mod guc_file_cache;
mod hooks;
mod init;
mod interrupts;
pub mod latch;
mod lwlock;
pub mod mask;
pub mod process;
pub mod report;
pub mod shmem;
mod smgr_table;
mod utility;
pub mod xlog;
