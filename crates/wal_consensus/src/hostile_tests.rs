//! Peers that send well-formed nonsense: no panic, no broken order of positions, no commit without a quorum.

use std::collections::BTreeMap;

use bytes::Bytes;
use pg_types::{Generation, Lsn, NodeId, TenantId, Term, TimelineId};
use proptest::prelude::*;

use crate::acceptor::{Acceptor, AcceptorInput};
use crate::command::{AcceptorCommand, AcceptorIdentity, AcceptorState, ConnId};
use crate::membership::MembershipConf;
use crate::message::{
    AcceptorGreeting, AcceptorMessage, AppendHeader, AppendRequest, AppendResponse,
    HotStandbyFeedback, ProposerElected, ProposerGreeting, ProposerMessage, VoteRequest,
    VoteResponse,
};
use crate::proposer::{
    Proposer, ProposerCommand, ProposerConfig, ProposerInput, ProposerMode, SkId,
};
use crate::term_history::{TermHistory, TermLsn};

const TENANT: TenantId = TenantId([1; 16]);
const TIMELINE: TimelineId = TimelineId([2; 16]);

/// Small numbers meet often; huge ones overflow.
fn any_lsn() -> impl Strategy<Value = Lsn> {
    prop_oneof![8 => (0u64..12).prop_map(|n| Lsn(n * 8)), 1 => any::<u64>().prop_map(Lsn)]
}

fn any_term() -> impl Strategy<Value = Term> {
    prop_oneof![8 => (0u64..6).prop_map(Term), 1 => any::<u64>().prop_map(Term)]
}

fn any_history() -> impl Strategy<Value = TermHistory> {
    prop::collection::vec((any_term(), any_lsn()), 0..5).prop_map(|mut entries| {
        entries.sort();
        entries.dedup_by_key(|(term, _)| *term);
        let mut lsn = Lsn(0);
        let rising = entries.into_iter().map(|(term, at)| {
            lsn = lsn.max(at);
            TermLsn { term, lsn }
        });
        TermHistory::new(rising.collect()).unwrap()
    })
}

fn any_proposer_message() -> impl Strategy<Value = ProposerMessage> {
    let generation = Generation(0);
    let greeting = any::<(bool, bool)>().prop_map(|(right, version)| {
        ProposerMessage::Greeting(ProposerGreeting {
            tenant_id: TENANT,
            timeline_id: if right { TIMELINE } else { TimelineId([0; 16]) },
            mconf: MembershipConf::default(),
            pg_version: if version { 170_000 } else { 0 },
            system_id: 7,
            wal_seg_size: 1 << 24,
        })
    });
    let vote = any_term()
        .prop_map(move |term| ProposerMessage::VoteRequest(VoteRequest { generation, term }));
    let elected = (any_term(), any_lsn(), any_history()).prop_map(
        move |(term, start_streaming_at, term_history)| {
            ProposerMessage::Elected(ProposerElected {
                generation,
                term,
                start_streaming_at,
                term_history,
            })
        },
    );
    let append = (any_term(), any_lsn(), 0usize..20, any_lsn(), any_lsn()).prop_map(
        move |(term, begin_lsn, length, commit_lsn, truncate_lsn)| {
            let end_lsn = Lsn(begin_lsn.0.saturating_add(length as u64));
            let header =
                AppendHeader { generation, term, begin_lsn, end_lsn, commit_lsn, truncate_lsn };
            ProposerMessage::Append(AppendRequest { header, wal: Bytes::from(vec![1; length]) })
        },
    );
    prop_oneof![1 => greeting, 3 => vote, 4 => elected, 4 => append]
}

fn any_acceptor_message() -> impl Strategy<Value = AcceptorMessage> {
    let generation = prop_oneof![20 => Just(Generation(0)), 1 => Just(Generation(1))];
    let greeting = (0u64..4, any_term()).prop_map(|(node, term)| {
        let mconf = MembershipConf::default();
        AcceptorMessage::Greeting(AcceptorGreeting { node_id: NodeId(node), mconf, term })
    });
    let vote = (generation.clone(), any_term(), any::<bool>(), any_lsn(), any_lsn(), any_history());
    let vote =
        vote.prop_map(|(generation, term, vote_given, flush_lsn, truncate_lsn, term_history)| {
            AcceptorMessage::VoteResponse(VoteResponse {
                generation,
                term,
                vote_given,
                flush_lsn,
                truncate_lsn,
                term_history,
            })
        });
    let append = (generation, any_term(), any_lsn(), any_lsn()).prop_map(
        |(generation, term, flush_lsn, commit_lsn)| {
            AcceptorMessage::AppendResponse(AppendResponse {
                generation,
                term,
                flush_lsn,
                commit_lsn,
                hs_feedback: HotStandbyFeedback::default(),
                pageserver_feedback: Bytes::new(),
            })
        },
    );
    prop_oneof![greeting, vote, append]
}

fn any_proposer_input() -> impl Strategy<Value = ProposerInput> {
    // One number is beyond the list.
    let sk = || (0usize..4).prop_map(SkId);
    prop_oneof![
        3 => sk().prop_map(|sk| ProposerInput::Connected { sk }),
        1 => sk().prop_map(|sk| ProposerInput::Disconnected { sk }),
        12 => (sk(), any_acceptor_message())
            .prop_map(|(sk, message)| ProposerInput::Message { sk, message }),
        1 => (any_lsn(), any_lsn())
            .prop_map(|(begin_lsn, end_lsn)| ProposerInput::WalHeld { begin_lsn, end_lsn }),
        1 => (sk(), any_lsn(), any_lsn()).prop_map(|(sk, begin_lsn, end_lsn)| {
            ProposerInput::FetchedHeld { sk, begin_lsn, end_lsn }
        }),
        1 => sk().prop_map(|sk| ProposerInput::FetchFailed { sk }),
        1 => (sk(), any::<u64>())
            .prop_map(|(sk, wal_bytes)| ProposerInput::Written { sk, wal_bytes }),
        1 => Just(ProposerInput::Heartbeat),
        1 => Just(ProposerInput::TellCommit),
    ]
}

/// What three honest safekeepers would say up to the election: random words rarely get there.
fn honest_election() -> Vec<ProposerInput> {
    let history = TermHistory::new(vec![TermLsn { term: Term(0), lsn: Lsn(16) }]).unwrap();
    let mut inputs = Vec::new();
    for index in 0..3 {
        let (sk, mconf) = (SkId(index), MembershipConf::default());
        let node_id = NodeId(index as u64 + 1);
        let greeting = AcceptorGreeting { node_id, mconf, term: Term(0) };
        inputs.push(ProposerInput::Connected { sk });
        let message = AcceptorMessage::Greeting(greeting);
        inputs.push(ProposerInput::Message { sk, message });
    }
    for index in 0..3 {
        let vote = VoteResponse {
            generation: Generation(0),
            term: Term(1),
            vote_given: true,
            flush_lsn: Lsn(16),
            truncate_lsn: Lsn(16),
            term_history: history.clone(),
        };
        let message = AcceptorMessage::VoteResponse(vote);
        inputs.push(ProposerInput::Message { sk: SkId(index), message });
    }
    inputs
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever proposers send, positions stay in order, terms rise, and a term gets one vote.
    #[test]
    fn an_acceptor_survives_any_proposer(
        inputs in prop::collection::vec((0u64..3, any_proposer_message(), any::<bool>()), 0..40),
    ) {
        let identity =
            AcceptorIdentity { node_id: NodeId(1), tenant_id: TENANT, timeline_id: TIMELINE };
        let mut acceptor = Acceptor::new(identity, AcceptorState::default(), Lsn(0)).unwrap();
        let (mut term, mut commit_lsn) = (Term(0), Lsn(0));
        let mut votes = BTreeMap::new();
        for (conn, message, flush) in inputs {
            let mut commands = acceptor.step(AcceptorInput::Message { conn: ConnId(conn), message });
            if flush {
                let end = acceptor.ladder().write_lsn;
                let report = AcceptorInput::Flushed { flush_lsn: end, synced_lsn: end };
                commands.extend(acceptor.step(report));
            }
            prop_assert_eq!(acceptor.ladder().validate(), Ok(()));
            prop_assert!(term <= acceptor.state().term);
            prop_assert!(commit_lsn <= acceptor.ladder().commit_lsn, "[C6]");
            (term, commit_lsn) = (acceptor.state().term, acceptor.ladder().commit_lsn);
            for command in commands {
                let quarantined = matches!(command, AcceptorCommand::Quarantine { .. });
                prop_assert!(!quarantined, "{:?}", command);
                if let AcceptorCommand::Reply {
                    message: AcceptorMessage::VoteResponse(VoteResponse { vote_given: true, term, .. }), ..
                } = command {
                    *votes.entry(term).or_insert(0) += 1;
                    prop_assert_eq!(votes[&term], 1, "[C2]");
                }
            }
        }
    }

    /// Whatever safekeepers send, commit moves only forward and never above what was sent to two of three, and a proposer
    /// that has lost says nothing any more ([C11]).
    #[test]
    fn a_proposer_survives_any_safekeepers(
        inputs in prop::collection::vec(any_proposer_input(), 0..80), sync: bool, honest: bool,
    ) {
        let honest = if honest { honest_election() } else { Vec::new() };
        let inputs = honest.into_iter().chain(inputs);
        let stream = ProposerMode::Stream { start_lsn: Lsn(16), own_terms: vec![Term(2)] };
        let mut proposer = Proposer::new(ProposerConfig {
            tenant_id: TENANT,
            timeline_id: TIMELINE,
            pg_version: 170_000,
            system_id: 7,
            wal_seg_size: 1 << 24,
            safekeepers: 3,
            mconf: MembershipConf::default(),
            min_term: Term(0),
            mode: if sync { ProposerMode::Sync } else { stream },
        });
        let (mut over, mut commit_lsn) = (false, Lsn(0));
        let mut sent: BTreeMap<SkId, Lsn> = BTreeMap::new();
        for input in inputs {
            let commands = proposer.step(input);
            prop_assert!(!over || commands.is_empty(), "[C11]");
            for command in commands {
                match command {
                    ProposerCommand::Append { sk, header } => {
                        let high = sent.entry(sk).or_default();
                        *high = header.end_lsn.max(*high);
                    }
                    ProposerCommand::CommitAdvanced { commit_lsn: next } => {
                        prop_assert!(commit_lsn < next);
                        commit_lsn = next;
                        let reached = sent.values().filter(|lsn| next <= **lsn).count();
                        prop_assert!(2 <= reached, "commit {} was sent to {}", next, reached);
                    }
                    ProposerCommand::Lost { .. } | ProposerCommand::Synced { .. } => over = true,
                    _ => {}
                }
            }
        }
    }
}
