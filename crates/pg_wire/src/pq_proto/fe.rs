//! Messages from the client.

use bytes::Bytes;

use super::{Frame, ProtocolError};
use crate::read::{Reader, Text};

/// A message from the client. Payloads are slices of the receive buffer (L259).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeMessage {
    /// Simple query.
    Query(Text),
    /// One piece of a COPY stream.
    CopyData(Bytes),
    /// Normal end of a COPY stream.
    CopyDone,
    /// The client gives a COPY stream up; its reason.
    CopyFail(Text),
    /// The client closes the connection.
    Terminate,
    /// End of an extended-protocol sequence.
    Sync,
    /// Ask for output to be sent now.
    Flush,
    /// Answer to an authentication request: password or SASL, by context.
    Password(Bytes),
    /// A message of the extended query protocol, which storage does not speak; the name for an error.
    Extended(&'static str),
}

impl FeMessage {
    /// Interprets a frame.
    pub fn parse(frame: Frame) -> Result<FeMessage, ProtocolError> {
        let mut body = Reader::new(frame.body);
        match frame.tag {
            b'd' => Ok(FeMessage::CopyData(body.into_rest())),
            b'Q' => {
                let query = body.cstr("query text")?;
                body.finish("query")?;
                Ok(FeMessage::Query(query))
            }
            b'f' => {
                let reason = body.cstr("copy failure reason")?;
                body.finish("copy failure")?;
                Ok(FeMessage::CopyFail(reason))
            }
            b'c' => body.finish("CopyDone").map(|()| FeMessage::CopyDone),
            b'X' => body.finish("Terminate").map(|()| FeMessage::Terminate),
            b'S' => body.finish("Sync").map(|()| FeMessage::Sync),
            b'H' => body.finish("Flush").map(|()| FeMessage::Flush),
            b'p' => Ok(FeMessage::Password(body.into_rest())),
            b'P' => Ok(FeMessage::Extended("Parse")),
            b'B' => Ok(FeMessage::Extended("Bind")),
            b'D' => Ok(FeMessage::Extended("Describe")),
            b'E' => Ok(FeMessage::Extended("Execute")),
            b'C' => Ok(FeMessage::Extended("Close")),
            b'F' => Ok(FeMessage::Extended("FunctionCall")),
            tag => Err(ProtocolError::UnknownTag(tag)),
        }
    }

    /// Name for error texts.
    pub fn name(&self) -> &'static str {
        match self {
            FeMessage::Query(_) => "Query",
            FeMessage::CopyData(_) => "CopyData",
            FeMessage::CopyDone => "CopyDone",
            FeMessage::CopyFail(_) => "CopyFail",
            FeMessage::Terminate => "Terminate",
            FeMessage::Sync => "Sync",
            FeMessage::Flush => "Flush",
            FeMessage::Password(_) => "PasswordMessage",
            FeMessage::Extended(name) => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn simple_messages() {
        let parse = |tag, body: &'static [u8]| {
            FeMessage::parse(Frame { tag, body: Bytes::from_static(body) })
        };
        let Ok(FeMessage::Query(text)) = parse(b'Q', b"SELECT 1\0") else { panic!("no query") };
        assert_eq!(text.as_str(), "SELECT 1");
        assert_eq!(parse(b'd', b"xyz"), Ok(FeMessage::CopyData(Bytes::from_static(b"xyz"))));
        assert_eq!(parse(b'c', b""), Ok(FeMessage::CopyDone));
        assert_eq!(parse(b'P', b"anything"), Ok(FeMessage::Extended("Parse")));
        assert_eq!(parse(b'Q', b"no end"), Err(ProtocolError::Unterminated { what: "query text" }));
        assert_eq!(
            parse(b'c', b"x"),
            Err(ProtocolError::TrailingBytes { what: "CopyDone", left: 1 })
        );
        assert_eq!(parse(b'Q', b"\xFF\0"), Err(ProtocolError::NotUtf8 { what: "query text" }));
        assert_eq!(parse(b'!', b""), Err(ProtocolError::UnknownTag(b'!')));
    }

    proptest! {
        #[test]
        fn never_panics(tag: u8, body: Vec<u8>) {
            drop(FeMessage::parse(Frame { tag, body: body.into() }));
        }
    }
}
