#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod acceptor;
pub mod change;
pub mod codec;
pub mod command;
pub mod ladder;
pub mod limits;
pub mod membership;
pub mod message;
mod mutant;
pub mod proposer;
pub mod quorum;
mod read;
pub mod refusal;
pub mod term_history;
pub mod version;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod model_check;
#[cfg(test)]
mod refusal_tests;
#[cfg(test)]
mod simulation;
