//! Messages between walproposer and safekeeper, and of the redo process: what decodes encodes to the same bytes.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use wal_consensus::message::{AcceptorMessage, ProposerMessage};

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(message) = ProposerMessage::decode(bytes.clone()) {
        assert_eq!(message.encode(), bytes);
    }
    if let Ok(message) = AcceptorMessage::decode(bytes.clone()) {
        let again = AcceptorMessage::decode(message.encode());
        assert_eq!(again.ok(), Some(message));
    }
    let _ = walredo_protocol::parse(data);
});
