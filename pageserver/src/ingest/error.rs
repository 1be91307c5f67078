//! Why ingest stops.

use layer_store::{PutError, ReadError};
use pg_types::{BlockNumber, Key, Lsn, RelTag, TransactionId};
use wal_decoder::image::ImageError;
use wal_decoder::{InterpretError, RecordError};

/// Why a record was not applied. The [`Ingest`](super::Ingest) that returned it takes no more records.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The record is malformed.
    #[error("record at {lsn}: {source}")]
    Record {
        /// Start of the record.
        lsn: Lsn,
        /// Cause.
        source: RecordError,
    },
    /// The record has no meaning here.
    #[error(transparent)]
    Interpret(#[from] InterpretError),
    /// An image cannot be restored.
    #[error("record at {lsn}: {source}")]
    Image {
        /// Start of the record.
        lsn: Lsn,
        /// Cause.
        source: ImageError,
    },
    /// A block reference names no block that can exist.
    #[error("record at {lsn} names block {blkno} of relation {rel}")]
    Block {
        /// Start of the record.
        lsn: Lsn,
        /// Relation fork.
        rel: RelTag,
        /// The block.
        blkno: BlockNumber,
    },
    /// A relation jumps in size further than any real one does.
    #[error(
        "record that ends at {lsn} extends relation {rel} to {nblocks} blocks, over too many old ones"
    )]
    Gap {
        /// End of the record.
        lsn: Lsn,
        /// Relation fork.
        rel: RelTag,
        /// Its new size.
        nblocks: BlockNumber,
    },
    /// A transaction id belongs to no epoch.
    #[error("record at {lsn}: transaction {xid} is newer than the next transaction id")]
    Xid {
        /// Start of the record.
        lsn: Lsn,
        /// The transaction.
        xid: TransactionId,
    },
    /// The timeline has no checkpoint: nothing was imported.
    #[error("there is no checkpoint at {lsn}")]
    NoCheckpoint {
        /// Position of the store.
        lsn: Lsn,
    },
    /// A stored value is not what ingest or import writes.
    #[error("stored value of {key} at {lsn} is malformed")]
    StoredValue {
        /// Its key.
        key: Key,
        /// LSN of the read.
        lsn: Lsn,
    },
    /// A record needs pages, and nobody can rebuild them here.
    #[error("record at {lsn} copies a database, which needs a page reader")]
    NoPageReader {
        /// Start of the record.
        lsn: Lsn,
    },
    /// A page could not be rebuilt.
    #[error("page {key} at {lsn}: {reason}")]
    Page {
        /// The page.
        key: Key,
        /// LSN of the read.
        lsn: Lsn,
        /// Why, in words.
        reason: String,
    },
    /// The store refused to read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store refused to write.
    #[error(transparent)]
    Put(#[from] PutError),
    /// An earlier record failed.
    #[error("ingest stopped at an earlier error")]
    Stopped,
}
