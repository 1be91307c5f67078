//! Every bound of the protocol in one place, with its reason.

/// Most safekeepers in one set of a configuration. The known protocol has 31 usable slots; more members than that
/// would only slow every commit.
pub const MEMBERS_MAX: usize = 31;

/// Most safekeepers a proposer talks to: two full sets of a joint configuration.
pub const SAFEKEEPERS_MAX: usize = 2 * MEMBERS_MAX;

/// Most WAL bytes in one append request: `MAX_SEND_SIZE` of `walsender.c`, 16 pages, so that one message of the
/// walsender fits into one message to a safekeeper.
pub const APPEND_BYTES_MAX: usize = 16 * 8192;

/// Longest message of either side. An append request is the longest one that is not a term history; a history of
/// this size would hold 60,000 elections.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// WAL bytes handed to one safekeeper's connection that are not yet written to its socket. Enough to keep a socket
/// busy between two turns of the proposer, little enough that a slow safekeeper costs no memory.
pub const QUEUED_BYTES_MAX: u64 = 1024 * 1024;
