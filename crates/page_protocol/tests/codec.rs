//! Both directions of the codec, against the table of sizes and against random input.

use std::borrow::Cow;

use page_protocol::{
    DecodeError, MAX_ERROR_TEXT, MAX_REQUEST_LEN, MAX_RESPONSE_LEN, Payload, ProtocolVersion,
    Request, RequestKind, decode_request, decode_response, encode_request, encode_response,
    response_len,
};
use pg_types::{BLCKSZ, ForkNumber, Lsn, RelFileLocator, RelTag, SlruKind};
use proptest::prelude::*;
use proptest::sample::select;

const V2: ProtocolVersion = ProtocolVersion::V2;
const V3: ProtocolVersion = ProtocolVersion::V3;

fn rel() -> RelTag {
    RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: 0x0102_0304 }.fork(ForkNumber::Vm)
}

fn request(kind: RequestKind) -> Request {
    Request { request_id: 77, request_lsn: Lsn::MAX, not_modified_since: Lsn(0x1234), kind }
}

fn encoded(version: ProtocolVersion, request: &Request) -> Vec<u8> {
    let mut out = Vec::new();
    encode_request(version, request, &mut out);
    out
}

fn answered(version: ProtocolVersion, request: &Request, payload: &Payload<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    encode_response(version, request, payload, &mut out);
    assert_eq!(out.len(), response_len(version, request, payload));
    out
}

#[test]
fn sizes_are_those_of_the_protocol() {
    let page = [1; BLCKSZ];
    let pages = vec![2; 3 * BLCKSZ];
    let table = [
        (RequestKind::Exists(rel()), Payload::Exists(true), [30, 38, 2, 39]),
        (RequestKind::Nblocks(rel()), Payload::Nblocks(9), [30, 38, 5, 42]),
        (RequestKind::GetPage(rel(), 3), Payload::Page(&page), [34, 42, 8193, 8234]),
        (RequestKind::DbSize(5), Payload::DbSize(-1), [21, 29, 9, 37]),
        (
            RequestKind::SlruSegment(SlruKind::Clog, 1),
            Payload::SlruSegment(&pages),
            [22, 30, 5 + 3 * 8192, 34 + 3 * 8192],
        ),
    ];
    for (kind, payload, [request_v2, request_v3, response_v2, response_v3]) in table {
        let request = request(kind);
        assert_eq!(encoded(V2, &request).len(), request_v2);
        assert_eq!(encoded(V3, &request).len(), request_v3);
        assert_eq!(answered(V2, &request, &payload).len(), response_v2);
        assert_eq!(answered(V3, &request, &payload).len(), response_v3);
        let error = Payload::Error(Cow::Borrowed("no"));
        assert_eq!(answered(V2, &request, &error).len(), 1 + 3);
        assert_eq!(answered(V3, &request, &error).len(), 25 + 3);
    }
}

#[test]
fn bytes_of_a_page_request_are_fixed() {
    let bytes = encoded(V3, &request(RequestKind::GetPage(rel(), 0x0A0B_0C0D)));
    let mut expected = vec![2];
    expected.extend(77u64.to_be_bytes());
    expected.extend(u64::MAX.to_be_bytes());
    expected.extend(0x1234u64.to_be_bytes());
    expected.extend([0, 0, 6, 0x7F, 0, 0, 0, 5, 1, 2, 3, 4, 2, 0x0A, 0x0B, 0x0C, 0x0D]);
    assert_eq!(bytes, expected);
}

#[test]
fn a_response_to_another_request_is_refused() {
    let page = [1; BLCKSZ];
    let asked = request(RequestKind::GetPage(rel(), 3));
    let bytes = answered(V3, &asked, &Payload::Page(&page));
    let others = [
        ("request_id", Request { request_id: 78, ..asked }),
        ("request_lsn", Request { request_lsn: Lsn(1), ..asked }),
        ("not_modified_since", Request { not_modified_since: Lsn(1), ..asked }),
        ("tag", Request { kind: RequestKind::Nblocks(rel()), ..asked }),
        ("block", Request { kind: RequestKind::GetPage(rel(), 4), ..asked }),
        (
            "fork",
            Request {
                kind: RequestKind::GetPage(rel().locator.fork(ForkNumber::Main), 3),
                ..asked
            },
        ),
    ];
    for (wrong, other) in others {
        match decode_response(V3, &bytes, &other) {
            Err(DecodeError::Mismatch { field, .. }) => assert_eq!(field, wrong),
            other => panic!("{wrong}: {other:?}"),
        }
    }
}

#[test]
fn error_texts_are_bounded_and_end_at_a_nul() {
    let asked = request(RequestKind::DbSize(1));
    let long = "ä".repeat(MAX_ERROR_TEXT);
    let bytes = answered(V3, &asked, &Payload::Error(Cow::Borrowed(&long)));
    assert!(bytes.len() <= 25 + MAX_ERROR_TEXT + 1);
    let Ok(Payload::Error(text)) = decode_response(V3, &bytes, &asked) else { panic!() };
    assert!(long.starts_with(&*text) && text.len() > MAX_ERROR_TEXT - 4);

    let bytes = answered(V2, &asked, &Payload::Error(Cow::Borrowed("a\0b")));
    assert_eq!(decode_response(V2, &bytes, &asked), Ok(Payload::Error(Cow::Borrowed("a"))));
}

#[test]
fn values_without_meaning_are_named() {
    let mut bytes = encoded(V3, &request(RequestKind::Exists(rel())));
    bytes[37] = 4;
    let error = decode_request(V3, &bytes).unwrap_err();
    assert_eq!(error.to_string(), "page request has field \"fork\" = 4, which has no meaning");
    assert_eq!(
        decode_request(V3, &[99]),
        Err(DecodeError::UnknownTag { what: "page request", tag: 99 })
    );
    let asked = request(RequestKind::SlruSegment(SlruKind::Clog, 0));
    let mut bytes = answered(V2, &asked, &Payload::SlruSegment(&[]));
    bytes[4] = 33;
    assert_eq!(
        decode_response(V2, &bytes, &asked),
        Err(DecodeError::BadValue { what: "page response", field: "nblocks", value: 33 })
    );
}

fn any_rel() -> impl Strategy<Value = RelTag> {
    (any::<[u32; 3]>(), select(&ForkNumber::ALL)).prop_map(
        |([spc_oid, db_oid, rel_number], fork)| {
            RelFileLocator { spc_oid, db_oid, rel_number }.fork(fork)
        },
    )
}

fn any_request() -> impl Strategy<Value = Request> {
    let kind = prop_oneof![
        any_rel().prop_map(RequestKind::Exists),
        any_rel().prop_map(RequestKind::Nblocks),
        (any_rel(), any::<u32>()).prop_map(|(rel, blkno)| RequestKind::GetPage(rel, blkno)),
        any::<u32>().prop_map(RequestKind::DbSize),
        (select(&SlruKind::ALL), any::<u32>())
            .prop_map(|(kind, segno)| RequestKind::SlruSegment(kind, segno)),
    ];
    (any::<[u64; 3]>(), kind).prop_map(|([request_id, lsn, since], kind)| Request {
        request_id,
        request_lsn: Lsn(lsn),
        not_modified_since: Lsn(since),
        kind,
    })
}

proptest! {
    #[test]
    fn requests_round_trip(request in any_request()) {
        let bytes = encoded(V3, &request);
        prop_assert!(bytes.len() <= MAX_REQUEST_LEN);
        prop_assert_eq!(decode_request(V3, &bytes), Ok(request));
        let without_id = Request { request_id: 0, ..request };
        prop_assert_eq!(decode_request(V2, &encoded(V2, &request)), Ok(without_id));
    }

    #[test]
    fn responses_round_trip(request in any_request(), n in any::<u32>(), byte: u8, fail: bool,
                            text in "[^\0]{0,100}") {
        let page = [byte; BLCKSZ];
        let pages = vec![byte; (n % 33) as usize * BLCKSZ];
        let payload = if fail { Payload::Error(Cow::Borrowed(&text)) } else {
            match request.kind {
                RequestKind::Exists(_) => Payload::Exists(n & 1 == 1),
                RequestKind::Nblocks(_) => Payload::Nblocks(n),
                RequestKind::GetPage(..) => Payload::Page(&page),
                RequestKind::DbSize(_) => Payload::DbSize(-i64::from(n)),
                RequestKind::SlruSegment(..) => Payload::SlruSegment(&pages),
            }
        };
        for version in [V2, V3] {
            let bytes = answered(version, &request, &payload);
            prop_assert!(bytes.len() <= MAX_RESPONSE_LEN);
            prop_assert_eq!(decode_response(version, &bytes, &request), Ok(payload.clone()));
        }
    }

    #[test]
    fn any_cut_or_longer_message_is_an_error(request in any_request(), cut in 0usize..42) {
        for version in [V2, V3] {
            let mut bytes = encoded(version, &request);
            if cut < bytes.len() {
                prop_assert!(decode_request(version, &bytes[..cut]).is_err());
            }
            bytes.push(0);
            prop_assert!(decode_request(version, &bytes).is_err());
        }
    }

    #[test]
    fn any_bytes_are_decoded_without_panic(
        tag in prop_oneof![0u8..6, 99u8..107, any::<u8>()],
        body in proptest::collection::vec(any::<u8>(), 0..80),
        request in any_request(),
    ) {
        let mut bytes = vec![tag];
        bytes.extend(body);
        for version in [V2, V3] {
            if let Ok(decoded) = decode_request(version, &bytes) {
                prop_assert_eq!(encoded(version, &decoded), bytes.clone());
            }
            let _ = decode_response(version, &bytes, &request);
        }
    }
}
