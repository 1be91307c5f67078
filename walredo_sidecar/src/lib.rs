//! WAL redo in a jailed Postgres: launch, protocol, pool, and the records applied in Rust
