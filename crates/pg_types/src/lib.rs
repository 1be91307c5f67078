//! Postgres vocabulary shared by every crate of the workspace. No I/O happens here.
//!
//! Names follow PostgreSQL: [`Lsn`] is what `pg_lsn` prints, [`RelFileLocator`], [`ForkNumber`] and
//! [`BlockNumber`] are the structs of `storage/relfilelocator.h`, `common/relpath.h` and
//! `storage/block.h`.
#![forbid(unsafe_code)]

pub mod fork;
pub mod ids;
pub mod key;
pub mod lsn;
pub mod page;
pub mod relation;
pub mod slru;
pub mod time;
pub mod xlog;

pub use fork::ForkNumber;
pub use ids::{Generation, NodeId, TenantId, Term, TimelineId};
pub use key::Key;
pub use lsn::Lsn;
pub use relation::{RelFileLocator, RelTag};
pub use slru::SlruKind;
pub use time::TimestampTz;

/// `Oid` of `postgres_ext.h`.
pub type Oid = u32;
/// `BlockNumber` of `storage/block.h`; [`INVALID_BLOCK_NUMBER`] is not a block.
pub type BlockNumber = u32;
/// `TransactionId` of `c.h`: 32 bits, wraps around.
pub type TransactionId = u32;
/// `MultiXactId` of `c.h`.
pub type MultiXactId = u32;
/// `MultiXactOffset` of `c.h`.
pub type MultiXactOffset = u32;
/// `RmgrId` of `access/rmgr.h`.
pub type RmgrId = u8;

/// `InvalidBlockNumber` of `storage/block.h`.
pub const INVALID_BLOCK_NUMBER: BlockNumber = 0xFFFF_FFFF;
/// `BLCKSZ`: bytes in a page. The builds of this project use Postgres' default.
pub const BLCKSZ: usize = 8192;
/// Postgres' `TimeLineID` is always 1 here: a branch is a timeline of *this* system, not of Postgres.
pub const PG_TLI: u32 = 1;
/// Major version that this workspace is written for.
pub const PG_MAJORVERSION: u32 = 17;
