use pg_types::{TenantId, TimelineId};
use proptest::prelude::*;

use super::*;

pub(super) fn history(entries: &[(u64, u64)]) -> TermHistory {
    TermHistory::new(entries.iter().copied().map(TermLsn::from).collect()).unwrap()
}

pub(super) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Golden bytes of every message (L226–L235): written by hand from the layout, not by the encoder.
#[test]
fn messages_have_the_bytes_of_version_3() {
    let greeting = ProposerMessage::Greeting(ProposerGreeting {
        tenant_id: TenantId([0xAB; 16]),
        timeline_id: TimelineId([1; 16]),
        mconf: MembershipConf::default(),
        pg_version: 170_011,
        system_id: 0x0102_0304_0506_0708,
        wal_seg_size: 16 << 20,
    });
    let mut expected = vec![b'g'];
    expected.extend([b"ab".repeat(16), vec![0], b"01".repeat(16), vec![0]].concat());
    expected.extend(hex("00000000 00000000 00000000 0002981b 0102030405060708 01000000"));
    assert_eq!(greeting.encode(), expected);
    // Ids are read in capital letters too, and written in small ones.
    expected[1..33].make_ascii_uppercase();
    assert_eq!(ProposerMessage::decode(expected.into()), Ok(greeting));

    let vote =
        ProposerMessage::VoteRequest(VoteRequest { generation: Generation(2), term: Term(5) });
    assert_eq!(vote.encode(), hex("76 00000002 0000000000000005"));

    let elected = ProposerMessage::Elected(ProposerElected {
        generation: Generation(2),
        term: Term(5),
        start_streaming_at: Lsn(0x10),
        term_history: history(&[(3, 8), (5, 16)]),
    });
    assert_eq!(
        elected.encode(),
        hex("65 00000002 0000000000000005 0000000000000010 00000002
             0000000000000003 0000000000000008 0000000000000005 0000000000000010")
    );
    assert_eq!(elected.encode().len(), 25 + 16 * 2);

    let header = AppendHeader {
        generation: Generation(2),
        term: Term(5),
        begin_lsn: Lsn(0x10),
        end_lsn: Lsn(0x13),
        commit_lsn: Lsn(0xF),
        truncate_lsn: Lsn(0xE),
    };
    let append =
        ProposerMessage::Append(AppendRequest { header, wal: Bytes::from_static(&[7, 8, 9]) });
    assert_eq!(
        append.encode(),
        hex("61 00000002 0000000000000005 0000000000000010 0000000000000013
             000000000000000f 000000000000000e 070809")
    );

    let mconf = MembershipConf {
        generation: Generation(3),
        members: vec![Member { id: NodeId(1), host: "a".into(), pg_port: 5454 }],
        new_members: Some(vec![Member { id: NodeId(2), host: "b".into(), pg_port: 1 }]),
    };
    let greeting =
        AcceptorMessage::Greeting(AcceptorGreeting { node_id: NodeId(9), mconf, term: Term(4) });
    assert_eq!(
        greeting.encode(),
        hex("67 0000000000000009 00000003
             00000001 0000000000000001 6100 154e
             00000001 0000000000000002 6200 0001 0000000000000004")
    );
}

#[test]
fn responses_have_the_bytes_of_version_3() {
    let vote = AcceptorMessage::VoteResponse(VoteResponse {
        generation: Generation(0),
        term: Term(5),
        vote_given: true,
        flush_lsn: Lsn(0x20),
        truncate_lsn: Lsn(0x10),
        term_history: history(&[(3, 8)]),
    });
    assert_eq!(
        vote.encode(),
        hex("76 00000000 0000000000000005 01 0000000000000020 0000000000000010 00000001
             0000000000000003 0000000000000008")
    );
    assert_eq!(vote.encode().len(), 34 + 16);

    let append = |feedback: &'static [u8]| {
        AcceptorMessage::AppendResponse(AppendResponse {
            generation: Generation(0),
            term: Term(5),
            flush_lsn: Lsn(0x20),
            commit_lsn: Lsn(0x18),
            hs_feedback: HotStandbyFeedback { ts: -1, xmin: 2, catalog_xmin: 3 },
            pageserver_feedback: Bytes::from_static(feedback),
        })
    };
    let plain = hex("61 00000000 0000000000000005 0000000000000020 0000000000000018
         ffffffffffffffff 0000000000000002 0000000000000003");
    assert_eq!(plain.len(), 53);
    assert_eq!(append(&[]).encode(), plain);
    assert_eq!(append(&[1, 2]).encode(), [&plain[..], &[1, 2]].concat());
}

#[test]
fn refusals_name_the_field() {
    let decode = |text: &str| ProposerMessage::decode(Bytes::from(hex(text)));
    assert_eq!(decode(""), Err(CodecError::Short { field: "tag", missing: 1 }));
    assert_eq!(decode("71"), Err(CodecError::UnknownTag(b'q')));
    assert_eq!(decode("76 00000002 00"), Err(CodecError::Short { field: "term", missing: 7 }));
    assert_eq!(decode("76 00000002 0000000000000005 00"), Err(CodecError::Trailing(1)));
    assert_eq!(
        decode("65 00000002 0000000000000005 0000000000000010 ffffffff"),
        Err(CodecError::Value { field: "term history length", value: 0xFFFF_FFFF })
    );
    let append = "61 00000002 0000000000000005 0000000000000010 0000000000030010
                  000000000000000f 000000000000000e";
    assert_eq!(decode(append), Err(CodecError::Value { field: "end_lsn", value: 0x3_0010 }));
    let backwards = append.replace("30010", "0000f");
    assert_eq!(decode(&backwards), Err(CodecError::Value { field: "end_lsn", value: 0xF }));
    let too_long = Bytes::from(vec![b'v'; MESSAGE_BYTES_MAX + 1]);
    assert_eq!(ProposerMessage::decode(too_long), Err(CodecError::TooLong(MESSAGE_BYTES_MAX + 1)));
}

prop_compose! {
    fn any_history()(steps in prop::collection::vec((1u64..9, 0u64..1 << 40), 0..6)) -> TermHistory {
        let (mut term, mut lsn) = (0, 0);
        let entries = steps.into_iter().map(|(term_step, lsn_step)| {
            term += term_step;
            lsn += lsn_step;
            TermLsn::from((term, lsn))
        });
        TermHistory::new(entries.collect()).unwrap()
    }
}

fn any_members() -> impl Strategy<Value = Vec<Member>> {
    prop::collection::btree_map(1u64.., ("[^\\x00]{0,12}", any::<u16>()), 1..5).prop_map(|map| {
        map.into_iter()
            .map(|(id, (host, pg_port))| Member { id: NodeId(id), host, pg_port })
            .collect()
    })
}

fn any_mconf() -> impl Strategy<Value = MembershipConf> {
    let named = (1u32.., any_members(), prop::option::of(any_members())).prop_map(
        |(generation, members, new_members)| MembershipConf {
            generation: Generation(generation),
            members,
            new_members,
        },
    );
    prop_oneof![Just(MembershipConf::default()), named]
}

pub(super) fn any_proposer_message() -> impl Strategy<Value = ProposerMessage> {
    let greeting = (any::<[u8; 16]>(), any::<[u8; 16]>(), any_mconf(), any::<(u32, u64, u32)>())
        .prop_map(|(tenant, timeline, mconf, (pg_version, system_id, wal_seg_size))| {
            ProposerMessage::Greeting(ProposerGreeting {
                tenant_id: TenantId(tenant),
                timeline_id: TimelineId(timeline),
                mconf,
                pg_version,
                system_id,
                wal_seg_size,
            })
        });
    let vote = any::<(u32, u64)>().prop_map(|(generation, term)| {
        let generation = Generation(generation);
        ProposerMessage::VoteRequest(VoteRequest { generation, term: Term(term) })
    });
    let elected = (any::<(u32, u64, u64)>(), any_history()).prop_map(
        |((generation, term, start), term_history)| {
            ProposerMessage::Elected(ProposerElected {
                generation: Generation(generation),
                term: Term(term),
                start_streaming_at: Lsn(start),
                term_history,
            })
        },
    );
    let append = (any::<(u32, u64, u64, u64)>(), 0..u64::MAX / 2, any::<Vec<u8>>()).prop_map(
        |((generation, term, commit, truncate), begin, wal)| {
            let header = AppendHeader {
                generation: Generation(generation),
                term: Term(term),
                begin_lsn: Lsn(begin),
                end_lsn: Lsn(begin + wal.len() as u64),
                commit_lsn: Lsn(commit),
                truncate_lsn: Lsn(truncate),
            };
            ProposerMessage::Append(AppendRequest { header, wal: wal.into() })
        },
    );
    prop_oneof![greeting, vote, elected, append]
}

pub(super) fn any_acceptor_message() -> impl Strategy<Value = AcceptorMessage> {
    let greeting = (any::<(u64, u64)>(), any_mconf()).prop_map(|((node, term), mconf)| {
        AcceptorMessage::Greeting(AcceptorGreeting {
            node_id: NodeId(node),
            mconf,
            term: Term(term),
        })
    });
    let vote = (any::<(u32, u64, bool, u64, u64)>(), any_history()).prop_map(
        |((generation, term, vote_given, flush, truncate), term_history)| {
            AcceptorMessage::VoteResponse(VoteResponse {
                generation: Generation(generation),
                term: Term(term),
                vote_given,
                flush_lsn: Lsn(flush),
                truncate_lsn: Lsn(truncate),
                term_history,
            })
        },
    );
    let append = (any::<(u32, u64, u64, u64, i64, u64, u64)>(), any::<Vec<u8>>()).prop_map(
        |(fields, feedback)| {
            AcceptorMessage::AppendResponse(AppendResponse {
                generation: Generation(fields.0),
                term: Term(fields.1),
                flush_lsn: Lsn(fields.2),
                commit_lsn: Lsn(fields.3),
                hs_feedback: HotStandbyFeedback {
                    ts: fields.4,
                    xmin: fields.5,
                    catalog_xmin: fields.6,
                },
                pageserver_feedback: feedback.into(),
            })
        },
    );
    prop_oneof![greeting, vote, append]
}

proptest! {
    #[test]
    fn proposer_messages_round_trip(message in any_proposer_message()) {
        prop_assert_eq!(ProposerMessage::decode(message.encode()), Ok(message));
    }

    #[test]
    fn acceptor_messages_round_trip(message in any_acceptor_message()) {
        prop_assert_eq!(AcceptorMessage::decode(message.encode()), Ok(message));
    }

    /// Every strict prefix of a message is refused.
    #[test]
    fn cut_messages_are_refused(message in any_proposer_message(), at: prop::sample::Index) {
        let bytes = message.encode();
        prop_assert!(ProposerMessage::decode(bytes.slice(..at.index(bytes.len()))).is_err());
    }

    #[test]
    fn any_bytes_give_an_answer(
        tag in prop::sample::select(b"gvea?".to_vec()), bytes: Vec<u8>,
    ) {
        let bytes = Bytes::from([vec![tag], bytes].concat());
        if let Ok(message) = ProposerMessage::decode(bytes.clone()) {
            prop_assert_eq!(message.encode(), bytes.clone());
        }
        let _ = AcceptorMessage::decode(bytes);
    }

    /// One flipped byte never makes the decoder fail otherwise than by its error.
    #[test]
    fn damaged_messages_give_an_answer(
        message in any_acceptor_message(), at: prop::sample::Index, flip in 1u8..,
    ) {
        let mut bytes = message.encode().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let _ = AcceptorMessage::decode(Bytes::from(bytes));
    }
}
