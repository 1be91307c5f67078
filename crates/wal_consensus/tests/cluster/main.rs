//! Proposers and acceptors against each other: golden scripts and seeded simulation over the same cluster in memory.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod checker;
mod compute;
mod golden;
mod rng;
mod safekeeper;
mod simulation;
mod wal;
mod world;
