//! Records of resource manager 134 and the command ids they carry: bytes in, bytes out.
//!
//! The library `neon_rmgr` makes and replays these records inside Postgres. Everything that can be decided
//! without a server is here, where it can be tested without one: which tuples a heap record touched, where their
//! command ids are on a page, and what the trailer with them looks like.

mod heap_page;
mod record;
mod trailer;

pub use heap_page::{Cid, PageError, cid, keep_cids, set_cid};
pub use record::{HeapOp, RecordError, RelationExtend, Touched, Tuples};
pub use trailer::{SIZE_OF_TRAILER, Trailer};

use pg_types::RmgrId;

/// Number of the resource manager, in the range for custom ones.
pub const RM_NEON_ID: RmgrId = 134;
/// `RM_HEAP_ID` of `access/rmgrlist.h`.
pub const RM_HEAP_ID: RmgrId = 10;
/// `RM_HEAP2_ID` of `access/rmgrlist.h`.
pub const RM_HEAP2_ID: RmgrId = 9;
