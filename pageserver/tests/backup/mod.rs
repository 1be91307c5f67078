//! Servers on data directories, and a store as the source of a backup.

pub mod server;
pub mod source;
