//! Everything that touches Postgres' memory or functions directly. See `README.md` in this folder.

pub mod commits;
mod explain;
pub mod feedback_map;
pub mod file_cache;
mod file_cache_worker;
pub mod guc;
pub mod guc_file_cache;
mod hooks;
mod huge_pages;
mod index_scan;
mod init;
mod interrupts;
pub mod latch;
mod lwlock;
pub mod mask;
mod prewarm_worker;
pub mod process;
pub mod report;
pub mod shmem;
mod smgr_table;
mod spinlock;
pub mod timer;
mod utility;
pub mod wake;
mod walproposer_target;
pub mod xlog;
pub mod xlog_sender;
