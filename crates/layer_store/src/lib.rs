#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod batch;
mod error;
pub mod limits;
mod memtable;
mod options;
mod read;
mod shared;
mod store;
mod value;

pub use batch::WriteBatch;
pub use error::{PutError, ReadError, StoreError};
pub use options::Options;
pub use shared::Shared;
pub use store::{Ancestor, RecordPosition, Store};
pub use value::{Reconstruct, Value};
