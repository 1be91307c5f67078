//! Copying a timeline from one safekeeper to another: a tar stream of the control file and the WAL, and the
//! promise at its end that all of it belongs together.
//!
//! ```text
//! safekeeper.control          the state at the beginning
//! 000000010000000000000001    segments up to the end of the log of that state, the last one as long as it is filled
//! …
//! end                         the stream is whole, and the log was not cut while it was read
//! ```

mod receive;
mod send;

pub use receive::{ReceiveError, receive};
pub use send::{SendError, send};

/// Name of the last entry.
const END: &str = "end";
