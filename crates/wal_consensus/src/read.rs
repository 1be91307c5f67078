//! A total reader of big-endian fields.

use bytes::{Buf, Bytes};

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The message ends inside a field.
    #[error("message ends inside field {field}: {missing} more bytes needed")]
    Short {
        /// Name of the field.
        field: &'static str,
        /// Bytes that are not there.
        missing: usize,
    },
    /// Bytes after the last field.
    #[error("{0} bytes after the end of the message")]
    Trailing(usize),
    /// Longer than [`crate::limits::MESSAGE_BYTES_MAX`].
    #[error("message of {0} bytes is too long")]
    TooLong(usize),
    /// No such message.
    #[error("unknown message tag {0:#04x}")]
    UnknownTag(u8),
    /// A value outside of its range.
    #[error("field {field} has the invalid value {value}")]
    Value {
        /// Name of the field.
        field: &'static str,
        /// What was found.
        value: u64,
    },
    /// A string that is not what the field holds.
    #[error("field {field} is not valid text: {reason}")]
    Text {
        /// Name of the field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The membership configuration breaks a rule.
    #[error(transparent)]
    Membership(#[from] crate::membership::MembershipError),
    /// The term history breaks a rule.
    #[error(transparent)]
    TermHistory(#[from] crate::term_history::TermHistoryError),
}

/// Takes fields from the front of a message.
pub(crate) struct Reader {
    bytes: Bytes,
}

impl Reader {
    pub(crate) fn new(bytes: Bytes) -> Reader {
        Reader { bytes }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn take(&mut self, field: &'static str, count: usize) -> Result<Bytes, CodecError> {
        match count.checked_sub(self.bytes.len()) {
            None | Some(0) => Ok(self.bytes.split_to(count)),
            Some(missing) => Err(CodecError::Short { field, missing }),
        }
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, CodecError> {
        self.take(field, 1).map(|mut bytes| bytes.get_u8())
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, CodecError> {
        self.take(field, 2).map(|mut bytes| bytes.get_u16())
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, CodecError> {
        self.take(field, 4).map(|mut bytes| bytes.get_u32())
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, CodecError> {
        self.take(field, 8).map(|mut bytes| bytes.get_u64())
    }

    pub(crate) fn i64(&mut self, field: &'static str) -> Result<i64, CodecError> {
        self.take(field, 8).map(|mut bytes| bytes.get_i64())
    }

    /// A count of things of which each takes at least `item_bytes`, checked against what is left before anything is
    /// allocated for them.
    pub(crate) fn count(
        &mut self,
        field: &'static str,
        item_bytes: usize,
    ) -> Result<usize, CodecError> {
        let value = self.u32(field)?;
        self.checked_count(field, value, item_bytes)
    }

    /// The check of [`Reader::count`].
    pub(crate) fn checked_count(
        &self,
        field: &'static str,
        value: u32,
        item_bytes: usize,
    ) -> Result<usize, CodecError> {
        let invalid = CodecError::Value { field, value: u64::from(value) };
        let count = usize::try_from(value).map_err(|_| invalid.clone())?;
        match count.checked_mul(item_bytes) {
            Some(bytes) if bytes <= self.remaining() => Ok(count),
            _ => Err(invalid),
        }
    }

    /// A NUL-terminated UTF-8 string.
    pub(crate) fn cstr(&mut self, field: &'static str) -> Result<String, CodecError> {
        let Some(length) = self.bytes.iter().position(|byte| *byte == 0) else {
            return Err(CodecError::Short { field, missing: 1 });
        };
        let text = self.take(field, length)?;
        self.take(field, 1)?;
        String::from_utf8(text.to_vec())
            .map_err(|error| CodecError::Text { field, reason: error.to_string() })
    }

    /// Everything that is left.
    pub(crate) fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.bytes)
    }

    pub(crate) fn finish(self) -> Result<(), CodecError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(CodecError::Trailing(self.bytes.len())) }
    }
}
