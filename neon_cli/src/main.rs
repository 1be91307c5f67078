//! The neon command line.
fn main() {}
