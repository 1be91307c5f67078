//! Messages between walproposer and safekeeper, and of the redo process: what decodes encodes to the same bytes, but that ids
//! are read in capital letters too.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use wal_consensus::message::{AcceptorMessage, ProposerMessage};

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(message) = ProposerMessage::decode(bytes.clone()) {
        let mut expected = data.to_vec();
        if let ProposerMessage::Greeting(_) = message {
            // Two ids behind the tag, each with a zero at its end.
            expected[1..67].make_ascii_lowercase();
        }
        assert_eq!(message.encode(), expected);
    }
    if let Ok(message) = AcceptorMessage::decode(bytes.clone()) {
        let again = AcceptorMessage::decode(message.encode());
        assert_eq!(again.ok(), Some(message));
    }
    let _ = walredo_protocol::parse(data);
});
