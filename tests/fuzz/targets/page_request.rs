//! Page requests and responses in both versions: what decodes encodes to the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use page_protocol::{ProtocolVersion, decode_request, decode_response, encode_request};

fuzz_target!(|data: &[u8]| {
    for version in [ProtocolVersion::V2, ProtocolVersion::V3] {
        let Ok(request) = decode_request(version, data) else { continue };
        let mut again = Vec::new();
        encode_request(version, &request, &mut again);
        assert_eq!(again, data);
        // A response of the same bytes must be refused or read, not panicked over.
        let _ = decode_response(version, data, &request);
    }
});
