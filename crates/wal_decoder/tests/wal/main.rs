//! The decoder over WAL that is laid out by hand, and over bytes that are no WAL.
#![expect(clippy::unwrap_used, reason = "the builders below panic on a mistake in the test itself")]

mod build;
mod records;
mod stream;
