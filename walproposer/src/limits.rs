//! Every bound and wait of this crate, with its reason.

use std::time::Duration;

/// WAL kept for safekeepers that come back, and for those that are slower than the compute. More than this and WAL that
/// a quorum has is forgotten; a safekeeper that lacks it gets it from another one.
pub(crate) const WINDOW_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// WAL on its way from a donor to one safekeeper.
pub(crate) const FETCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Everybody hears from us this often, so that silence means trouble.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// How long a commit position may wait for WAL to go out with.
pub(crate) const TELL_COMMIT_PAUSE: Duration = Duration::from_millis(2);
/// How long the end of a compute waits for safekeepers to have heard of it.
pub(crate) const GOODBYE_MAX: Duration = Duration::from_millis(500);
/// How long WAL for a safekeeper that is not needed for a commit may wait for more. Also how long a commit waits for one that
/// is needed and does not answer before the others are asked: more than a commit takes on a machine that is busy.
pub(crate) const LEISURE_PAUSE: Duration = Duration::from_millis(20);
/// So much WAL in one piece waits for nothing, neither for more nor for an answer: there is no more to be saved.
pub(crate) const LEISURE_BYTES_MAX: u64 = 32 * 1024;
/// A safekeeper that answers nothing for so long, ten heartbeats included, is disconnected. Commits may have to wait for that:
/// when the one that falls silent was giving WAL to another that a majority needs, nobody else is asked before.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(10);
/// The compute's walsender speaks every half `wal_sender_timeout` (30 s) at the least, unless it is switched off.
pub(crate) const COMPUTE_WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// First pause before connecting again; doubles up to [`BACKOFF_MAX`].
pub(crate) const BACKOFF_MIN: Duration = Duration::from_millis(20);
/// Longest pause before connecting again: a safekeeper that comes back waits no longer than this.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// How long a walproposer that was outvoted holds still before it campaigns again: time for a successor to be elected and
/// to leave its mark, which takes a few round trips and fsyncs. Commits wait for it when there was no successor.
pub(crate) const OUTVOTED_PAUSE: Duration = Duration::from_millis(300);
/// Messages without WAL (heartbeats, commit positions) that may wait in front of one slow safekeeper; further ones are
/// left out, since each later one says more.
pub(crate) const EMPTY_APPENDS_MAX: usize = 64;
/// Events taken in one go before the compute is told what they amount to.
pub(crate) const EVENTS_PER_TURN: usize = 64;
/// Bytes gathered for one write to a safekeeper.
pub(crate) const WRITE_BATCH_BYTES: usize = 256 * 1024;
/// The proposer, which lets `QUEUED_BYTES_MAX` wait for a connection, is told of so many written bytes, not of each small append.
pub(crate) const WRITTEN_BYTES_TOLD: u64 = 64 * 1024;
