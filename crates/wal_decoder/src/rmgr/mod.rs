//! Resource managers: which there are (`access/rmgrlist.h`), and what their records do beside their blocks.
//!
//! | id | name | here |
//! |---|---|---|
//! | 0 | XLOG | `xlog.rs` |
//! | 1 | Transaction | `xact.rs` |
//! | 2 | Storage | `smgr.rs` |
//! | 3 | CLOG | `clog.rs` |
//! | 4 | Database | `dbase.rs` |
//! | 5 | Tablespace | nothing: a tablespace is symbolic links, which no compute has |
//! | 6 | MultiXact | `multixact.rs` |
//! | 7 | RelMap | `relmap.rs` |
//! | 8 | Standby | `standby.rs` |
//! | 9, 10 | Heap2, Heap | `heap.rs` |
//! | 11 to 17, 20 | Btree, Hash, Gin, Gist, Sequence, SPGist, BRIN, Generic | blocks only |
//! | 18 | CommitTs | nothing: `pg_commit_ts` is not kept |
//! | 19 | ReplicationOrigin | `replorigin.rs` |
//! | 21 | LogicalMessage | `logicalmsg.rs` |
//! | 134 | neon | `neon.rs` |

pub mod clog;
pub mod dbase;
pub mod heap;
pub mod logicalmsg;
pub mod multixact;
pub mod neon;
pub mod relmap;
pub mod replorigin;
pub mod smgr;
pub mod standby;
pub mod xact;
pub mod xlog;

use pg_types::{Lsn, RmgrId};

use crate::effects::Effect;
use crate::reader::ShortRead;
use crate::record::DecodedRecord;

/// `XLR_INFO_MASK`: bits of `xl_info` that belong to WAL insertion, not to the resource manager.
pub const XLR_INFO_MASK: u8 = 0x0F;

/// `RM_XLOG_ID`.
pub const RM_XLOG_ID: RmgrId = 0;
/// `RM_XACT_ID`.
pub const RM_XACT_ID: RmgrId = 1;
/// `RM_SMGR_ID`.
pub const RM_SMGR_ID: RmgrId = 2;
/// `RM_CLOG_ID`.
pub const RM_CLOG_ID: RmgrId = 3;
/// `RM_DBASE_ID`.
pub const RM_DBASE_ID: RmgrId = 4;
/// `RM_TBLSPC_ID`.
pub const RM_TBLSPC_ID: RmgrId = 5;
/// `RM_MULTIXACT_ID`.
pub const RM_MULTIXACT_ID: RmgrId = 6;
/// `RM_RELMAP_ID`.
pub const RM_RELMAP_ID: RmgrId = 7;
/// `RM_STANDBY_ID`.
pub const RM_STANDBY_ID: RmgrId = 8;
/// `RM_HEAP2_ID`.
pub const RM_HEAP2_ID: RmgrId = 9;
/// `RM_HEAP_ID`.
pub const RM_HEAP_ID: RmgrId = 10;
/// `RM_BTREE_ID`, the first of those that only change blocks.
pub const RM_BTREE_ID: RmgrId = 11;
/// `RM_HASH_ID`.
pub const RM_HASH_ID: RmgrId = 12;
/// `RM_GIN_ID`.
pub const RM_GIN_ID: RmgrId = 13;
/// `RM_GIST_ID`.
pub const RM_GIST_ID: RmgrId = 14;
/// `RM_SEQ_ID`.
pub const RM_SEQ_ID: RmgrId = 15;
/// `RM_SPGIST_ID`.
pub const RM_SPGIST_ID: RmgrId = 16;
/// `RM_BRIN_ID`.
pub const RM_BRIN_ID: RmgrId = 17;
/// `RM_COMMIT_TS_ID`.
pub const RM_COMMIT_TS_ID: RmgrId = 18;
/// `RM_REPLORIGIN_ID`.
pub const RM_REPLORIGIN_ID: RmgrId = 19;
/// `RM_GENERIC_ID`.
pub const RM_GENERIC_ID: RmgrId = 20;
/// `RM_LOGICALMSG_ID`.
pub const RM_LOGICALMSG_ID: RmgrId = 21;
pub use neon_wal::RM_NEON_ID;

/// Why a record cannot be interpreted. Ingest stops there: to go on would lose what the record does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record at {lsn} (resource manager {rmid}, info {info:02X}): {kind}")]
pub struct InterpretError {
    /// Start of the record.
    pub lsn: Lsn,
    /// `xl_rmid`.
    pub rmid: RmgrId,
    /// `xl_info`.
    pub info: u8,
    /// What is wrong.
    pub kind: InterpretErrorKind,
}

/// What can be wrong with a record's meaning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InterpretErrorKind {
    /// No resource manager with this id is known here.
    #[error("unknown resource manager")]
    UnknownRmgr,
    /// The resource manager has no such record.
    #[error("unknown record kind")]
    UnknownInfo,
    /// The main data is too short.
    #[error("main data: {0}")]
    Short(#[from] ShortRead),
    /// A block reference that this kind always has is not there.
    #[error("block reference {0} is missing")]
    MissingBlock(u8),
    /// A field has a value that it cannot have.
    #[error("{field} is {value}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What is there.
        value: i64,
    },
    /// A record of resource manager 134 is not what its kind says.
    #[error(transparent)]
    Neon(#[from] neon_wal::RecordError),
    /// The command ids behind a heap record of resource manager 134 are missing or malformed.
    #[error("malformed command ids behind the main data")]
    Trailer,
    /// A text is no UTF-8, or not terminated.
    #[error("{field} is not a valid string")]
    Text {
        /// Its name.
        field: &'static str,
    },
}

type Effects = Result<(), InterpretErrorKind>;

/// Appends what `record` does beside its blocks. Most records do nothing else and append nothing.
pub fn interpret(record: &DecodedRecord, effects: &mut Vec<Effect>) -> Result<(), InterpretError> {
    let before = effects.len();
    dispatch(record, effects).map_err(|kind| {
        effects.truncate(before);
        InterpretError { lsn: record.start_lsn, rmid: record.rmid, info: record.info, kind }
    })
}

fn dispatch(record: &DecodedRecord, effects: &mut Vec<Effect>) -> Effects {
    match record.rmid {
        RM_XLOG_ID => xlog::interpret(record, effects),
        RM_XACT_ID => xact::interpret(record, effects),
        RM_SMGR_ID => smgr::interpret(record, effects),
        RM_CLOG_ID => clog::interpret(record, effects),
        RM_DBASE_ID => dbase::interpret(record, effects),
        RM_MULTIXACT_ID => multixact::interpret(record, effects),
        RM_RELMAP_ID => relmap::interpret(record, effects),
        RM_STANDBY_ID => standby::interpret(record, effects),
        RM_HEAP2_ID => heap::interpret_heap2(record, effects),
        RM_HEAP_ID => heap::interpret_heap(record, effects),
        RM_REPLORIGIN_ID => replorigin::interpret(record, effects),
        RM_LOGICALMSG_ID => logicalmsg::interpret(record, effects),
        RM_NEON_ID => neon::interpret(record, effects),
        RM_TBLSPC_ID | RM_COMMIT_TS_ID => Ok(()),
        RM_BTREE_ID..=RM_BRIN_ID | RM_GENERIC_ID => Ok(()),
        _ => Err(InterpretErrorKind::UnknownRmgr),
    }
}

/// The resource manager's part of `xl_info`.
fn rmgr_info(record: &DecodedRecord) -> u8 {
    record.info & !XLR_INFO_MASK
}

/// A 64-bit SLRU page number (PG 17) as the 32 bits that every page in use fits.
fn slru_page(pageno: i64) -> Result<u32, InterpretErrorKind> {
    u32::try_from(pageno).map_err(|_| InterpretErrorKind::Field { field: "pageno", value: pageno })
}

/// A count that must not be negative.
fn count(field: &'static str, value: i32) -> Result<u32, InterpretErrorKind> {
    u32::try_from(value).map_err(|_| InterpretErrorKind::Field { field, value: i64::from(value) })
}

fn locator(reader: &mut crate::reader::Reader<'_>) -> Result<pg_types::RelFileLocator, ShortRead> {
    Ok(pg_types::RelFileLocator {
        spc_oid: reader.u32()?,
        db_oid: reader.u32()?,
        rel_number: reader.u32()?,
    })
}
