//! Messages inside the CopyData of a replication stream. Stock ones as in `walsender.c`
//! (`XLogSendPhysical`, `WalSndKeepalive`, `ProcessStandbyReplyMessage`, `ProcessStandbyHSFeedbackMessage`),
//! and the page server's feedback. All integers are big-endian.

mod feedback;

use bytes::{BufMut, Bytes, BytesMut};
use pg_types::{Lsn, TimestampTz};

pub use feedback::PageserverFeedback;

use crate::pq_proto::ProtocolError;
use crate::read::Reader;

/// From a walsender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalSenderMessage {
    /// `w`: WAL.
    XLogData {
        /// Position of the first byte.
        wal_start: Lsn,
        /// End of WAL on the sender when this was sent.
        wal_end: Lsn,
        /// Sender's clock, microseconds since 2000-01-01.
        timestamp: TimestampTz,
        /// The bytes; a slice of the receive buffer.
        data: Bytes,
    },
    /// `k`: the sender is alive.
    KeepAlive {
        /// End of WAL on the sender when this was sent.
        wal_end: Lsn,
        /// Sender's clock, microseconds since 2000-01-01.
        timestamp: TimestampTz,
        /// Whether the sender wants an answer at once.
        reply_requested: bool,
    },
}

impl WalSenderMessage {
    /// Interprets the payload of a CopyData message.
    pub fn parse(payload: Bytes) -> Result<WalSenderMessage, ProtocolError> {
        let mut body = Reader::new(payload);
        match body.u8("replication message type")? {
            b'w' => Ok(WalSenderMessage::XLogData {
                wal_start: Lsn(body.u64("XLogData start")?),
                wal_end: Lsn(body.u64("XLogData end")?),
                timestamp: body.i64("XLogData timestamp")?,
                data: body.into_rest(),
            }),
            b'k' => {
                let message = WalSenderMessage::KeepAlive {
                    wal_end: Lsn(body.u64("keepalive end")?),
                    timestamp: body.i64("keepalive timestamp")?,
                    reply_requested: body.u8("keepalive flag")? != 0,
                };
                body.finish("keepalive")?;
                Ok(message)
            }
            tag => Err(ProtocolError::UnknownTag(tag)),
        }
    }
}

/// `r`: how far a standby is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StandbyStatusUpdate {
    /// Written up to here.
    pub write_lsn: Lsn,
    /// Durable up to here.
    pub flush_lsn: Lsn,
    /// Applied up to here.
    pub apply_lsn: Lsn,
    /// Standby's clock, microseconds since 2000-01-01.
    pub timestamp: TimestampTz,
    /// Whether the standby wants a keepalive at once.
    pub reply_requested: bool,
}

/// `h`: the oldest transactions a standby's queries need. An xid of 0 means none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HotStandbyFeedback {
    /// Standby's clock, microseconds since 2000-01-01.
    pub timestamp: TimestampTz,
    /// Oldest xid.
    pub xmin: u32,
    /// Its epoch.
    pub xmin_epoch: u32,
    /// Oldest xid for catalogs.
    pub catalog_xmin: u32,
    /// Its epoch.
    pub catalog_xmin_epoch: u32,
}

/// To a walsender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StandbyMessage {
    /// `r`
    Status(StandbyStatusUpdate),
    /// `h`
    HotStandbyFeedback(HotStandbyFeedback),
    /// `z`: progress of a page server.
    PageserverFeedback(PageserverFeedback),
}

impl StandbyMessage {
    /// Interprets the payload of a CopyData message.
    pub fn parse(payload: Bytes) -> Result<StandbyMessage, ProtocolError> {
        let mut body = Reader::new(payload);
        match body.u8("standby message type")? {
            b'r' => {
                let status = StandbyStatusUpdate {
                    write_lsn: Lsn(body.u64("status write position")?),
                    flush_lsn: Lsn(body.u64("status flush position")?),
                    apply_lsn: Lsn(body.u64("status apply position")?),
                    timestamp: body.i64("status timestamp")?,
                    reply_requested: body.u8("status flag")? != 0,
                };
                body.finish("standby status")?;
                Ok(StandbyMessage::Status(status))
            }
            b'h' => {
                let feedback = HotStandbyFeedback {
                    timestamp: body.i64("hot standby timestamp")?,
                    xmin: body.u32("hot standby xmin")?,
                    xmin_epoch: body.u32("hot standby xmin epoch")?,
                    catalog_xmin: body.u32("hot standby catalog xmin")?,
                    catalog_xmin_epoch: body.u32("hot standby catalog epoch")?,
                };
                body.finish("hot standby feedback")?;
                Ok(StandbyMessage::HotStandbyFeedback(feedback))
            }
            b'z' => {
                let declared = body.u64("feedback length")?;
                if usize::try_from(declared) != Ok(body.remaining()) {
                    let value = i64::try_from(declared).unwrap_or(i64::MAX);
                    return Err(ProtocolError::InvalidValue { what: "feedback length", value });
                }
                PageserverFeedback::parse(body.into_rest()).map(StandbyMessage::PageserverFeedback)
            }
            tag => Err(ProtocolError::UnknownTag(tag)),
        }
    }

    /// Appends the payload of a CopyData message to `buf`.
    pub fn write(&self, buf: &mut BytesMut) {
        match self {
            StandbyMessage::Status(status) => {
                buf.put_u8(b'r');
                for lsn in [status.write_lsn, status.flush_lsn, status.apply_lsn] {
                    buf.put_u64(lsn.0);
                }
                buf.put_i64(status.timestamp);
                buf.put_u8(u8::from(status.reply_requested));
            }
            StandbyMessage::HotStandbyFeedback(feedback) => {
                buf.put_u8(b'h');
                buf.put_i64(feedback.timestamp);
                buf.put_u32(feedback.xmin);
                buf.put_u32(feedback.xmin_epoch);
                buf.put_u32(feedback.catalog_xmin);
                buf.put_u32(feedback.catalog_xmin_epoch);
            }
            StandbyMessage::PageserverFeedback(feedback) => {
                let mut body = BytesMut::new();
                feedback.write(&mut body);
                buf.put_u8(b'z');
                buf.put_u64(u64::try_from(body.len()).unwrap_or(u64::MAX));
                buf.put_slice(&body);
            }
        }
    }
}

/// Now, in Postgres' time: microseconds since 2000-01-01. A clock before that counts as that.
pub fn current_timestamp() -> TimestampTz {
    let unix = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX));
    unix.saturating_sub(pg_types::time::POSTGRES_EPOCH_UNIX_SECS * 1_000_000)
}

#[cfg(test)]
mod tests;
