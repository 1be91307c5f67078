//! WAL redo: records applied in Rust, and the host side of a jailed Postgres that applies all others.
//!
//! See README.md for the picture, the protocol and the threat model.
#![forbid(unsafe_code)]

mod apply;
mod batch;
pub mod datadir;
mod error;
mod initdb;
mod manager;
pub mod metrics;
mod pool;
pub mod process;
pub mod record;
pub mod template;

pub use apply::apply_record;
pub use batch::{Batch, batches};
pub use error::WalRedoError;
pub use manager::{PostgresRedoManager, WalRedoConfig, WalRedoEnv, WalRedoManager};
pub use record::{MultiXactMember, NeonWalRecord, RecordDecodeError, next_multixact_offset};
