//! What an acceptor refuses, one reason after the other.

use bytes::Bytes;
use pg_types::{Generation, Lsn, NodeId, TenantId, Term, TimelineId};

use crate::acceptor::{Acceptor, AcceptorInput};
use crate::command::{AcceptorCommand, AcceptorIdentity, AcceptorState, ConnId};
use crate::membership::{Member, MembershipConf};
use crate::message::{
    AppendHeader, AppendRequest, ProposerElected, ProposerGreeting, ProposerMessage, VoteRequest,
};
use crate::refusal::Refusal;
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
    assert_eq!(acceptor.switch_membership(&conf(1, &[1])), Ok(vec![]));
    assert_eq!(acceptor.switch_membership(&conf(2, &[1, 2])), Ok(vec![]));
    let conflict = acceptor.switch_membership(&conf(2, &[1, 3]));
    assert_eq!(conflict, Err(Refusal::ConfConflict(Generation(2))));
    assert_eq!(acceptor.state().mconf, conf(2, &[1, 2]));
    let vote =
        ProposerMessage::VoteRequest(VoteRequest { generation: Generation(1), term: Term(9) });
    let expected = Refusal::Generation { theirs: Generation(1), ours: Generation(2) };
    assert_eq!(refusal(&mut acceptor, vote), expected);
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
fn a_log_without_its_committed_end_does_not_start() {
    let good = acceptor();
    let identity =
        AcceptorIdentity { node_id: NodeId(1), tenant_id: TENANT, timeline_id: TIMELINE };
    let error = Acceptor::new(identity, good.state().clone(), Lsn(192)).unwrap_err();
    assert_eq!(error.to_string(), "commit_lsn 0/C8 is above flush_lsn 0/C0");
}
