//! Messages of the Postgres frontend/backend protocol 3.0 (`protocol.sgml`, chapter "Message Formats"), as far
//! as storage needs them. Parsing is total; nothing here reads or writes a socket.

mod be;
mod be_read;
mod fe;
mod frame;
mod startup;

pub use be::{BeMessage, RowDescriptor, SqlState, TypeOid, write_copy_data};
pub use be_read::{Authentication, BackendMessage, Column, DataRow, ServerError};
pub use fe::FeMessage;
pub use frame::{Frame, take_frame};
pub use startup::{FeStartupPacket, MAX_STARTUP_PACKET_LENGTH, StartupParams, split_options};

/// How bytes of a peer violate the protocol: what was being read, and where it went wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A message is longer than allowed in this state. Nothing of it was buffered.
    #[error("message '{}' of {len} bytes exceeds the limit of {max} bytes", .tag.escape_ascii())]
    TooLong {
        /// Type byte.
        tag: u8,
        /// Length it declares.
        len: u64,
        /// The limit.
        max: usize,
    },
    /// A length field below its own size.
    #[error("message '{}' declares the impossible length {len}", .tag.escape_ascii())]
    InvalidLength {
        /// Type byte.
        tag: u8,
        /// Length it declares.
        len: u32,
    },
    /// Startup packet with a length outside 8..=10000.
    #[error("startup packet declares the impossible length {0}")]
    InvalidStartupLength(u32),
    /// The first byte is that of a TLS handshake, and this end does not speak TLS.
    #[error("the client began a TLS handshake, which this server does not offer")]
    DirectTls,
    /// A startup packet of another protocol version.
    #[error("unsupported frontend protocol {major}.{minor}")]
    UnsupportedVersion {
        /// Major number.
        major: u16,
        /// Minor number.
        minor: u16,
    },
    /// A type byte that this protocol does not have.
    #[error("unknown message type '{}'", .0.escape_ascii())]
    UnknownTag(u8),
    /// A message ended too early.
    #[error("message ends inside {what}: {needed} bytes needed, {left} left")]
    Truncated {
        /// The field.
        what: &'static str,
        /// Its size.
        needed: usize,
        /// What was there.
        left: usize,
    },
    /// A string without its terminating NUL.
    #[error("no terminating NUL in {what}")]
    Unterminated {
        /// The field.
        what: &'static str,
    },
    /// A string that is not UTF-8.
    #[error("{what} is not UTF-8")]
    NotUtf8 {
        /// The field.
        what: &'static str,
    },
    /// A message goes on after its last field.
    #[error("{left} bytes behind the end of {what}")]
    TrailingBytes {
        /// The message.
        what: &'static str,
        /// How many.
        left: usize,
    },
    /// A field has a value that it must not have.
    #[error("invalid {what}: {value}")]
    InvalidValue {
        /// The field.
        what: &'static str,
        /// The value.
        value: i64,
    },
    /// A well-formed message at the wrong time.
    #[error("unexpected message {got} while {state}")]
    Unexpected {
        /// Name of the message.
        got: &'static str,
        /// What this end was doing.
        state: &'static str,
    },
    /// A message to be *sent* cannot be expressed: too long, or a string with a NUL in it.
    #[error("cannot encode {what}: {reason}")]
    Encode {
        /// The field.
        what: &'static str,
        /// Why.
        reason: &'static str,
    },
}
