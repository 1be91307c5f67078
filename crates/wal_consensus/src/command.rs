//! What the runtime must do for an acceptor, in the order given.

use bytes::Bytes;
use pg_types::{Lsn, NodeId, TenantId, Term, TimelineId};
use serde::{Deserialize, Serialize};

use crate::membership::MembershipConf;
use crate::message::AcceptorMessage;
use crate::refusal::{Quarantine, Refusal};
use crate::term_history::TermHistory;

/// A connection of a proposer to a safekeeper, numbered by the safekeeper's runtime and never used twice for a
/// timeline while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// Which timeline on which safekeeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AcceptorIdentity {
    /// The safekeeper.
    pub node_id: NodeId,
    /// The tenant.
    pub tenant_id: TenantId,
    /// The timeline.
    pub timeline_id: TimelineId,
}

/// The part of a safekeeper's control file that consensus decides upon. It replaces the whole of the former one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AcceptorState {
    /// The membership configuration.
    pub mconf: MembershipConf,
    /// The promise: nothing of a lower term is accepted any more.
    pub term: Term,
    /// History of the log; may speak of WAL that is not here yet.
    pub term_history: TermHistory,
    /// `PG_VERSION_NUM`; 0 while unknown.
    pub pg_version: u32,
    /// `system_identifier`; 0 while unknown.
    pub system_id: u64,
    /// Bytes in a WAL segment; 0 while unknown.
    pub wal_seg_size: u32,
    /// First position of the timeline anywhere; 0 while unknown.
    pub timeline_start_lsn: Lsn,
    /// First position that was ever on this safekeeper's disk.
    pub local_start_lsn: Lsn,
    /// Committed, and here.
    pub commit_lsn: Lsn,
    /// Everybody has everything below (`peer_horizon_lsn` in HTTP answers).
    pub truncate_lsn: Lsn,
}

/// One duty of an acceptor's runtime. `README.md` holds the contract; in short: in order, each one finished before the
/// next begins, except that a [`FlushWal`](AcceptorCommand::FlushWal) that may wait does not hold up anything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AcceptorCommand {
    /// Make this state durable.
    SaveState(Box<AcceptorState>),
    /// Make `end_lsn` the durable end of the log: cut what is behind it, zero the rest of its segment. When there is no
    /// WAL at all, the log begins there.
    TruncateWal {
        /// The new end, always the end of a record.
        end_lsn: Lsn,
    },
    /// Write these bytes at the end of the log.
    WriteWal {
        /// Position of the first byte.
        begin_lsn: Lsn,
        /// The bytes; never empty.
        wal: Bytes,
    },
    /// Make everything written durable and report it with
    /// [`AcceptorInput::Flushed`](crate::acceptor::AcceptorInput::Flushed).
    FlushWal {
        /// Whether more input may be taken first, so that one flush serves many requests.
        may_wait: bool,
    },
    /// Readers may now be served up to here.
    CommitAdvanced {
        /// The new position.
        commit_lsn: Lsn,
    },
    /// Send this to the proposer. In an append response the runtime fills in the feedback of standbys and page servers.
    Reply {
        /// To whom.
        conn: ConnId,
        /// What.
        message: AcceptorMessage,
    },
    /// Tell the proposer the reason, then close its connection.
    Close {
        /// Whose.
        conn: ConnId,
        /// Why.
        refusal: Box<Refusal>,
    },
    /// Take this timeline, and only it, out of service: something that cannot be has happened.
    Quarantine {
        /// What.
        reason: Quarantine,
    },
}
