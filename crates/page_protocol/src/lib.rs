//! Messages between compute and page server: pagestream versions 2 and 3.
//!
//! The stream is a Postgres connection in CopyBoth mode; each message is the payload of one CopyData. This
//! crate turns payloads into types and back, on both sides, and knows nothing of sockets. See `README.md` for
//! the bytes.

mod decode;
mod encode;
mod error;
mod message;

pub use decode::{decode_request, decode_response};
pub use encode::{MAX_ERROR_TEXT, encode_request, encode_response, response_len};
pub use error::DecodeError;
pub use message::{
    MAX_REQUEST_LEN, MAX_RESPONSE_LEN, Payload, ProtocolVersion, Request, RequestKind,
};
