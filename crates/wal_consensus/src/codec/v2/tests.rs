use proptest::prelude::*;

use super::*;
use crate::codec::tests::{any_acceptor_message, any_proposer_message, hex, history};
use crate::limits::MESSAGE_BYTES_MAX;

/// Golden bytes of every message: written by hand from the layout, not by the encoder.
#[test]
fn messages_have_the_bytes_of_version_2() {
    let greeting = ProposerMessage::Greeting(ProposerGreeting {
        tenant_id: TenantId([0xAB; 16]),
        timeline_id: TimelineId([0x01; 16]),
        mconf: MembershipConf::default(),
        pg_version: 170_011,
        system_id: 0x0102_0304_0506_0708,
        wal_seg_size: 16 << 20,
    });
    let unused = "0000000000000000 0000000000000000";
    let (timeline, tenant) = ("01".repeat(16), "ab".repeat(16));
    let expected = hex(&format!(
        "6700000000000000 02000000 1b980200 {unused} 0807060504030201 {timeline} {tenant} 01000000 00000001"
    ));
    assert_eq!(expected.len(), 80);
    assert_eq!(encode_proposer(&greeting).unwrap(), expected);

    let vote = ProposerMessage::VoteRequest(VoteRequest { generation: GENERATION, term: Term(5) });
    let expected = hex(&format!("7600000000000000 0500000000000000 {unused}"));
    assert_eq!(expected.len(), 32);
    assert_eq!(encode_proposer(&vote).unwrap(), expected);

    let elected = ProposerMessage::Elected(ProposerElected {
        generation: GENERATION,
        term: Term(5),
        start_streaming_at: Lsn(0x10),
        term_history: history(&[(3, 8), (5, 16)]),
    });
    assert_eq!(
        encode_proposer(&elected).unwrap(),
        hex("6500000000000000 0500000000000000 1000000000000000 02000000
             0300000000000000 0800000000000000 0500000000000000 1000000000000000 0800000000000000")
    );

    let header = AppendHeader {
        generation: GENERATION,
        term: Term(5),
        begin_lsn: Lsn(0x10),
        end_lsn: Lsn(0x13),
        commit_lsn: Lsn(0xF),
        truncate_lsn: Lsn(0xE),
    };
    let append =
        ProposerMessage::Append(AppendRequest { header, wal: Bytes::from_static(&[7, 8, 9]) });
    let expected = hex(&format!(
        "6100000000000000 0500000000000000 0000000000000000 1000000000000000 1300000000000000
         0f00000000000000 0e00000000000000 {unused} 070809"
    ));
    assert_eq!(expected.len(), APPEND_HEADER_BYTES + 3);
    assert_eq!(encode_proposer(&append).unwrap(), expected);
    assert_eq!(encode_append_header(&header).unwrap(), expected[..APPEND_HEADER_BYTES]);
}

#[test]
fn responses_have_the_bytes_of_version_2() {
    let (node_id, mconf) = (NodeId(9), MembershipConf::default());
    let greeting = AcceptorMessage::Greeting(AcceptorGreeting { node_id, mconf, term: Term(4) });
    assert_eq!(
        encode_acceptor(&greeting).unwrap(),
        hex("6700000000000000 0400000000000000 0900000000000000")
    );

    let vote = AcceptorMessage::VoteResponse(VoteResponse {
        generation: GENERATION,
        term: Term(5),
        vote_given: true,
        flush_lsn: Lsn(0x20),
        truncate_lsn: Lsn(0x10),
        term_history: history(&[(3, 8)]),
    });
    assert_eq!(
        encode_acceptor(&vote).unwrap(),
        hex("7600000000000000 0500000000000000 0100000000000000 2000000000000000 1000000000000000
             01000000 0300000000000000 0800000000000000 0000000000000000")
    );

    let append = |feedback: &'static [u8]| {
        encode_acceptor(&AcceptorMessage::AppendResponse(AppendResponse {
            generation: GENERATION,
            term: Term(5),
            flush_lsn: Lsn(0x20),
            commit_lsn: Lsn(0x18),
            hs_feedback: HotStandbyFeedback { ts: -2, xmin: 2, catalog_xmin: 3 },
            pageserver_feedback: Bytes::from_static(feedback),
        }))
        .unwrap()
    };
    let plain = hex("6100000000000000 0500000000000000 2000000000000000 1800000000000000
                     feffffffffffffff 0200000000000000 0300000000000000");
    assert_eq!(append(&[]), plain);
    assert_eq!(append(&[1, 2]), [&plain[..], &[1, 2]].concat());
}

/// What another program fills in where we write zeros, or the other way round, changes nothing.
#[test]
fn unused_fields_are_not_looked_at() {
    let filled = "ff".repeat(16);
    let vote = hex(&format!("7600000000000000 0500000000000000 {filled}"));
    let expected = VoteRequest { generation: GENERATION, term: Term(5) };
    assert_eq!(decode_proposer(vote.into()), Ok(ProposerMessage::VoteRequest(expected)));

    let greeting = hex(&format!(
        "6700000000000000 02000000 1b980200 {filled} 0000000000000000 {} {} 07000000 00000001",
        "01".repeat(16),
        "ab".repeat(16)
    ));
    let Ok(ProposerMessage::Greeting(greeting)) = decode_proposer(greeting.into()) else {
        panic!("it is a greeting")
    };
    assert_eq!(greeting.timeline_id, TimelineId([0x01; 16]));
    assert_eq!(greeting.tenant_id, TenantId([0xAB; 16]));
    assert_eq!(greeting.mconf, MembershipConf::default());

    let heartbeat = hex(&format!(
        "6100000000000000 0500000000000000 ffffffffffffffff 1000000000000000 1000000000000000
         0f00000000000000 0e00000000000000 {filled}"
    ));
    let Ok(ProposerMessage::Append(append)) = decode_proposer(heartbeat.into()) else {
        panic!("it is an append request")
    };
    assert_eq!((append.header.begin_lsn, append.header.wal_bytes()), (Lsn(0x10), 0));

    let vote = hex("7600000000000000 0500000000000000 0000000000000000 2000000000000000
                    1000000000000000 00000000 ffffffffffffffff");
    let Ok(AcceptorMessage::VoteResponse(vote)) = decode_acceptor(vote.into()) else {
        panic!("it is a vote response")
    };
    assert_eq!((vote.vote_given, vote.term_history), (false, TermHistory::default()));
}

#[test]
fn refusals_name_the_field() {
    let decode = |text: &str| decode_proposer(Bytes::from(hex(text)));
    assert_eq!(decode(""), Err(CodecError::Short { field: "tag", missing: 8 }));
    assert_eq!(decode("71 00000000000000"), Err(CodecError::UnknownTag(b'q')));
    let value = 0x0100_0000_0000_0076;
    assert_eq!(decode("76 00000000000001"), Err(CodecError::Value { field: "tag", value }));
    let vote = format!("7600000000000000 0500000000000000 {}", "00".repeat(16));
    let cut = vote.get(..vote.len() - 2).unwrap_or_default();
    assert_eq!(decode(cut), Err(CodecError::Short { field: "proposer_id", missing: 1 }));
    assert_eq!(decode(&format!("{vote} 00")), Err(CodecError::Trailing(1)));
    assert_eq!(
        decode("6700000000000000 03000000"),
        Err(CodecError::Value { field: "protocol_version", value: 3 })
    );
    assert_eq!(
        decode("6500000000000000 0500000000000000 1000000000000000 ffffffff"),
        Err(CodecError::Value { field: "term history length", value: 0xFFFF_FFFF })
    );
    let append = format!(
        "6100000000000000 0500000000000000 0000000000000000 1000000000000000 1000030000000000
         0f00000000000000 0e00000000000000 {}",
        "00".repeat(16)
    );
    assert_eq!(decode(&append), Err(CodecError::Value { field: "end_lsn", value: 0x3_0010 }));
    let backwards = append.replace("100003", "0f0000");
    assert_eq!(decode(&backwards), Err(CodecError::Value { field: "end_lsn", value: 0xF }));
    let too_long = Bytes::from(vec![b'v'; MESSAGE_BYTES_MAX + 1]);
    assert_eq!(decode_proposer(too_long), Err(CodecError::TooLong(MESSAGE_BYTES_MAX + 1)));
    let vote = hex("7600000000000000 0500000000000000 0200000000000000");
    assert_eq!(
        decode_acceptor(vote.into()),
        Err(CodecError::Value { field: "vote_given", value: 2 })
    );
}

fn generation_of(message: &mut ProposerMessage) -> &mut Generation {
    match message {
        ProposerMessage::Greeting(greeting) => &mut greeting.mconf.generation,
        ProposerMessage::VoteRequest(request) => &mut request.generation,
        ProposerMessage::Elected(elected) => &mut elected.generation,
        ProposerMessage::Append(append) => &mut append.header.generation,
    }
}

fn generation_of_answer(message: &mut AcceptorMessage) -> &mut Generation {
    match message {
        AcceptorMessage::Greeting(greeting) => &mut greeting.mconf.generation,
        AcceptorMessage::VoteResponse(vote) => &mut vote.generation,
        AcceptorMessage::AppendResponse(append) => &mut append.generation,
    }
}

/// The message as somebody of the empty configuration says it.
fn unnamed(mut message: ProposerMessage) -> ProposerMessage {
    *generation_of(&mut message) = GENERATION;
    if let ProposerMessage::Greeting(greeting) = &mut message {
        greeting.mconf = MembershipConf::default();
    }
    message
}

fn unnamed_answer(mut message: AcceptorMessage) -> AcceptorMessage {
    *generation_of_answer(&mut message) = GENERATION;
    if let AcceptorMessage::Greeting(greeting) = &mut message {
        greeting.mconf = MembershipConf::default();
    }
    message
}

proptest! {
    #[test]
    fn proposer_messages_round_trip(message in any_proposer_message().prop_map(unnamed)) {
        prop_assert_eq!(decode_proposer(encode_proposer(&message).unwrap()), Ok(message));
    }

    #[test]
    fn acceptor_messages_round_trip(message in any_acceptor_message().prop_map(unnamed_answer)) {
        prop_assert_eq!(decode_acceptor(encode_acceptor(&message).unwrap()), Ok(message));
    }

    /// C12: a generation is not lost on the way; what has one is not written at all.
    #[test]
    fn no_message_goes_without_its_generation(
        mut message in any_proposer_message(), mut answer in any_acceptor_message(), generation in 1u32..,
    ) {
        let refused = Err(NeedsVersion3(Generation(generation)));
        *generation_of(&mut message) = Generation(generation);
        prop_assert_eq!(encode_proposer(&message), refused.clone());
        if let ProposerMessage::Append(append) = &message {
            prop_assert_eq!(encode_append_header(&append.header), refused.clone());
        }
        *generation_of_answer(&mut answer) = Generation(generation);
        prop_assert_eq!(encode_acceptor(&answer), refused);
    }

    /// Every strict prefix of a message is refused.
    #[test]
    fn cut_messages_are_refused(
        message in any_proposer_message().prop_map(unnamed), at: prop::sample::Index,
    ) {
        let bytes = encode_proposer(&message).unwrap();
        prop_assert!(decode_proposer(bytes.slice(..at.index(bytes.len()))).is_err());
    }

    /// What is read belongs to generation 0 and survives being written.
    #[test]
    fn any_bytes_give_an_answer(
        tag in prop::sample::select(b"gvea?".to_vec()), bytes: Vec<u8>,
    ) {
        let bytes = Bytes::from([&[tag, 0, 0, 0, 0, 0, 0, 0], &bytes[..]].concat());
        if let Ok(message) = decode_proposer(bytes.clone()) {
            prop_assert_eq!(&unnamed(message.clone()), &message);
            prop_assert_eq!(decode_proposer(encode_proposer(&message).unwrap()), Ok(message));
        }
        if let Ok(message) = decode_acceptor(bytes.clone()) {
            prop_assert_eq!(encode_acceptor(&message).unwrap().len(), bytes.len());
            prop_assert_eq!(decode_acceptor(encode_acceptor(&message).unwrap()), Ok(message));
        }
    }

    /// One flipped byte never makes the decoder fail otherwise than by its error.
    #[test]
    fn damaged_messages_give_an_answer(
        message in any_proposer_message().prop_map(unnamed),
        answer in any_acceptor_message().prop_map(unnamed_answer),
        at: prop::sample::Index,
        flip in 1u8..,
    ) {
        let damage = |bytes: Bytes| {
            let mut bytes = bytes.to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            Bytes::from(bytes)
        };
        let _ = decode_proposer(damage(encode_proposer(&message).unwrap()));
        let _ = decode_acceptor(damage(encode_acceptor(&answer).unwrap()));
    }
}
