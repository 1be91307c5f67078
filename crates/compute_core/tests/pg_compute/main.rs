//! The extension in a server, on a page service that serves a stock data directory.
//!
//! The page service never sees WAL: it answers as the real one would at the moment the compute started. That is enough
//! for what these tests look at, the behaviour towards a page server that is slow, wrong or gone.
//!
//! Needs NEON_PG_INSTALL: a patched PostgreSQL with the libraries `neon` and `neon_rmgr` installed.

mod audit;
mod backpressure;
mod compute;
mod file_cache;
mod page_client;
mod page_service;
mod prewarm;
mod readahead;
