//! neon: one command line and one binary for every process of the system
