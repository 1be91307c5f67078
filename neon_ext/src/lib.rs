//! Postgres side
