//! Proposers and acceptors against each other, in memory: golden scripts and seeded schedules over the same cluster.

mod checker;
mod compute;
mod controller;
mod golden;
mod node;
mod rng;
mod schedule;
mod show;
mod tests;
mod trace;
mod wal;
mod wire;
mod world;
