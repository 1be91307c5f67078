//! Asking for pages before they are needed (L005, L006): what is under way, and what will be needed next.
//!
//! All of it belongs to one process; processes share what was read through the local file cache.

mod ring;
mod runs;
mod scans;

pub use ring::{Answer, Found, Outcome, Purpose, Ring, Ticket};
pub use runs::Runs;
pub use scans::{Position, Scans};
