//! WAL redo: records applied in Rust, and the host side of a jailed Postgres that applies all others.
#![forbid(unsafe_code)]

pub mod record;

pub use record::{MultiXactMember, NeonWalRecord, RecordDecodeError, next_multixact_offset};
