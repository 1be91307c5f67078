use super::*;

fn set(ids: &[u64]) -> Vec<Member> {
    ids.iter()
        .map(|id| Member { id: NodeId(*id), host: format!("sk{id}"), pg_port: 5454 })
        .collect()
}

fn conf(generation: u32, ids: &[u64], new: Option<&[u64]>) -> MembershipConf {
    MembershipConf {
        generation: Generation(generation),
        members: set(ids),
        new_members: new.map(set),
    }
}

#[test]
fn every_rule_has_its_error() {
    let generation = Generation(4);
    let too_many: Vec<u64> = (1..=32).collect();
    let mut nul = conf(4, &[1], None);
    nul.members[0].host = "a\0b".into();
    for (bad, expected) in [
        (conf(4, &[], None), MembershipError::NoMembers(generation)),
        (conf(4, &[], Some(&[1])), MembershipError::NoMembers(generation)),
        (conf(0, &[1], None), MembershipError::NotEmpty),
        (conf(0, &[], Some(&[1])), MembershipError::NotEmpty),
        (conf(4, &[1], Some(&[])), MembershipError::NoNewMembers(generation)),
        (conf(4, &[1, 2, 1], None), MembershipError::Duplicate(NodeId(1))),
        (conf(4, &[1], Some(&[2, 3, 3])), MembershipError::Duplicate(NodeId(3))),
        (conf(4, &[1, 0], None), MembershipError::NodeZero),
        (conf(4, &too_many, None), MembershipError::TooMany(32)),
        (conf(4, &[1], Some(&too_many)), MembershipError::TooMany(32)),
        (nul, MembershipError::HostWithNul(NodeId(1))),
    ] {
        assert_eq!(bad.validate(), Err(expected), "{bad}");
    }
    for good in [
        MembershipConf::default(),
        conf(4, &too_many[..31], None),
        conf(4, &[1, 2, 3], Some(&[1, 4, 5])),
    ] {
        assert_eq!(good.validate(), Ok(()), "{good}");
    }
}

#[test]
fn sets_have_no_order() {
    let joint = conf(2, &[1, 2, 3], Some(&[3, 4]));
    assert!(joint.same_as(&conf(2, &[3, 1, 2], Some(&[4, 3]))));
    assert!(!joint.same_as(&conf(3, &[1, 2, 3], Some(&[3, 4]))), "another generation");
    assert!(!joint.same_as(&conf(2, &[1, 2, 3], None)));
    assert!(!joint.same_as(&conf(2, &[3, 4], Some(&[1, 2, 3]))), "old is not new");
    let mut elsewhere = joint.clone();
    elsewhere.members[0].pg_port = 1;
    assert!(!joint.same_as(&elsewhere), "another address");
    assert_eq!(joint.to_string(), "2[1 2 3 | 3 4]");
    assert!(joint.contains(NodeId(4)) && !joint.contains(NodeId(5)));
}

/// The form of the HTTP interface and of stored files (facts of L239).
#[test]
fn json() {
    let text =
        r#"{"generation":2,"members":[{"id":1,"host":"sk1","pg_port":5454}],"new_members":null}"#;
    let conf = conf(2, &[1], None);
    assert_eq!(serde_json::from_str::<MembershipConf>(text).unwrap(), conf);
    assert_eq!(serde_json::to_string(&conf).unwrap(), text);
    let without = r#"{"generation":0,"members":[]}"#;
    assert_eq!(serde_json::from_str::<MembershipConf>(without).unwrap(), MembershipConf::default());
}
