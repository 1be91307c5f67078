//! The storage manager for permanent relations.

mod contract;
mod create;
mod read;
mod size;
mod write;

pub use contract::{Error, StorageManager};
pub use create::select;
pub use read::far_reads;

/// Permanent relations: pages come from the page server, changes go there as WAL (L001).
pub struct PageServerStorage;
