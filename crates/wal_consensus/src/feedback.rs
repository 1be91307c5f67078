//! What a page server reports back: the key/value list that travels page server → safekeeper (message `z`) and inside
//! append responses → walproposer.
//!
//! ```text
//! nkeys u8, then nkeys × { name: NUL-terminated, length u32, value: length bytes }     big-endian
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use pg_types::{Lsn, TimestampTz};

use crate::read::{CodecError, Reader};

/// Progress of one shard of a page server on a timeline. A position of 0 is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageserverFeedback {
    /// Logical size of the branch in bytes.
    pub current_timeline_size: u64,
    /// WAL received up to here.
    pub last_received_lsn: Lsn,
    /// WAL in layer files on the page server's disk up to here.
    pub disk_consistent_lsn: Lsn,
    /// WAL in the object store up to here: nobody needs it from a safekeeper any more.
    pub remote_consistent_lsn: Lsn,
    /// When this was said.
    pub replytime: TimestampTz,
    /// Shard that speaks; 0 for an unsharded tenant.
    pub shard_number: u32,
    /// The page server found the WAL or its own data damaged.
    pub corruption_detected: bool,
}

const TIMELINE_SIZE: &str = "current_timeline_size";
const WRITE_LSN: &str = "ps_writelsn";
const FLUSH_LSN: &str = "ps_flushlsn";
const APPLY_LSN: &str = "ps_applylsn";
const REPLY_TIME: &str = "ps_replytime";
const SHARD: &str = "shard_number";
const CORRUPTION: &str = "corruption_detected";

impl PageserverFeedback {
    /// Appends the list to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        let keys = 5 + u8::from(self.shard_number > 0) + u8::from(self.corruption_detected);
        out.put_u8(keys);
        put_entry(out, TIMELINE_SIZE, &self.current_timeline_size.to_be_bytes());
        put_entry(out, WRITE_LSN, &self.last_received_lsn.0.to_be_bytes());
        put_entry(out, FLUSH_LSN, &self.disk_consistent_lsn.0.to_be_bytes());
        put_entry(out, APPLY_LSN, &self.remote_consistent_lsn.0.to_be_bytes());
        put_entry(out, REPLY_TIME, &self.replytime.to_be_bytes());
        if self.shard_number > 0 {
            put_entry(out, SHARD, &self.shard_number.to_be_bytes());
        }
        if self.corruption_detected {
            put_entry(out, CORRUPTION, &[1]);
        }
    }

    /// Reads a list that fills `bytes`. Keys it does not know are skipped by their length.
    ///
    /// # Errors
    /// When the bytes are not such a list, or a known key has a value of the wrong size.
    pub fn decode(bytes: Bytes) -> Result<PageserverFeedback, CodecError> {
        let mut reader = Reader::new(bytes);
        let feedback = PageserverFeedback::read(&mut reader)?;
        reader.finish()?;
        Ok(feedback)
    }

    pub(crate) fn read(reader: &mut Reader) -> Result<PageserverFeedback, CodecError> {
        let mut feedback = PageserverFeedback::default();
        for _ in 0..reader.u8("nkeys")? {
            let key = reader.cstr("feedback key")?;
            let length = reader.count("feedback value length", 1)?;
            let mut value = Reader::new(reader.take("feedback value", length)?);
            match key.as_str() {
                TIMELINE_SIZE => feedback.current_timeline_size = value.u64(TIMELINE_SIZE)?,
                WRITE_LSN | "last_received_lsn" => {
                    feedback.last_received_lsn = Lsn(value.u64(WRITE_LSN)?);
                }
                FLUSH_LSN | "disk_consistent_lsn" => {
                    feedback.disk_consistent_lsn = Lsn(value.u64(FLUSH_LSN)?);
                }
                APPLY_LSN | "remote_consistent_lsn" => {
                    feedback.remote_consistent_lsn = Lsn(value.u64(APPLY_LSN)?);
                }
                REPLY_TIME | "replytime" => feedback.replytime = value.i64(REPLY_TIME)?,
                SHARD => feedback.shard_number = value.u32(SHARD)?,
                CORRUPTION => feedback.corruption_detected = value.u8(CORRUPTION)? != 0,
                _ => drop(value.rest()),
            }
            value.finish()?;
        }
        Ok(feedback)
    }
}

fn put_entry(out: &mut BytesMut, key: &str, value: &[u8]) {
    out.put_slice(key.as_bytes());
    out.put_u8(0);
    out.put_u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
    out.put_slice(value);
}
