//! Safekeeper: durable WAL of a timeline, one member of the quorum
