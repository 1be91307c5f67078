//! Support of the equivalence proof: a stock server, its WAL, and the comparison of its files with a store.

pub mod compare;
pub mod files;
pub mod mutate;
pub mod ours;
pub mod server;
