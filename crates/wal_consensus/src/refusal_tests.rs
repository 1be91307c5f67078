//! What an acceptor refuses, one reason after the other.

use bytes::Bytes;
use pg_types::{Generation, Lsn, NodeId, TenantId, Term, TimelineId};

use crate::acceptor::{Acceptor, AcceptorInput};
use crate::command::{AcceptorCommand, AcceptorIdentity, AcceptorState, ConnId};
use crate::membership::{Member, MembershipConf, MembershipError};
use crate::message::{
    AcceptorMessage, AppendHeader, AppendRequest, ProposerElected, ProposerGreeting,
    ProposerMessage, VoteRequest,
};
use crate::refusal::{Quarantine, Refusal};
use crate::term_history::{TermHistory, TermLsn};

const CONN: ConnId = ConnId(1);
const TENANT: TenantId = TenantId([1; 16]);
const TIMELINE: TimelineId = TimelineId([2; 16]);

fn history(entries: &[(u64, u64)]) -> TermHistory {
    TermHistory::new(entries.iter().copied().map(TermLsn::from).collect()).unwrap()
}

/// A timeline from 100 on, committed up to 200, with a log up to 300, in term 3.
fn acceptor() -> Acceptor {
    let identity =
        AcceptorIdentity { node_id: NodeId(1), tenant_id: TENANT, timeline_id: TIMELINE };
    let state = AcceptorState {
        term: Term(3),
        term_history: history(&[(0, 100), (3, 160)]),
        pg_version: 170_011,
        system_id: 7,
        wal_seg_size: 16 << 20,
        timeline_start_lsn: Lsn(100),
        local_start_lsn: Lsn(100),
        commit_lsn: Lsn(200),
        ..AcceptorState::default()
    };
    Acceptor::new(identity, state, Lsn(300)).unwrap()
}

fn send(acceptor: &mut Acceptor, message: ProposerMessage) -> Vec<AcceptorCommand> {
    acceptor.step(AcceptorInput::Message { conn: CONN, message })
}

/// The refusal of a message, which changes nothing.
fn refusal(acceptor: &mut Acceptor, message: ProposerMessage) -> Refusal {
    let (state, ladder) = (acceptor.state().clone(), acceptor.ladder());
    let commands = send(acceptor, message);
    assert_eq!((acceptor.state(), acceptor.ladder()), (&state, ladder));
    match <[AcceptorCommand; 1]>::try_from(commands) {
        Ok([AcceptorCommand::Close { conn: CONN, refusal }]) => *refusal,
        other => panic!("not refused: {other:?}"),
    }
}

fn greeting() -> ProposerGreeting {
    ProposerGreeting {
        tenant_id: TENANT,
        timeline_id: TIMELINE,
        mconf: MembershipConf::default(),
        pg_version: 170_004,
        system_id: 7,
        wal_seg_size: 16 << 20,
    }
}

fn elected(term: u64, start: u64, entries: &[(u64, u64)]) -> ProposerMessage {
    ProposerMessage::Elected(ProposerElected {
        generation: Generation(0),
        term: Term(term),
        start_streaming_at: Lsn(start),
        term_history: history(entries),
    })
}

fn append(term: u64, begin: u64, bytes: usize) -> ProposerMessage {
    let header = AppendHeader {
        generation: Generation(0),
        term: Term(term),
        begin_lsn: Lsn(begin),
        end_lsn: Lsn(begin + bytes as u64),
        commit_lsn: Lsn(0),
        truncate_lsn: Lsn(0),
    };
    ProposerMessage::Append(AppendRequest { header, wal: Bytes::from(vec![0; bytes]) })
}

fn conf(generation: u32, ids: &[u64]) -> MembershipConf {
    let member = |id: &u64| Member { id: NodeId(*id), host: "sk".into(), pg_port: 1 };
    MembershipConf {
        generation: Generation(generation),
        members: ids.iter().map(member).collect(),
        new_members: None,
    }
}

#[test]
fn greetings() {
    let mut acceptor = acceptor();
    let mut refused = |greeting| refusal(&mut acceptor, ProposerMessage::Greeting(greeting));
    let other = ProposerGreeting { timeline_id: TimelineId([9; 16]), ..greeting() };
    assert!(matches!(refused(other), Refusal::WrongTimeline { .. }));
    let other = ProposerGreeting { pg_version: 180_000, ..greeting() };
    assert!(matches!(refused(other), Refusal::PgVersion { theirs: 180_000, ours: 170_011 }));
    let other = ProposerGreeting { wal_seg_size: 1 << 20, ..greeting() };
    assert!(matches!(refused(other), Refusal::WalSegSize { .. }));
    let other = ProposerGreeting { system_id: 8, ..greeting() };
    assert_eq!(refused(other), Refusal::SystemId { theirs: 8, ours: 7 });
    let other = ProposerGreeting { mconf: conf(1, &[2, 3]), ..greeting() };
    let expected = Refusal::NotMember { node_id: NodeId(1), generation: Generation(1) };
    assert_eq!(refused(other), expected);
    // What is not known yet does not differ.
    let unknown = ProposerGreeting { system_id: 0, pg_version: 0, ..greeting() };
    assert_eq!(send(&mut acceptor, ProposerMessage::Greeting(unknown)).len(), 1);
}

#[test]
fn membership_only_moves_forward() {
    let mut acceptor = acceptor();
    let newer = ProposerGreeting { mconf: conf(2, &[1, 2]), ..greeting() };
    let commands = send(&mut acceptor, ProposerMessage::Greeting(newer));
    assert!(matches!(commands[..], [AcceptorCommand::SaveState(_), AcceptorCommand::Reply { .. }]));
    // The same one again, in whatever order, changes nothing (L240).
    assert_eq!(acceptor.switch_membership(&conf(2, &[1, 2])), Ok(vec![]));
    assert_eq!(acceptor.switch_membership(&conf(2, &[2, 1])), Ok(vec![]));
    // L241
    let older = acceptor.switch_membership(&conf(1, &[1])).unwrap_err();
    let (requested, current) = (Box::new(conf(1, &[1])), Box::new(conf(2, &[1, 2])));
    assert_eq!(older, Refusal::ConfOlder { requested, current });
    assert_eq!(older.to_string(), "membership configuration 1[1] is older than the current 2[1 2]");
    let conflict = acceptor.switch_membership(&conf(2, &[1, 3])).unwrap_err();
    let (requested, current) = (Box::new(conf(2, &[1, 3])), Box::new(conf(2, &[1, 2])));
    assert_eq!(conflict, Refusal::ConfConflict { requested, current });
    let stranger = acceptor.switch_membership(&conf(3, &[2, 3])).unwrap_err();
    let expected = Refusal::NotMember { node_id: NodeId(1), generation: Generation(3) };
    assert_eq!(stranger, expected);
    let malformed = acceptor.switch_membership(&conf(3, &[1, 1])).unwrap_err();
    assert!(matches!(malformed, Refusal::Membership(MembershipError::Duplicate(NodeId(1)))));
    assert_eq!(acceptor.state().mconf, conf(2, &[1, 2]));
    // Being a member to be is enough.
    let joint = MembershipConf { new_members: Some(conf(3, &[1]).members), ..conf(3, &[2]) };
    assert!(matches!(
        acceptor.switch_membership(&joint).unwrap()[..],
        [AcceptorCommand::SaveState(_)]
    ));
    // A proposer with an older one is told the newer one, and what it wants is refused.
    let commands = send(&mut acceptor, ProposerMessage::Greeting(greeting()));
    let [AcceptorCommand::Reply { message: AcceptorMessage::Greeting(answer), .. }] = &commands[..]
    else {
        panic!("{commands:?}")
    };
    assert_eq!(answer.mconf, joint);
    let refused =
        |theirs: u32| Refusal::Generation { theirs: Generation(theirs), ours: Generation(3) };
    let (generation, term) = (Generation(2), Term(9));
    let vote = ProposerMessage::VoteRequest(VoteRequest { generation, term });
    assert_eq!(refusal(&mut acceptor, vote), refused(2));
    assert_eq!(refusal(&mut acceptor, elected(9, 300, &[(0, 100), (9, 300)])), refused(0));
    assert_eq!(refusal(&mut acceptor, append(3, 300, 8)), refused(0));
}

/// Neither WAL nor a vote crosses from one generation to the next.
#[test]
fn a_switch_closes_who_speaks_for_the_older_configuration() {
    let mut acceptor = acceptor();
    send(&mut acceptor, elected(5, 300, &[(0, 100), (3, 160), (5, 300)]));
    send(&mut acceptor, append(5, 300, 8));
    let candidate = ConnId(2);
    let (generation, term) = (Generation(0), Term(6));
    let message = ProposerMessage::VoteRequest(VoteRequest { generation, term });
    let mut streaming_only = acceptor.clone();
    let closed = |commands: Vec<AcceptorCommand>| -> Vec<ConnId> {
        let close = |command: &AcceptorCommand| match command {
            AcceptorCommand::Close { conn, refusal } => {
                assert!(matches!(**refusal, Refusal::Generation { .. }));
                Some(*conn)
            }
            _ => None,
        };
        commands.iter().filter_map(close).collect()
    };
    let commands = streaming_only.switch_membership(&conf(1, &[1])).unwrap();
    assert_eq!(closed(commands), [CONN]);
    assert_eq!(
        refusal(&mut streaming_only, append(5, 308, 8)),
        Refusal::Generation { theirs: Generation(0), ours: Generation(1) }
    );
    acceptor.step(AcceptorInput::Message { conn: candidate, message });
    let commands = acceptor.switch_membership(&conf(1, &[1])).unwrap();
    assert_eq!(closed(commands), [candidate]);
    let report = AcceptorInput::Flushed { flush_lsn: Lsn(308), synced_lsn: Lsn(308) };
    assert_eq!(acceptor.step(report), [], "no vote of the older generation leaves");
}

#[test]
fn terms_are_raised_on_order() {
    let mut acceptor = acceptor();
    send(&mut acceptor, elected(5, 300, &[(0, 100), (3, 160), (5, 300)]));
    assert_eq!(acceptor.step(AcceptorInput::RaiseTerm { term: Term(5) }), []);
    let commands = acceptor.step(AcceptorInput::RaiseTerm { term: Term(7) });
    // The leader of the older term is told.
    assert!(matches!(
        commands[..],
        [AcceptorCommand::SaveState(_), AcceptorCommand::Reply { conn: CONN, .. }]
    ));
    assert_eq!(acceptor.state().term, Term(7));
    assert_eq!(acceptor.step(AcceptorInput::RaiseTerm { term: Term(6) }), []);
}

#[test]
fn elections() {
    let mut acceptor = acceptor();
    // The log is common up to 250, says the history, so streaming starts there and nowhere else.
    let entries = [(0, 100), (3, 160), (5, 250)];
    let refused = refusal(&mut acceptor, elected(5, 300, &entries));
    assert_eq!(refused, Refusal::StartMismatch { theirs: Lsn(300), ours: Lsn(250) });
    let refused = refusal(&mut acceptor, elected(6, 250, &entries));
    assert_eq!(refused, Refusal::HistoryOfOtherTerm { term: Term(6), last: Term(5) });
    // [C6]
    let refused = refusal(&mut acceptor, elected(5, 180, &[(0, 100), (3, 160), (5, 180)]));
    let expected = Refusal::TruncatesCommitted { start_lsn: Lsn(180), commit_lsn: Lsn(200) };
    assert_eq!(refused, expected);
    let refused = refusal(&mut acceptor, elected(5, 250, &[(0, 100), (3, 170), (5, 250)]));
    assert!(matches!(refused, Refusal::TermHistory(_)));
    assert!(matches!(
        send(&mut acceptor, elected(5, 250, &entries))[..],
        [
            AcceptorCommand::SaveState(_),
            AcceptorCommand::TruncateWal { end_lsn: Lsn(250) },
            AcceptorCommand::SaveState(_)
        ]
    ));
}

#[test]
fn appends() {
    let mut acceptor = acceptor();
    // [C8]: right place and term, but nobody was announced since the process began.
    assert_eq!(refusal(&mut acceptor, append(3, 300, 8)), Refusal::NotStreaming(Term(3)));
    send(&mut acceptor, elected(5, 250, &[(0, 100), (3, 160), (5, 250)]));
    let refused = refusal(&mut acceptor, append(6, 250, 8));
    assert_eq!(refused, Refusal::NotElected { theirs: Term(6), ours: Term(5) });
    for (begin, expected) in [
        (258, Refusal::Gap { begin_lsn: Lsn(258), write_lsn: Lsn(250) }),
        (242, Refusal::Rewrite { begin_lsn: Lsn(242), write_lsn: Lsn(250) }),
    ] {
        let mut acceptor = acceptor.clone();
        send(&mut acceptor, elected(5, 250, &[(0, 100), (3, 160), (5, 250)]));
        assert_eq!(refusal(&mut acceptor, append(5, begin, 8)), expected);
        // Who was refused has to begin again.
        assert_eq!(refusal(&mut acceptor, append(5, 250, 8)), Refusal::NotStreaming(Term(5)));
    }
}

#[test]
fn impossible_reports_take_one_timeline_out_of_service() {
    let mut acceptor = acceptor();
    let report = AcceptorInput::Flushed { flush_lsn: Lsn(308), synced_lsn: Lsn(308) };
    let commands = acceptor.step(report);
    assert!(matches!(commands[..], [AcceptorCommand::Quarantine { .. }]));
    let refused = refusal(&mut acceptor, append(3, 300, 8));
    assert!(matches!(refused, Refusal::Quarantined(_)));
}

#[test]
fn a_history_above_the_promise_takes_the_timeline_out_of_service() {
    let good = acceptor();
    let identity =
        AcceptorIdentity { node_id: NodeId(1), tenant_id: TENANT, timeline_id: TIMELINE };
    let state = AcceptorState { term: Term(2), ..good.state().clone() };
    let mut bad = Acceptor::new(identity, state, Lsn(300)).unwrap();
    let commands = bad.step(AcceptorInput::SaveState);
    let reason = Quarantine::HistoryAheadOfTerm { term: Term(2), last: Term(3) };
    assert_eq!(commands, [AcceptorCommand::Quarantine { reason: reason.clone() }]);
    assert_eq!(bad.switch_membership(&conf(1, &[1])), Err(Refusal::Quarantined(reason)));
}

#[test]
fn a_log_without_its_committed_end_does_not_start() {
    let good = acceptor();
    let identity =
        AcceptorIdentity { node_id: NodeId(1), tenant_id: TENANT, timeline_id: TIMELINE };
    let error = Acceptor::new(identity, good.state().clone(), Lsn(192)).unwrap_err();
    assert_eq!(error.to_string(), "commit_lsn 0/C8 is above flush_lsn 0/C0");
}
