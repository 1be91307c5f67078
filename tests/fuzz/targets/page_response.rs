//! A page server's responses as the compute reads them: the bytes begin with the request that they answer. What
//! decodes encodes to the same bytes, and to the length that is told beforehand.
#![no_main]

use libfuzzer_sys::fuzz_target;
use page_protocol::{
    MAX_REQUEST_LEN, Payload, ProtocolVersion, Request, decode_request, decode_response,
    encode_response, response_len,
};

static PAGE: [u8; pg_types::BLCKSZ] = [0x5A; pg_types::BLCKSZ];

fn check(version: ProtocolVersion, bytes: &[u8], request: &Request) {
    let Ok(payload) = decode_response(version, bytes, request) else { return };
    let mut again = Vec::new();
    encode_response(version, request, &payload, &mut again);
    assert_eq!(again.len(), response_len(version, request, &payload));
    // The text of an error may be cut, and what is no UTF-8 in it is replaced.
    if !matches!(payload, Payload::Error(_)) {
        assert_eq!(again, bytes);
    }
    decode_response(version, &again, request).expect("what we write can be read");
}

fuzz_target!(|data: &[u8]| {
    for version in [ProtocolVersion::V2, ProtocolVersion::V3] {
        for len in 1..=MAX_REQUEST_LEN.min(data.len()) {
            let (request, response) = data.split_at(len);
            let Ok(request) = decode_request(version, request) else { continue };
            check(version, response, &request);
            // A page and a segment are longer than what is found by chance: the right answer, damaged.
            for payload in [
                Payload::Exists(true),
                Payload::Nblocks(7),
                Payload::Page(&PAGE),
                Payload::DbSize(-1),
                Payload::SlruSegment(&PAGE),
                Payload::Error("no".into()),
            ] {
                let mut answer = Vec::new();
                encode_response(version, &request, &payload, &mut answer);
                check(version, &answer, &request);
                let len = answer.len();
                for (at, byte) in response.iter().enumerate().take(64) {
                    answer[at % len] ^= byte;
                }
                check(version, &answer, &request);
                answer.truncate(response.len());
                check(version, &answer, &request);
            }
        }
    }
});
