//! Messages between walproposer and safekeeper in protocol version 2: what decodes has no generation, and says the same
//! after it was written and read again.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use wal_consensus::message::{AcceptorMessage, ProposerMessage};
use wal_consensus::version::ProtocolVersion::V2;

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(message) = V2.decode_proposer(bytes.clone()) {
        let again = V2.encode_proposer(&message).expect("it is of generation 0");
        assert_eq!(again.len(), bytes.len());
        assert_eq!(V2.decode_proposer(again).as_ref(), Ok(&message));
        if let ProposerMessage::Append(append) = &message {
            let header = V2.encode_append_header(&append.header).expect("it is of generation 0");
            assert_eq!(header.len() + append.wal.len(), bytes.len());
        }
        // The other version has words for everything.
        assert_eq!(ProposerMessage::decode(message.encode()), Ok(message));
    }
    if let Ok(message) = V2.decode_acceptor(bytes.clone()) {
        let again = V2.encode_acceptor(&message).expect("it is of generation 0");
        assert_eq!(again.len(), bytes.len());
        assert_eq!(V2.decode_acceptor(again).as_ref(), Ok(&message));
        assert_eq!(AcceptorMessage::decode(message.encode()), Ok(message));
    }
});
