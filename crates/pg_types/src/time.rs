//! Postgres timestamps.

/// `TimestampTz` of `datatype/timestamp.h`: microseconds since 2000-01-01 00:00 UTC.
pub type TimestampTz = i64;

/// Seconds between the Unix epoch and Postgres' epoch.
pub const POSTGRES_EPOCH_UNIX_SECS: i64 = 946_684_800;
