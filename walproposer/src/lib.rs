#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod backoff;
mod compute;
mod config;
mod driver;
mod feedback;
mod fetch;
mod limits;
mod link;
mod outcome;
mod progress;
mod run;
mod safekeepers;
mod sync;
mod term_file;
mod window;

pub use compute::{APPLICATION_NAME, ComputeError, SLOT_NAME};
pub use config::{ComputeConfig, Config, ConfigError};
pub use feedback::{FEEDBACK_FILE_NAME, FEEDBACK_MAGIC, FEEDBACK_VERSION};
pub use outcome::{Outcome, WalproposerError};
pub use run::run;
pub use sync::sync;
pub use term_file::{TERM_FILE_NAME, TermFileError};
pub use wal_consensus::version::ProtocolVersion;
