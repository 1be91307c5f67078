//! Why bytes are no message.

/// A payload that is not a message of this protocol, or not the answer to the request it should answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The payload ends too early.
    #[error(
        "{what} ends at byte {len}, but its field \"{field}\" needs {need} bytes from byte {at}"
    )]
    Truncated {
        /// Kind of message.
        what: &'static str,
        /// Field that is cut.
        field: &'static str,
        /// Where the field starts.
        at: usize,
        /// Bytes that it needs.
        need: usize,
        /// Bytes of the payload.
        len: usize,
    },
    /// Bytes are left over.
    #[error("{what} has {extra} bytes behind its end at byte {at}")]
    TrailingBytes {
        /// Kind of message.
        what: &'static str,
        /// Where the message ends.
        at: usize,
        /// How many bytes follow.
        extra: usize,
    },
    /// The first byte names no message of this direction.
    #[error("{what} has unknown tag {tag}")]
    UnknownTag {
        /// "page request" or "page response".
        what: &'static str,
        /// The tag.
        tag: u8,
    },
    /// A field has a value without meaning.
    #[error("{what} has field \"{field}\" = {value}, which has no meaning")]
    BadValue {
        /// Kind of message.
        what: &'static str,
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The response is not the answer to the request it was matched with: the stream is out of step and must
    /// be closed, since every further page would be another page's content.
    #[error("response has {field} = {got:#x}, the request has {expected:#x}")]
    Mismatch {
        /// Field that differs.
        field: &'static str,
        /// Value in the request.
        expected: u64,
        /// Value in the response.
        got: u64,
    },
}
