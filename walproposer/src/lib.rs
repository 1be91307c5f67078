#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod backoff;
mod compute;
mod config;
mod driver;
mod feedback;
mod fetch;
mod held;
mod hosted;
mod leisure;
mod limits;
mod link;
mod outcome;
mod progress;
mod run;
mod safekeepers;
mod sync;
mod term_file;
mod window;

pub use compute::{
    APPLICATION_NAME, Compute, ComputeError, SLOT_NAME, ServerIdentity, StreamEvent,
};
pub use config::{ComputeConfig, Config, ConfigError};
pub use feedback::{FEEDBACK_FILE_NAME, FEEDBACK_MAGIC, FEEDBACK_VERSION};
pub use hosted::{HostedEnd, HostedError, TARGET, run_hosted};
pub use outcome::{Outcome, WalproposerError};
pub use run::{run, run_with};
pub use sync::sync;
pub use term_file::{TERM_FILE_NAME, TermFileError};
pub use wal_consensus::version::ProtocolVersion;
