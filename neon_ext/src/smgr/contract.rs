//! What Postgres expects of a storage manager: `f_smgr` of `storage/smgr.h`, in safe terms.

use std::io;
use std::ops::Range;

use pg_types::page::Page;
use pg_types::{BlockNumber, RelTag};

use crate::page_client;

/// What a callback reports. The caller turns it into an ERROR, or in a critical section a PANIC.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The page server could not answer.
    #[error("{0}")]
    PageServer(#[from] page_client::Error),
    /// Size asked of a fork that does not exist.
    #[error("relation fork {0} does not exist")]
    NoSuchFork(RelTag),
    /// The fork would have more blocks than block numbers.
    #[error("cannot extend relation fork {0} beyond {max} blocks", max = pg_types::INVALID_BLOCK_NUMBER)]
    TooManyBlocks(RelTag),
    /// `neon.max_cluster_size`.
    #[error(
        "could not extend relation: the timeline has {size} bytes, neon.max_cluster_size allows {limit}"
    )]
    ClusterFull {
        /// Bytes of the timeline.
        size: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// A spill file failed.
    #[error("could not {action} the spill file of relation fork {rel}, block {block}: {source}")]
    Spill {
        /// What was tried.
        action: &'static str,
        /// Of which fork.
        rel: RelTag,
        /// At which block.
        block: BlockNumber,
        /// Cause.
        source: io::Error,
    },
    /// The file that keeps a tablespace from being dropped failed.
    #[error("could not create file \"{path}\": {source}")]
    Marker {
        /// Its path.
        path: String,
        /// Cause.
        source: io::Error,
    },
}

/// The callbacks that have something to do. Opening, closing, syncing and writing back have not: no file is open and
/// durability is that of WAL.
///
/// All run in any process that touches relations, the checkpointer and the background writer included, possibly with
/// locks held, which holds interrupts off.
pub trait StorageManager {
    /// A new fork, empty. WAL for it is the caller's business (`log_smgrcreate`).
    fn create(&self, rel: RelTag) -> Result<(), Error>;

    /// Whether the fork exists.
    fn exists(&self, rel: RelTag) -> Result<bool, Error>;

    /// The fork is gone. Called after commit: must not fail.
    fn unlink(&self, rel: RelTag);

    /// Adds a block, which is `page`, at `block`; blocks between the present end and it become zeros.
    fn extend(&self, rel: RelTag, block: BlockNumber, page: &Page) -> Result<(), Error>;

    /// Adds blocks of zeros.
    fn zero_extend(&self, rel: RelTag, blocks: Range<u64>) -> Result<(), Error>;

    /// Consecutive blocks will be read soon.
    fn prefetch(&self, rel: RelTag, blocks: Range<BlockNumber>);

    /// Reads consecutive blocks.
    fn read(&self, rel: RelTag, first: BlockNumber, pages: &mut [&mut Page]) -> Result<(), Error>;

    /// A block leaves shared buffers, or is written by a checkpoint and stays. Nobody changes the page meanwhile, but
    /// it may be the shared one: it must not be changed here.
    fn write(&self, rel: RelTag, block: BlockNumber, page: &Page) -> Result<(), Error>;

    /// Number of blocks of the fork.
    fn nblocks(&self, rel: RelTag) -> Result<BlockNumber, Error>;

    /// Cuts the fork. Runs in a critical section (`RelationTruncate`): no network, no allocation by Postgres, and
    /// whatever fails must not matter.
    fn truncate(&self, rel: RelTag, blocks: BlockNumber);
}
