//! What a record does to anything but the blocks it references.

use bytes::Bytes;
use pg_types::{
    BlockNumber, Lsn, MultiXactId, MultiXactOffset, Oid, RelFileLocator, RelTag, SlruKind,
    TimestampTz, TransactionId,
};

use crate::checkpoint::CheckPoint;

/// `MultiXactMember` of `access/multixact.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MultiXactMember {
    /// The locking or updating transaction.
    pub xid: TransactionId,
    /// `MultiXactStatus`, 0 to 5.
    pub status: u8,
}

/// Progress that a commit makes for its replication origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginProgress {
    /// The origin's id (`xl_origin` of the record's header).
    pub id: u16,
    /// Position at the origin.
    pub remote_lsn: Lsn,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Committed, at this time.
    Committed(TimestampTz),
    /// Aborted.
    Aborted,
}

/// End of a transaction (`xl_xact_commit`, `xl_xact_abort`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionEnd {
    /// The transaction; of a prepared one, not the one that ended it.
    pub xid: TransactionId,
    /// Its subtransactions that end with it.
    pub subxacts: Vec<TransactionId>,
    /// Commit or abort.
    pub outcome: Outcome,
    /// Relations whose files go, all forks.
    pub dropped: Vec<RelFileLocator>,
    /// The transaction was prepared: its state file goes.
    pub prepared: bool,
    /// Progress of the replication origin.
    pub origin: Option<OriginProgress>,
}

/// `xl_smgr_truncate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationTruncate {
    /// The relation.
    pub rel: RelFileLocator,
    /// New length of the main fork in blocks; the other forks keep what describes these.
    pub nblocks: BlockNumber,
    /// Cut the main fork.
    pub heap: bool,
    /// Cut the visibility map.
    pub vm: bool,
    /// Cut the free space map.
    pub fsm: bool,
}

/// A database directory (`GetDatabasePath`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatabaseDirectory {
    /// Tablespace.
    pub spc_oid: Oid,
    /// Database; 0 in `pg_global`.
    pub db_oid: Oid,
}

/// `xl_multixact_truncate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MultiXactTruncate {
    /// Database with the oldest multixact.
    pub oldest_multi_db: Oid,
    /// First offsets entry that goes.
    pub start_trunc_off: MultiXactId,
    /// First offsets entry that stays.
    pub end_trunc_off: MultiXactId,
    /// First member that goes.
    pub start_trunc_memb: MultiXactOffset,
    /// First member that stays.
    pub end_trunc_memb: MultiXactOffset,
}

/// Bits of the visibility map that a heap record clears without referencing the map's block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmClear {
    /// The heap relation.
    pub rel: RelFileLocator,
    /// Heap block that gets the new tuple version (also: the only block of an insert or delete).
    pub new_heap_blkno: Option<BlockNumber>,
    /// Heap block of the old tuple version.
    pub old_heap_blkno: Option<BlockNumber>,
    /// `VISIBILITYMAP_VALID_BITS` or `VISIBILITYMAP_ALL_FROZEN`.
    pub flags: u8,
}

/// One thing that a record does beside its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// `XLOG_NEXTOID`.
    NextOid(Oid),
    /// A checkpoint record.
    Checkpoint {
        /// Shutdown rather than online.
        shutdown: bool,
        /// Its struct.
        checkpoint: CheckPoint,
    },
    /// `wal_level` changed (`XLOG_PARAMETER_CHANGE`, `XLOG_END_OF_RECOVERY`).
    WalLevel(i32),
    /// `full_page_writes` changed (`XLOG_FPW_CHANGE`).
    FullPageWrites(bool),
    /// A transaction ended.
    TransactionEnd(TransactionEnd),
    /// A transaction was prepared: its state file is the record's main data.
    Prepare {
        /// The transaction.
        xid: TransactionId,
        /// Content of the state file.
        state: Bytes,
    },
    /// `XLOG_SMGR_CREATE`: the fork exists, with whatever length it had or 0.
    RelationCreate(RelTag),
    /// `XLOG_SMGR_TRUNCATE`.
    RelationTruncate(RelationTruncate),
    /// The fork has at least so many blocks (record of the `neon` resource manager).
    RelationExtend {
        /// The fork.
        rel: RelTag,
        /// Its least length.
        nblocks: BlockNumber,
    },
    /// A page of zeros in an SLRU (`CLOG_ZEROPAGE`, `XLOG_MULTIXACT_ZERO_*_PAGE`).
    SlruZeroPage {
        /// The SLRU.
        kind: SlruKind,
        /// Page number.
        pageno: u32,
    },
    /// `CLOG_TRUNCATE`.
    ClogTruncate {
        /// First page that stays.
        pageno: u32,
        /// Oldest transaction whose status is kept.
        oldest_xid: TransactionId,
        /// Database that holds it back.
        oldest_xid_db: Oid,
    },
    /// `XLOG_MULTIXACT_CREATE_ID`.
    MultiXactCreate {
        /// The multixact.
        mid: MultiXactId,
        /// Where its members begin.
        moff: MultiXactOffset,
        /// The members.
        members: Vec<MultiXactMember>,
    },
    /// `XLOG_MULTIXACT_TRUNCATE_ID`.
    MultiXactTruncate(MultiXactTruncate),
    /// `XLOG_DBASE_CREATE_FILE_COPY`: everything of one directory is copied to another.
    DatabaseCopy {
        /// From.
        source: DatabaseDirectory,
        /// To; what was there goes.
        target: DatabaseDirectory,
    },
    /// `XLOG_DBASE_CREATE_WAL_LOG`: an empty directory; its content is logged block by block.
    DatabaseCreate(DatabaseDirectory),
    /// `XLOG_DBASE_DROP`, once for each tablespace.
    DatabaseDrop(DatabaseDirectory),
    /// `XLOG_RELMAP_UPDATE`: the directory's `pg_filenode.map`.
    RelMapUpdate {
        /// Where.
        directory: DatabaseDirectory,
        /// The file, 524 bytes.
        file: Bytes,
    },
    /// `XLOG_RUNNING_XACTS`.
    RunningXacts {
        /// Next transaction id when the snapshot was taken.
        next_xid: TransactionId,
        /// Oldest transaction that runs.
        oldest_running_xid: TransactionId,
    },
    /// Visibility map bits to clear.
    VmClear(VmClear),
    /// `XLOG_REPLORIGIN_SET`.
    OriginSet {
        /// The origin.
        id: u16,
        /// Position at the origin.
        remote_lsn: Lsn,
        /// The position may go back.
        force: bool,
    },
    /// `XLOG_REPLORIGIN_DROP`.
    OriginDrop {
        /// The origin.
        id: u16,
    },
    /// A file that the compute logged as a message with prefix `neon-file:` (L157); no content removes it.
    AuxFile {
        /// Path below PGDATA.
        path: String,
        /// Content.
        content: Bytes,
    },
}
