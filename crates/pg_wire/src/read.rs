//! Taking typed values off the front of received bytes, without copies and without panics.
//!
//! All integers of the Postgres protocol are in network byte order.

use std::str;

use bytes::{Buf, Bytes};

use crate::pq_proto::ProtocolError;

/// A cursor over one message body. Every method names what it expects, so that an error says what was cut
/// short.
#[derive(Debug, Clone)]
pub struct Reader {
    rest: Bytes,
}

impl Reader {
    /// Reads from the start of `body`.
    pub fn new(body: Bytes) -> Reader {
        Reader { rest: body }
    }

    /// Bytes that are left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Everything that is left, as a slice of the same memory.
    pub fn into_rest(self) -> Bytes {
        self.rest
    }

    fn fixed<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], ProtocolError> {
        match self.rest.first_chunk::<N>() {
            Some(head) => {
                let head = *head;
                self.rest.advance(N);
                Ok(head)
            }
            None => Err(ProtocolError::Truncated { what, needed: N, left: self.rest.len() }),
        }
    }

    /// One byte.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, ProtocolError> {
        self.fixed::<1>(what).map(|[byte]| byte)
    }

    /// Two bytes, unsigned.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, ProtocolError> {
        self.fixed(what).map(u16::from_be_bytes)
    }

    /// Four bytes, unsigned.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, ProtocolError> {
        self.fixed(what).map(u32::from_be_bytes)
    }

    /// Four bytes, signed.
    pub fn i32(&mut self, what: &'static str) -> Result<i32, ProtocolError> {
        self.fixed(what).map(i32::from_be_bytes)
    }

    /// Eight bytes, unsigned.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, ProtocolError> {
        self.fixed(what).map(u64::from_be_bytes)
    }

    /// Eight bytes, signed.
    pub fn i64(&mut self, what: &'static str) -> Result<i64, ProtocolError> {
        self.fixed(what).map(i64::from_be_bytes)
    }

    /// The next `len` bytes, as a slice of the same memory.
    pub fn bytes(&mut self, len: usize, what: &'static str) -> Result<Bytes, ProtocolError> {
        if len > self.rest.len() {
            return Err(ProtocolError::Truncated { what, needed: len, left: self.rest.len() });
        }
        Ok(self.rest.split_to(len))
    }

    /// Bytes up to a NUL, which is taken off too.
    pub fn cstr(&mut self, what: &'static str) -> Result<Text, ProtocolError> {
        let end = self.rest.iter().position(|&byte| byte == 0);
        let end = end.ok_or(ProtocolError::Unterminated { what })?;
        let text = self.rest.split_to(end);
        self.rest.advance(1);
        Text::new(text, what)
    }

    /// Checks that nothing is left.
    pub fn finish(self, what: &'static str) -> Result<(), ProtocolError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(ProtocolError::TrailingBytes { what, left }),
        }
    }
}

/// UTF-8 text that shares the memory it was received in.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Text(Bytes);

impl Text {
    /// Checks that `bytes` is UTF-8.
    pub fn new(bytes: Bytes, what: &'static str) -> Result<Text, ProtocolError> {
        match str::from_utf8(&bytes) {
            Ok(_) => Ok(Text(bytes)),
            Err(_) => Err(ProtocolError::NotUtf8 { what }),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        // Checked by `new`, the only constructor of non-empty values.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self.as_str(), f)
    }
}
