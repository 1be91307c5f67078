//! From an open socket to a page stream: start-up message, login, one query, CopyBoth.

use crate::frame::{self, Frame};

/// Protocol 3.0.
const PROTOCOL_VERSION: u32 = 3 << 16;

/// What to say while connecting.
#[derive(Clone, Debug)]
pub struct Parameters<'a> {
    /// Start-up parameters in order, e.g. `("user", "neon")`.
    pub startup: &'a [(&'a str, &'a str)],
    /// Sent if the server asks for a password.
    pub password: Option<&'a str>,
    /// The query that starts the stream.
    pub query: &'a str,
}

/// Why no stream was started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The page server refused.
    #[error("page server: {0}")]
    Refused(String),
    /// It asks for a login method that is not supported.
    #[error(
        "page server asks for authentication method {0}, only none and a plain password are supported"
    )]
    Method(u32),
    /// It asks for a password and there is none.
    #[error(
        "page server asks for a password; set it in neon.pageserver_connstring or NEON_AUTH_TOKEN"
    )]
    NoPassword,
    /// A message that does not belong here.
    #[error("page server sent an unexpected message '{}' while {during}", tag.escape_ascii())]
    Unexpected {
        /// Its tag.
        tag: u8,
        /// What was going on.
        during: &'static str,
    },
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Wait for another message.
    Wait,
    /// Send these bytes, then wait.
    Send(Vec<u8>),
    /// The stream is open.
    Open,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    LogIn,
    AwaitReady,
    AwaitCopy,
}

/// The client's side of the hand-shake.
#[derive(Debug)]
pub struct Handshake<'a> {
    parameters: Parameters<'a>,
    state: State,
}

impl<'a> Handshake<'a> {
    /// The hand-shake and the bytes that start it.
    pub fn start(parameters: Parameters<'a>) -> (Handshake<'a>, Vec<u8>) {
        let mut body = PROTOCOL_VERSION.to_be_bytes().to_vec();
        for (name, value) in parameters.startup {
            put_cstr(&mut body, name);
            put_cstr(&mut body, value);
        }
        body.push(0);
        let mut message = Vec::with_capacity(body.len() + 4);
        frame::put_length(&mut message, body.len());
        message.extend_from_slice(&body);
        (Handshake { parameters, state: State::LogIn }, message)
    }

    /// Takes the server's next message.
    ///
    /// # Errors
    /// The connection is of no use.
    pub fn receive(&mut self, message: Frame<'_>) -> Result<Step, HandshakeError> {
        match (self.state, message.tag) {
            (_, b'E') => Err(HandshakeError::Refused(error_text(message.body))),
            // Notices, parameters and the cancel key may come at any time and mean nothing here.
            (_, b'N' | b'S' | b'K') => Ok(Step::Wait),
            (State::LogIn, b'R') => self.authentication(message.body),
            (State::AwaitReady, b'Z') => {
                self.state = State::AwaitCopy;
                let mut out = Vec::new();
                let mut body = Vec::new();
                put_cstr(&mut body, self.parameters.query);
                frame::put(&mut out, b'Q', &body);
                Ok(Step::Send(out))
            }
            (State::AwaitCopy, b'W') => Ok(Step::Open),
            (state, tag) => Err(HandshakeError::Unexpected {
                tag,
                during: match state {
                    State::LogIn => "logging in",
                    State::AwaitReady => "waiting to be ready",
                    State::AwaitCopy => "starting the page stream",
                },
            }),
        }
    }

    fn authentication(&mut self, body: &[u8]) -> Result<Step, HandshakeError> {
        let method = body.first_chunk::<4>().map_or(u32::MAX, |b| u32::from_be_bytes(*b));
        match method {
            0 => {
                self.state = State::AwaitReady;
                Ok(Step::Wait)
            }
            3 => {
                let password = self.parameters.password.ok_or(HandshakeError::NoPassword)?;
                let mut body = Vec::new();
                put_cstr(&mut body, password);
                let mut out = Vec::new();
                frame::put(&mut out, b'p', &body);
                Ok(Step::Send(out))
            }
            other => Err(HandshakeError::Method(other)),
        }
    }
}

/// A text with its terminator. A NUL inside would end it early and let the rest be taken for something else.
fn put_cstr(out: &mut Vec<u8>, text: &str) {
    out.extend(text.bytes().filter(|byte| *byte != 0));
    out.push(0);
}

/// The message of an ErrorResponse with its code, as far as it can be read.
pub fn error_text(body: &[u8]) -> String {
    let mut message = None;
    let mut code = None;
    for field in body.split(|byte| *byte == 0) {
        match field.split_first() {
            Some((b'M', text)) => message = Some(String::from_utf8_lossy(text)),
            Some((b'C', text)) => code = Some(String::from_utf8_lossy(text)),
            _ => {}
        }
    }
    let message = message.unwrap_or_else(|| "error without a message".into());
    match code {
        Some(code) => format!("{message} (SQLSTATE {code})"),
        None => message.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PARAMETERS: Parameters<'static> =
        Parameters { startup: &[("user", "neon")], password: None, query: "pagestream_v3 a b" };

    fn message(tag: u8, body: &[u8]) -> Frame<'_> {
        Frame { tag, body }
    }

    #[test]
    fn opens_a_stream() {
        let (mut handshake, startup) = Handshake::start(PARAMETERS);
        assert_eq!(startup, b"\0\0\0\x13\0\x03\0\0user\0neon\0\0");
        assert_eq!(handshake.receive(message(b'R', &[0, 0, 0, 0])), Ok(Step::Wait));
        assert_eq!(handshake.receive(message(b'S', b"a\0b\0")), Ok(Step::Wait));
        let query = b"Q\0\0\0\x16pagestream_v3 a b\0".to_vec();
        assert_eq!(handshake.receive(message(b'Z', b"I")), Ok(Step::Send(query)));
        assert_eq!(handshake.receive(message(b'W', &[0, 0, 0])), Ok(Step::Open));
    }

    #[test]
    fn sends_a_password_when_asked() {
        let plain = &[0, 0, 0, 3][..];
        let (mut handshake, _) = Handshake::start(PARAMETERS);
        assert_eq!(handshake.receive(message(b'R', plain)), Err(HandshakeError::NoPassword));
        let (mut handshake, _) = Handshake::start(Parameters { password: Some("s"), ..PARAMETERS });
        let answer = b"p\0\0\0\x06s\0".to_vec();
        assert_eq!(handshake.receive(message(b'R', plain)), Ok(Step::Send(answer)));
        assert_eq!(
            handshake.receive(message(b'R', &[0, 0, 0, 10])),
            Err(HandshakeError::Method(10))
        );
    }

    #[test]
    fn reports_a_refusal() {
        let (mut handshake, _) = Handshake::start(PARAMETERS);
        let body = b"SERROR\0CXX000\0Mno such timeline\0\0";
        assert_eq!(
            handshake.receive(message(b'E', body)).unwrap_err().to_string(),
            "page server: no such timeline (SQLSTATE XX000)"
        );
        assert_eq!(
            handshake.receive(message(b'd', b"")),
            Err(HandshakeError::Unexpected { tag: b'd', during: "logging in" })
        );
    }

    proptest! {
        #[test]
        fn is_total(messages in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..20)), 0..20)) {
            let (mut handshake, _) = Handshake::start(PARAMETERS);
            for (tag, body) in &messages {
                let _ = handshake.receive(message(*tag, body));
            }
        }
    }
}
