//! Postgres wire protocol, both ends: framing without copies, async backend, replication client
