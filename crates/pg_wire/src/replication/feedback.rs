//! Progress of a page server, as a list of keys and values: a count byte, then for each key its name with a
//! NUL, a four-byte length and the value. Unknown keys are skipped by length, so either side may be newer.

use bytes::{BufMut, Bytes, BytesMut};
use pg_types::{Lsn, TimestampTz};

use crate::pq_proto::ProtocolError;
use crate::read::Reader;

/// How far a page server is with a timeline. LSN 0 means unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageserverFeedback {
    /// Logical size of the branch in bytes.
    pub current_timeline_size: u64,
    /// End of WAL that it has received.
    pub last_received_lsn: Lsn,
    /// End of WAL whose pages are durable on its own disk.
    pub disk_consistent_lsn: Lsn,
    /// End of WAL whose layers are durable for ever (in the object store, when there is one): WAL below it is
    /// not needed any more.
    pub remote_consistent_lsn: Lsn,
    /// Its clock, microseconds since 2000-01-01.
    pub replytime: TimestampTz,
    /// Which shard speaks; 0 for a tenant without shards.
    pub shard_number: u32,
    /// It met WAL or pages that cannot be right.
    pub corruption_detected: bool,
}

fn value_u64(value: Bytes, what: &'static str) -> Result<u64, ProtocolError> {
    let mut value = Reader::new(value);
    let number = value.u64(what)?;
    value.finish(what)?;
    Ok(number)
}

impl PageserverFeedback {
    /// Parses the list; the short and the long names of the positions are both understood.
    pub fn parse(body: Bytes) -> Result<PageserverFeedback, ProtocolError> {
        let mut body = Reader::new(body);
        let mut feedback = PageserverFeedback::default();
        for _ in 0..body.u8("number of feedback keys")? {
            let name = body.cstr("feedback key")?;
            let len = body.u32("length of a feedback value")?;
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            let value = body.bytes(len, "feedback value")?;
            match name.as_str() {
                "current_timeline_size" => {
                    feedback.current_timeline_size = value_u64(value, "current_timeline_size")?;
                }
                "ps_writelsn" | "last_received_lsn" => {
                    feedback.last_received_lsn = Lsn(value_u64(value, "ps_writelsn")?);
                }
                "ps_flushlsn" | "disk_consistent_lsn" => {
                    feedback.disk_consistent_lsn = Lsn(value_u64(value, "ps_flushlsn")?);
                }
                "ps_applylsn" | "remote_consistent_lsn" => {
                    feedback.remote_consistent_lsn = Lsn(value_u64(value, "ps_applylsn")?);
                }
                "ps_replytime" | "replytime" => {
                    feedback.replytime = value_u64(value, "ps_replytime")?.cast_signed();
                }
                "shard_number" => {
                    let mut value = Reader::new(value);
                    feedback.shard_number = value.u32("shard_number")?;
                    value.finish("shard_number")?;
                }
                "corruption_detected" => {
                    let mut value = Reader::new(value);
                    feedback.corruption_detected = value.u8("corruption_detected")? != 0;
                    value.finish("corruption_detected")?;
                }
                _ => {}
            }
        }
        body.finish("page server feedback")?;
        Ok(feedback)
    }

    /// Appends the list to `buf`.
    pub fn write(&self, buf: &mut BytesMut) {
        let with_shard = self.shard_number > 0;
        buf.put_u8(5 + u8::from(with_shard) + u8::from(self.corruption_detected));
        for (name, value) in [
            ("current_timeline_size", self.current_timeline_size),
            ("ps_writelsn", self.last_received_lsn.0),
            ("ps_flushlsn", self.disk_consistent_lsn.0),
            ("ps_applylsn", self.remote_consistent_lsn.0),
            ("ps_replytime", self.replytime.cast_unsigned()),
        ] {
            put_key(buf, name, 8);
            buf.put_u64(value);
        }
        if with_shard {
            put_key(buf, "shard_number", 4);
            buf.put_u32(self.shard_number);
        }
        if self.corruption_detected {
            put_key(buf, "corruption_detected", 1);
            buf.put_u8(1);
        }
    }
}

fn put_key(buf: &mut BytesMut, name: &str, value_len: u32) {
    buf.put_slice(name.as_bytes());
    buf.put_u8(0);
    buf.put_u32(value_len);
}
