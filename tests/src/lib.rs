//! A whole system for tests, demos and benchmarks: every process is the real one, driven through the `neon`
//! command line as a user would.
#![doc = include_str!("../README.md")]

pub mod bank;
pub mod chaos;
pub mod cluster;
pub mod lists;
pub mod load;
pub mod lsn_datadir;
pub mod pg_module;
pub mod safekeeper_api;
pub mod stock;

pub use cluster::{Cluster, Endpoint, Place};
pub use stock::StockServer;
