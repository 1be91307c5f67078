use pg_types::{Lsn, NodeId, TenantId, Term, TimelineId};

use super::super::{ProposerConfig, ProposerInput, ProposerMode};
use super::*;
use crate::membership::Member;
use crate::message::{
    AcceptorGreeting, AcceptorMessage, AppendResponse, HotStandbyFeedback, ProposerMessage,
    VoteResponse,
};
use crate::term_history::TermHistory;

fn conf(generation: u32, ids: &[u64]) -> MembershipConf {
    let member = |id: &u64| Member { id: NodeId(*id), host: "sk".into(), pg_port: 1 };
    let members = ids.iter().map(member).collect();
    MembershipConf { generation: Generation(generation), members, new_members: None }
}

fn greeting(node: u64, mconf: MembershipConf) -> AcceptorMessage {
    let (node_id, term) = (NodeId(node), Term(0));
    AcceptorMessage::Greeting(AcceptorGreeting { node_id, mconf, term })
}

fn vote(generation: u32, vote_given: bool) -> AcceptorMessage {
    AcceptorMessage::VoteResponse(VoteResponse {
        generation: Generation(generation),
        term: Term(1),
        vote_given,
        flush_lsn: Lsn(16),
        truncate_lsn: Lsn(16),
        term_history: TermHistory::new(vec![(0, 16).into()]).unwrap(),
    })
}

fn acknowledged(generation: u32) -> AcceptorMessage {
    AcceptorMessage::AppendResponse(AppendResponse {
        generation: Generation(generation),
        term: Term(1),
        flush_lsn: Lsn(16),
        commit_lsn: Lsn(16),
        hs_feedback: HotStandbyFeedback::default(),
        pageserver_feedback: bytes::Bytes::new(),
    })
}

fn hear(proposer: &mut Proposer, sk: usize, message: AcceptorMessage) -> Commands {
    proposer.step(ProposerInput::Message { sk: SkId(sk), message })
}

/// A proposer at safekeepers 1 to 3 in generation 1, two of which have greeted: it campaigns.
fn campaign() -> Proposer {
    let mut proposer = Proposer::new(ProposerConfig {
        tenant_id: TenantId([1; 16]),
        timeline_id: TimelineId([2; 16]),
        pg_version: 170_000,
        system_id: 7,
        wal_seg_size: 1 << 24,
        safekeepers: 3,
        mconf: conf(1, &[1, 2, 3]),
        min_term: Term(0),
        mode: ProposerMode::Stream { start_lsn: Lsn(16), own_terms: Vec::new() },
    });
    for sk in 0..2 {
        proposer.step(ProposerInput::Connected { sk: SkId(sk) });
        hear(&mut proposer, sk, greeting(sk as u64 + 1, conf(1, &[1, 2, 3])));
    }
    assert_eq!(proposer.phase, Phase::Campaign);
    proposer
}

fn meet_newer(proposer: &mut Proposer) -> Commands {
    proposer.step(ProposerInput::Connected { sk: SkId(2) });
    hear(proposer, 2, greeting(3, conf(2, &[2, 3, 4])))
}

#[test]
fn a_campaign_does_not_cross_generations() {
    let mut proposer = campaign();
    let (sk, mconf) = (SkId(2), Box::new(conf(2, &[2, 3, 4])));
    let reason = LostReason::ConfChanged { sk, mconf };
    assert_eq!(meet_newer(&mut proposer), [ProposerCommand::Lost { reason }]);
}

#[test]
fn a_leader_follows_once_its_start_is_committed() {
    let mut proposer = campaign();
    hear(&mut proposer, 0, vote(1, true));
    hear(&mut proposer, 1, vote(1, true));
    assert!(proposer.is_elected());
    let lost = meet_newer(&mut proposer.clone());
    assert!(matches!(lost[..], [ProposerCommand::Lost { .. }]), "too early: {lost:?}");
    hear(&mut proposer, 0, acknowledged(1));
    hear(&mut proposer, 1, acknowledged(1));
    assert_eq!(proposer.commit_lsn(), Lsn(16));
    let commands = meet_newer(&mut proposer);
    let mconf = Box::new(conf(2, &[2, 3, 4]));
    assert_eq!(commands[0], ProposerCommand::ConfAdopted { mconf });
    let (theirs, ours) = (Generation(1), Generation(2));
    for (sk, command) in (0..2).zip(&commands[1..]) {
        let fault = SkFault::OldConf { theirs, ours };
        assert_eq!(*command, ProposerCommand::Reconnect { sk: SkId(sk), fault });
    }
    let vote_request = |command: &ProposerCommand| {
        let ProposerCommand::Send { sk, message } = command else { return false };
        *sk == SkId(2) && matches!(message, ProposerMessage::VoteRequest(_))
    };
    assert!(vote_request(&commands[3]), "{commands:?}");
    assert!(proposer.is_elected());
    // The new member is connected to under a number that was not used before.
    let commands = proposer.step(ProposerInput::Connected { sk: SkId(3) });
    assert!(matches!(commands[..], [ProposerCommand::Send { sk: SkId(3), .. }]));
}

#[test]
fn an_answer_of_a_newer_generation_means_meeting_anew() {
    let mut proposer = campaign();
    let commands = hear(&mut proposer, 0, vote(2, true));
    let fault = SkFault::NewConf { theirs: Generation(2), ours: Generation(1) };
    assert_eq!(commands, [ProposerCommand::Reconnect { sk: SkId(0), fault }]);
}

/// The refusal may be our own vote whose answer was lost, and the third safekeeper may be down for good.
#[test]
fn an_undecided_campaign_with_a_refusal_is_given_up() {
    let mut proposer = campaign();
    hear(&mut proposer, 0, vote(1, true));
    assert_eq!(proposer.clone().step(ProposerInput::Heartbeat).len(), 1, "asks again");
    hear(&mut proposer, 1, vote(1, false));
    let reason = LostReason::VotesTaken { term: Term(1) };
    assert_eq!(proposer.step(ProposerInput::Heartbeat), [ProposerCommand::Lost { reason }]);
}
