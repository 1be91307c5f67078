#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod background;
pub mod basebackup;
pub mod config;
pub mod control_file;
#[cfg(test)]
mod fixture;
pub mod http;
pub mod import;
pub mod ingest;
pub mod metrics;
pub mod page_service;
pub mod redo;
pub mod server;
pub mod tenants;
pub mod timeline;
pub mod walreceiver;

pub use server::{Server, ServerError, run};
