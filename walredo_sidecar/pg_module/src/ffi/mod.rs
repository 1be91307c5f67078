//! Everything that touches Postgres or the kernel directly.
//!
//! Calls into Postgres are plain C calls without a guard around each: no Postgres error ever unwinds or jumps
//! through this crate, because [`log`] ends the process while the error is being reported (design.md D6).

mod inmem_smgr;
mod jail;
mod log;
mod pg;
mod redo;
mod single;
mod stdio;
mod takeover;

pub use takeover::install;
