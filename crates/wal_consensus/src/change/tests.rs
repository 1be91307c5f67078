use proptest::prelude::*;

use super::*;

fn member(id: u64) -> Member {
    Member { id: NodeId(id), host: format!("sk{id}"), pg_port: 5454 }
}

fn set(ids: &[u64]) -> Vec<Member> {
    ids.iter().copied().map(member).collect()
}

fn stored(generation: u32, ids: &[u64], new: Option<&[u64]>, leavers: &[u64]) -> StoredConf {
    let mconf = MembershipConf {
        generation: Generation(generation),
        members: set(ids),
        new_members: new.map(set),
    };
    StoredConf { mconf, leavers: set(leavers), finished: false }
}

fn report(generation: u32, term: u64, last_log_term: u64, flush_lsn: u64) -> MemberReport {
    MemberReport {
        generation: Generation(generation),
        term: Term(term),
        last_log_term: Term(last_log_term),
        flush_lsn: Lsn(flush_lsn),
    }
}

/// `switch 1`, `pull 4 from 2 1`, `raise 4 to 7`, `exclude 3`, `store 3[1 4 5] leave 2 3`.
fn show(change: &MembershipChange) -> Vec<String> {
    let ids = |set: &[Member]| {
        set.iter().map(|member| member.id.to_string()).collect::<Vec<_>>().join(" ")
    };
    let show = |request: &ChangeRequest| match request {
        ChangeRequest::Store { expected, conf } => {
            assert_eq!(*expected, change.stored_conf().mconf.generation);
            format!("store {} leave {}", conf.mconf, ids(&conf.leavers))
        }
        ChangeRequest::Switch { member, mconf } => {
            assert_eq!(**mconf, change.stored_conf().mconf);
            format!("switch {}", member.id)
        }
        ChangeRequest::Pull { member, donors, mconf } => {
            assert_eq!(**mconf, change.stored_conf().mconf);
            format!("pull {} from {}", member.id, ids(donors))
        }
        ChangeRequest::RaiseTerm { member, term } => format!("raise {} to {term}", member.id),
        ChangeRequest::Exclude { member, mconf } => {
            assert!(!mconf.contains(member.id));
            format!("exclude {}", member.id)
        }
    };
    change.requests().iter().map(show).collect()
}

fn store(change: &mut MembershipChange) {
    match &change.requests()[..] {
        [ChangeRequest::Store { conf, .. }] => change.stored((**conf).clone()),
        other => panic!("{other:?}"),
    }
}

/// The members 2 and 3 of 1 2 3 make way for 4 and 5.
#[test]
fn step_by_step() {
    let goal = ChangeGoal::Members(set(&[1, 4, 5]));
    let mut change = MembershipChange::new(stored(1, &[1, 2, 3], None, &[]), goal).unwrap();
    assert_eq!(show(&change), ["store 2[1 2 3 | 1 4 5] leave "]);
    store(&mut change);
    assert_eq!(show(&change), ["switch 1", "switch 2", "switch 3"]);
    change.heard(NodeId(1), report(2, 7, 3, 300));
    assert_eq!(show(&change), ["switch 2", "switch 3"], "one of three is no majority");
    change.heard(NodeId(3), report(1, 9, 9, 900));
    assert_eq!(show(&change), ["switch 2", "switch 3"], "an answer of the older generation");
    change.heard(NodeId(2), report(2, 8, 2, 400));
    // The sync point is (3, 300), the newest log by term; the term to reach is 8.
    assert!(!change.is_effective());
    assert_eq!(show(&change), ["switch 3", "raise 1 to 8", "pull 4 from 1 2", "pull 5 from 1 2"]);
    change.heard(NodeId(4), report(2, 7, 2, 900));
    assert_eq!(show(&change)[2..], ["raise 4 to 8", "pull 5 from 1 2"]);
    change.heard(NodeId(1), report(2, 8, 3, 300));
    change.heard(NodeId(4), report(2, 8, 2, 900));
    assert_eq!(show(&change), ["switch 3", "switch 4", "pull 5 from 1 2"], "4 has older WAL only");
    // One new member that does not answer does not hold the change up.
    change.heard(NodeId(4), report(2, 9, 3, 300));
    assert_eq!(show(&change), ["store 3[1 4 5] leave 2 3"]);
    store(&mut change);
    assert_eq!(show(&change), ["switch 1", "switch 4", "switch 5"]);
    change.heard(NodeId(1), report(3, 9, 3, 300));
    change.heard(NodeId(5), report(3, 9, 3, 100));
    assert!(change.is_effective() && !change.is_done());
    assert_eq!(show(&change), ["pull 4 from 1 5", "exclude 2", "exclude 3"]);
    change.heard(NodeId(4), report(3, 9, 3, 300));
    change.excluded(NodeId(2));
    change.excluded(NodeId(3));
    assert!(change.is_done());
    assert_eq!(*change.stored_conf(), stored(3, &[1, 4, 5], None, &[]));
}

/// The timeline comes to an old member that stays and has never had it.
#[test]
fn an_old_member_may_have_nothing() {
    let joint = stored(2, &[1, 2, 3], Some(&[1, 3]), &[]);
    let goal = ChangeGoal::Members(set(&[1, 3]));
    let mut change = MembershipChange::new(joint, goal).unwrap();
    change.heard(NodeId(1), report(2, 1, 1, 100));
    assert_eq!(show(&change), ["switch 2", "switch 3"], "whether it has it is not known yet");
    change.heard(NodeId(2), report(2, 1, 1, 200));
    assert_eq!(show(&change), ["switch 1", "pull 3 from 2 1"]);
}

#[test]
fn impossible_changes_are_refused() {
    let new = |conf: StoredConf, goal| MembershipChange::new(conf, goal).unwrap_err().to_string();
    let members = |ids: &[u64]| ChangeGoal::Members(set(ids));
    assert_eq!(
        new(StoredConf::default(), members(&[1])),
        "the timeline has no membership configuration yet"
    );
    assert_eq!(
        new(stored(2, &[1], Some(&[2]), &[]), members(&[3])),
        "a change of 2[1 | 2] is under way"
    );
    assert_eq!(
        new(stored(2, &[1], None, &[]), ChangeGoal::Abort),
        "no change is under way: 2[1] is final"
    );
    assert_eq!(
        new(stored(2, &[1], None, &[]), members(&[])),
        "membership configuration of generation 3 has no members"
    );
    assert_eq!(
        new(stored(u32::MAX, &[1], None, &[]), members(&[2])),
        "there is no membership generation above 4294967295"
    );
}

#[test]
fn a_change_to_the_members_there_are_only_tidies_up() {
    let goal = ChangeGoal::Members(set(&[2, 1]));
    let mut change = MembershipChange::new(stored(3, &[1, 2], None, &[4]), goal).unwrap();
    assert_eq!(show(&change), ["switch 1", "switch 2"]);
    change.heard(NodeId(1), report(3, 1, 1, 1));
    change.heard(NodeId(2), report(3, 1, 1, 1));
    assert_eq!(show(&change), ["exclude 4"]);
}

/// Found by simulation (seed 5025144): who comes after one that died behind the last store has to know that the members may
/// not have heard of it.
#[test]
fn a_configuration_is_finished_when_its_members_have_it() {
    let goal = ChangeGoal::Members(set(&[1, 2, 3]));
    let mut change = MembershipChange::new(stored(5, &[1, 2, 3], None, &[4]), goal).unwrap();
    assert!(!change.concluded().finished);
    for node in [1, 2, 3] {
        change.heard(NodeId(node), report(5, 7, 3, 300));
    }
    assert!(!change.concluded().finished, "one is still to leave");
    change.excluded(NodeId(4));
    let concluded = change.concluded();
    assert!(concluded.finished && concluded.leavers.is_empty());
    let goal = ChangeGoal::Members(set(&[1, 2]));
    let mut change = MembershipChange::new(concluded, goal).unwrap();
    store(&mut change);
    assert!(!change.stored_conf().finished, "a new configuration is not");
}

#[test]
fn a_change_can_be_taken_back() {
    let joint = stored(2, &[1, 2, 3], Some(&[1, 4, 5]), &[6]);
    let mut change = MembershipChange::new(joint, ChangeGoal::Abort).unwrap();
    assert_eq!(show(&change), ["store 3[1 2 3] leave 6 4 5"]);
    store(&mut change);
    for id in [1, 2, 3] {
        change.heard(NodeId(id), report(3, 1, 1, 1));
    }
    assert_eq!(show(&change), ["exclude 6", "exclude 4", "exclude 5"]);
}

proptest! {
    /// Whoever carries a change out may begin anew at any point, answers may come from anybody in any state: it ends
    /// with the target, leaves out nobody who left, and each generation has one content.
    #[test]
    fn every_change_ends(
        old in prop::collection::btree_set(1u64..7, 1..5),
        new in prop::collection::btree_set(1u64..7, 1..5),
        choices in prop::collection::vec((any::<bool>(), 0usize..8, 0u64..4), 0..60),
    ) {
        let (old, new): (Vec<u64>, Vec<u64>) =
            (old.into_iter().collect(), new.into_iter().collect());
        let goal = ChangeGoal::Members(set(&new));
        let mut kept = stored(1, &old, None, &[]);
        let mut change = MembershipChange::new(kept.clone(), goal.clone()).unwrap();
        // Behind the random part everybody is level and nothing is lost.
        let calm = std::iter::repeat_n((false, 0, 9), 100);
        for (lost, pick, position) in choices.into_iter().chain(calm) {
            let requests = change.requests();
            let Some(request) = requests.get(pick % requests.len().max(1)) else { break };
            if lost {
                change = MembershipChange::new(kept.clone(), goal.clone()).unwrap();
                continue;
            }
            let answer = report(kept.mconf.generation.0, position, position, position);
            match request {
                ChangeRequest::Store { expected, conf } => {
                    prop_assert_eq!(*expected, kept.mconf.generation);
                    prop_assert_eq!(conf.mconf.generation.0, expected.0 + 1);
                    kept = (**conf).clone();
                    change.stored(kept.clone());
                }
                ChangeRequest::Switch { member, .. }
                | ChangeRequest::Pull { member, .. }
                | ChangeRequest::RaiseTerm { member, .. } => change.heard(member.id, answer),
                ChangeRequest::Exclude { member, .. } => {
                    prop_assert!(!new.contains(&member.id.0));
                    change.excluded(member.id);
                }
            }
        }
        prop_assert!(change.is_done(), "{:?}", change.requests());
        let expected = if same_set(&set(&old), &set(&new)) { 1 } else { 3 };
        prop_assert!(same_set(&kept.mconf.members, &set(&new)));
        prop_assert_eq!(kept.mconf.generation, Generation(expected));
        let left: Vec<NodeId> = kept.leavers.iter().map(|member| member.id).collect();
        let gone: Vec<NodeId> =
            old.iter().filter(|id| !new.contains(id)).map(|id| NodeId(*id)).collect();
        prop_assert_eq!(left, gone);
    }
}
