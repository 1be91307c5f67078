//! Everything that touches Postgres' memory or functions directly.

mod guc;
mod init;
