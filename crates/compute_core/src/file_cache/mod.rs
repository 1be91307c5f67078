//! The local file cache: pages of permanent relations in one local file, and here what is in it.
//!
//! The file is divided into slots of one chunk each; a chunk is a power of two of consecutive blocks of a fork. Chunks are
//! spread over partitions by their hash. A partition is a table of chunks, of which node *n* owns slot *n* of the
//! partition, under one lock, which nobody holds while the file is read or written:
//!
//! ```text
//! reader    look: blocks there? ─ lock released ─ read file ─ version of the slot unchanged? else again
//! writer    begin: block pending, version changed ─ lock released ─ write file ─ finish: block available or absent
//! ```
//!
//! A chunk with a pending block keeps its slot. Who wants a pending block waits. What is invalidated while it is
//! pending becomes absent when its writer is done, so that nobody who invalidates has to wait.
//!
//! What makes a page from the page server safe to keep without the lock of a buffer: its block is pending first, then the
//! last-written LSN is looked at. Whoever writes a newer version raises that LSN first and calls
//! [`Partition::begin_write`] then, which waits for what is pending and overwrites it.

mod block_set;
mod chunk;
mod geometry;
#[cfg(test)]
mod interleavings;
mod partition;
pub mod saved;

pub use block_set::BlockSet;
pub use chunk::{Chunk, SlotState};
pub use geometry::{CHUNK_BLOCKS_MAX, ChunkSpan, Geometry, PARTITIONS_MAX};
pub use partition::{Begin, Found, Partition, PartitionHeader, PartitionView, Shrink};

use crate::last_written::BlockKey;

/// Key of a chunk: a [`BlockKey`] whose block number is that of the chunk.
pub type ChunkKey = BlockKey;
