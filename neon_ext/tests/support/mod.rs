//! A compute on a page service that serves a stock data directory.
//!
//! The page service here never sees WAL: it answers as the real one would at the moment the compute started. That is
//! enough for what these tests look at, the behaviour towards a page server that is slow, wrong or gone.

pub mod compute;
pub mod page_service;
