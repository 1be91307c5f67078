//! A message as it arrives: encoded and decoded. Every other connection speaks version 2 as long as it can, and to the state
//! machines that must be the same.

use crate::codec::CodecError;
use crate::message::{AcceptorMessage, ProposerMessage};
use crate::version::ProtocolVersion;

fn version(conn: u64) -> ProtocolVersion {
    if conn.is_multiple_of(2) { ProtocolVersion::V3 } else { ProtocolVersion::V2 }
}

pub(super) fn to_sk(conn: u64, message: &ProposerMessage) -> Result<ProposerMessage, String> {
    let decoded = match version(conn).encode_proposer(message) {
        Ok(bytes) => version(conn).decode_proposer(bytes),
        Err(_needs_version_3) => ProposerMessage::decode(message.encode()),
    };
    decoded.map_err(|error: CodecError| error.to_string())
}

pub(super) fn to_proposer(conn: u64, message: &AcceptorMessage) -> Result<AcceptorMessage, String> {
    let decoded = match version(conn).encode_acceptor(message) {
        Ok(bytes) => version(conn).decode_acceptor(bytes),
        Err(_needs_version_3) => AcceptorMessage::decode(message.encode()),
    };
    decoded.map_err(|error: CodecError| error.to_string())
}
