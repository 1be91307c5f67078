//! Which bytes a connection's messages have (L016, L236, L237). The state machines do not know: they step messages.

use std::fmt;

use bytes::Bytes;
use pg_types::Generation;
use serde::{Deserialize, Serialize};

use crate::codec::{CodecError, v2};
use crate::message::{AcceptorMessage, AppendHeader, ProposerMessage};

/// A version of the protocol; as text and in files its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub enum ProtocolVersion {
    /// Without membership: whoever speaks it speaks for the empty configuration, generation 0.
    V2,
    /// With membership.
    #[default]
    V3,
}

/// A number that is no version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("protocol version {0} is not spoken here, only 2 and 3")]
pub struct UnknownVersion(pub u32);

/// A message that is not of generation 0 cannot be sent in version 2. It is never sent without its generation: a proposer
/// that does not know of a configuration would count the wrong majority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "protocol version 2 cannot tell membership generation {0}: a timeline with a membership needs version 3"
)]
pub struct NeedsVersion3(pub Generation);

impl ProtocolVersion {
    /// Whether messages of a generation can be said.
    ///
    /// # Errors
    /// When this version has no words for it.
    pub fn check_generation(self, generation: Generation) -> Result<(), NeedsVersion3> {
        match self {
            ProtocolVersion::V2 => v2::check(generation),
            ProtocolVersion::V3 => Ok(()),
        }
    }

    /// The message as the payload of one CopyData.
    ///
    /// # Errors
    /// When this version has no words for it.
    pub fn encode_proposer(self, message: &ProposerMessage) -> Result<Bytes, NeedsVersion3> {
        match self {
            ProtocolVersion::V2 => v2::encode_proposer(message),
            ProtocolVersion::V3 => Ok(message.encode()),
        }
    }

    /// Tag and fields of an append request, to be followed by its WAL bytes.
    ///
    /// # Errors
    /// When this version has no words for it.
    pub fn encode_append_header(self, header: &AppendHeader) -> Result<Bytes, NeedsVersion3> {
        match self {
            ProtocolVersion::V2 => v2::encode_append_header(header),
            ProtocolVersion::V3 => Ok(Bytes::copy_from_slice(&header.encode())),
        }
    }

    /// Reads one message that fills `bytes`.
    ///
    /// # Errors
    /// When the bytes are not exactly one valid message of this version.
    pub fn decode_proposer(self, bytes: Bytes) -> Result<ProposerMessage, CodecError> {
        match self {
            ProtocolVersion::V2 => v2::decode_proposer(bytes),
            ProtocolVersion::V3 => ProposerMessage::decode(bytes),
        }
    }

    /// The message as the payload of one CopyData.
    ///
    /// # Errors
    /// When this version has no words for it.
    pub fn encode_acceptor(self, message: &AcceptorMessage) -> Result<Bytes, NeedsVersion3> {
        match self {
            ProtocolVersion::V2 => v2::encode_acceptor(message),
            ProtocolVersion::V3 => Ok(message.encode()),
        }
    }

    /// Reads one message that fills `bytes`.
    ///
    /// # Errors
    /// When the bytes are not exactly one valid message of this version.
    pub fn decode_acceptor(self, bytes: Bytes) -> Result<AcceptorMessage, CodecError> {
        match self {
            ProtocolVersion::V2 => v2::decode_acceptor(bytes),
            ProtocolVersion::V3 => AcceptorMessage::decode(bytes),
        }
    }
}

impl TryFrom<u32> for ProtocolVersion {
    type Error = UnknownVersion;
    fn try_from(number: u32) -> Result<ProtocolVersion, UnknownVersion> {
        match number {
            2 => Ok(ProtocolVersion::V2),
            3 => Ok(ProtocolVersion::V3),
            other => Err(UnknownVersion(other)),
        }
    }
}

impl From<ProtocolVersion> for u32 {
    fn from(version: ProtocolVersion) -> u32 {
        match version {
            ProtocolVersion::V2 => 2,
            ProtocolVersion::V3 => 3,
        }
    }
}

impl fmt::Display for ProtocolVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        u32::from(*self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_its_number() {
        for version in [ProtocolVersion::V2, ProtocolVersion::V3] {
            assert_eq!(ProtocolVersion::try_from(u32::from(version)), Ok(version));
            let text = serde_json::to_string(&version).unwrap();
            assert_eq!(text, version.to_string());
            assert_eq!(serde_json::from_str::<ProtocolVersion>(&text).unwrap(), version);
        }
        for number in [0, 1, 4, u32::MAX] {
            let error = ProtocolVersion::try_from(number).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("protocol version {number} is not spoken here, only 2 and 3")
            );
        }
        assert!(serde_json::from_str::<ProtocolVersion>("4").is_err());
    }
}
