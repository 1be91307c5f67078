//! The first packet of a connection. It has no type byte, so it is no [`super::FeMessage`] (L262).
//! Rules: `ProcessStartupPacket` in `backend_startup.c`, `pg_split_opts` in `postinit.c`.

use std::collections::BTreeMap;

use bytes::{Buf, BytesMut};

use super::ProtocolError;
use crate::read::Reader;

/// `MAX_STARTUP_PACKET_LENGTH` of `libpq/pqcomm.h`.
pub const MAX_STARTUP_PACKET_LENGTH: u32 = 10_000;

/// High half of the request code of packets that are no startup message.
const NEGOTIATE_MAJOR: u16 = 1234;

/// What a client may send first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeStartupPacket {
    /// A request to cancel a query of another connection.
    CancelRequest {
        /// Process id of that backend.
        pid: u32,
        /// Its secret.
        key: u32,
    },
    /// "May I start TLS?" Answered with one byte, `S` or `N`.
    SslRequest,
    /// "May I start GSSAPI encryption?" Answered likewise, `G` or `N`.
    GssEncRequest,
    /// The real thing.
    StartupMessage {
        /// Protocol minor version; the major is 3.
        minor: u16,
        /// Names and values.
        params: StartupParams,
    },
}

/// Parameters of a startup message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StartupParams {
    params: BTreeMap<String, String>,
}

impl StartupParams {
    /// Builds from pairs; the last of two equal names wins, as in Postgres.
    pub fn from_pairs<K: Into<String>, V: Into<String>>(
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> StartupParams {
        StartupParams { params: pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect() }
    }

    /// Value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.params.get(name).map(String::as_str)
    }

    /// All parameters.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.params.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Value of a setting inside the parameter `options`: `-c name=value`, `-cname=value`, `--name=value`, or
    /// a bare `name=value`, which is how storage clients pass `tenant_id` and `timeline_id`.
    /// The last one wins.
    pub fn option(&self, name: &str) -> Option<String> {
        let words = split_options(self.get("options")?);
        let mut found = None;
        for word in &words {
            let setting =
                word.strip_prefix("--").or_else(|| word.strip_prefix("-c")).unwrap_or(word);
            if let Some((key, value)) = setting.split_once('=')
                && key == name
            {
                found = Some(value.to_owned());
            }
        }
        found
    }
}

/// Splits the parameter `options` into words as `pg_split_opts` does: blanks separate, a backslash takes the
/// next character literally.
pub fn split_options(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = options.chars();
    while let Some(c) = chars.next() {
        if c.is_ascii_whitespace() {
            words.extend(word.take());
            continue;
        }
        let word = word.get_or_insert_default();
        if c == '\\' {
            // A backslash at the very end stands for nothing.
            word.extend(chars.next());
        } else {
            word.push(c);
        }
    }
    words.extend(word);
    words
}

impl FeStartupPacket {
    /// Takes a startup packet off the front of `buf`, or returns `None` when more bytes are needed.
    pub fn parse(buf: &mut BytesMut) -> Result<Option<FeStartupPacket>, ProtocolError> {
        // A TLS record of type handshake; as a length this byte would mean 350 MB.
        if buf.first() == Some(&0x16) {
            return Err(ProtocolError::DirectTls);
        }
        let Some(&length) = buf.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(length);
        if !(8..=MAX_STARTUP_PACKET_LENGTH).contains(&length) {
            return Err(ProtocolError::InvalidStartupLength(length));
        }
        let total =
            usize::try_from(length).map_err(|_| ProtocolError::InvalidStartupLength(length))?;
        if let Some(missing) = total.checked_sub(buf.len()).filter(|&missing| missing > 0) {
            buf.reserve(missing);
            return Ok(None);
        }
        let mut packet = buf.split_to(total);
        packet.advance(4);
        Self::parse_body(Reader::new(packet.freeze())).map(Some)
    }

    fn parse_body(mut body: Reader) -> Result<FeStartupPacket, ProtocolError> {
        let major = body.u16("startup packet version")?;
        let minor = body.u16("startup packet version")?;
        match (major, minor) {
            (NEGOTIATE_MAJOR, 5678) => {
                let pid = body.u32("cancel request process id")?;
                let key = body.u32("cancel request key")?;
                body.finish("cancel request")?;
                Ok(FeStartupPacket::CancelRequest { pid, key })
            }
            (NEGOTIATE_MAJOR, 5679) => {
                body.finish("SSL request").map(|()| FeStartupPacket::SslRequest)
            }
            (NEGOTIATE_MAJOR, 5680) => {
                body.finish("GSS encryption request").map(|()| FeStartupPacket::GssEncRequest)
            }
            (3, minor) => {
                let params = Self::parse_params(body)?;
                Ok(FeStartupPacket::StartupMessage { minor, params })
            }
            (major, minor) => Err(ProtocolError::UnsupportedVersion { major, minor }),
        }
    }

    fn parse_params(mut body: Reader) -> Result<StartupParams, ProtocolError> {
        let mut params = BTreeMap::new();
        loop {
            let name = body.cstr("startup parameter name")?;
            if name.as_str().is_empty() {
                body.finish("startup packet")?;
                return Ok(StartupParams { params });
            }
            let value = body.cstr("startup parameter value")?;
            params.insert(name.as_str().to_owned(), value.as_str().to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(code: u32, rest: &[u8]) -> BytesMut {
        let mut buf = BytesMut::new();
        buf.extend_from_slice(&u32::try_from(rest.len() + 8).unwrap().to_be_bytes());
        buf.extend_from_slice(&code.to_be_bytes());
        buf.extend_from_slice(rest);
        buf
    }

    #[test]
    fn startup_message() {
        let mut buf = packet(3 << 16, b"user\0bob\0options\0-c tenant_id=ab timeline_id=cd\0\0");
        let Some(FeStartupPacket::StartupMessage { minor: 0, params }) =
            FeStartupPacket::parse(&mut buf).unwrap()
        else {
            panic!("no startup message");
        };
        assert!(buf.is_empty());
        assert_eq!(params.get("user"), Some("bob"));
        assert_eq!(params.option("tenant_id").as_deref(), Some("ab"));
        assert_eq!(params.option("timeline_id").as_deref(), Some("cd"));
        assert_eq!(params.option("user"), None);
    }

    #[test]
    fn requests_before_startup() {
        let parse = |mut buf: BytesMut| FeStartupPacket::parse(&mut buf);
        assert_eq!(parse(packet(80_877_103, b"")), Ok(Some(FeStartupPacket::SslRequest)));
        assert_eq!(parse(packet(80_877_104, b"")), Ok(Some(FeStartupPacket::GssEncRequest)));
        assert_eq!(
            parse(packet(80_877_102, &[0, 0, 0, 7, 0, 0, 0, 9])),
            Ok(Some(FeStartupPacket::CancelRequest { pid: 7, key: 9 }))
        );
    }

    #[test]
    fn refusals() {
        let parse = |bytes: &[u8]| FeStartupPacket::parse(&mut BytesMut::from(bytes)).unwrap_err();
        assert_eq!(parse(&[0x16, 3, 1]), ProtocolError::DirectTls);
        assert_eq!(
            parse(&0x7FFF_FFFF_u32.to_be_bytes()),
            ProtocolError::InvalidStartupLength(0x7FFF_FFFF)
        );
        assert_eq!(
            parse(&packet(2 << 16, b"")),
            ProtocolError::UnsupportedVersion { major: 2, minor: 0 }
        );
        assert_eq!(
            parse(&packet(3 << 16, b"user\0bob")),
            ProtocolError::Unterminated { what: "startup parameter value" }
        );
    }

    #[test]
    fn options_split_like_postgres() {
        assert_eq!(split_options(r"  -c  a=b\ c \\ d\"), ["-c", "a=b c", r"\", "d"]);
        let params = StartupParams::from_pairs([("options", "-c a=1 --b=2 -cc=3 a=4")]);
        assert_eq!(params.option("a").as_deref(), Some("4"));
        assert_eq!(params.option("b").as_deref(), Some("2"));
        assert_eq!(params.option("c").as_deref(), Some("3"));
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            drop(FeStartupPacket::parse(&mut BytesMut::from(&bytes[..])));
        }

        #[test]
        fn pairs_round_trip(pairs in proptest::collection::btree_map("[a-z]{1,9}", "[^\0]{0,20}", 0..9)) {
            let mut buf = BytesMut::new();
            let borrowed = pairs.iter().map(|(k, v)| (k.as_str(), v.as_str()));
            postgres_protocol::message::frontend::startup_message(borrowed, &mut buf).unwrap();
            let parsed = FeStartupPacket::parse(&mut buf).unwrap().unwrap();
            let params = StartupParams::from_pairs(pairs);
            prop_assert_eq!(parsed, FeStartupPacket::StartupMessage { minor: 0, params });
        }
    }
}
