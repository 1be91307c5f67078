//! Messages between walproposer and safekeeper, and of the redo process: what decodes says the same after it was written and
//! read again. The bytes may differ, since ids are read in capital letters too, but not their number.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use wal_consensus::message::{AcceptorMessage, ProposerMessage};

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(message) = ProposerMessage::decode(bytes.clone()) {
        let again = message.encode();
        assert_eq!(again.len(), bytes.len());
        assert_eq!(ProposerMessage::decode(again), Ok(message));
    }
    if let Ok(message) = AcceptorMessage::decode(bytes.clone()) {
        let again = AcceptorMessage::decode(message.encode());
        assert_eq!(again.ok(), Some(message));
    }
    let _ = walredo_protocol::parse(data);
});
