#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod batch;
mod cache;
mod disk;
mod error;
mod flush;
mod import;
mod layer;
pub mod limits;
mod memtable;
mod options;
mod read;
mod scan;
mod shared;
mod store;
#[cfg(test)]
mod tests;
mod value;
mod version;

pub use batch::WriteBatch;
pub use error::{Corrupt, IoFailed, PutError, ReadError, StoreError};
pub use import::ImageImport;
pub use options::Options;
pub use shared::Shared;
pub use store::{Ancestor, LayerInfo, RecordPosition, Store};
pub use value::{LayerKind, Reconstruct, Value};
