//! Who decides: majorities of one set, of two sets (joint), or of an unnamed number of safekeepers. Pure functions.

use std::collections::BTreeMap;

use pg_types::{Lsn, NodeId};

use crate::membership::MembershipConf;
use crate::mutant::{self, Mutant};

/// Smallest number of `count` voters that any two of such groups share a member.
pub fn majority(count: usize) -> usize {
    if mutant::is(Mutant::MajorityOneShort) {
        return (count / 2).max(1);
    }
    count / 2 + 1
}

/// The sets whose majorities decide.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Electorate {
    /// The empty configuration: this many safekeepers, known only by the numbers they give in their greetings.
    Unnamed {
        /// How many there are.
        count: usize,
    },
    /// One set, or two while membership changes; a decision needs a majority of each.
    Named(Vec<Vec<NodeId>>),
}

impl Electorate {
    /// The electorate of a configuration; `addresses` is the number of safekeepers the proposer was given, which counts
    /// when the configuration is the empty one.
    pub fn of(mconf: &MembershipConf, addresses: usize) -> Electorate {
        if mconf.members.is_empty() {
            return Electorate::Unnamed { count: addresses };
        }
        let sets = std::iter::once(&mconf.members).chain(&mconf.new_members);
        let sets: Vec<_> = match &mconf.new_members {
            Some(_) if mutant::is(Mutant::OnlyOldMembersCount) => sets.take(1).collect(),
            Some(_) if mutant::is(Mutant::OnlyNewMembersCount) => sets.skip(1).collect(),
            _ => sets.collect(),
        };
        let sets = sets.into_iter();
        Electorate::Named(sets.map(|set| set.iter().map(|member| member.id).collect()).collect())
    }

    /// Whether those who satisfy `agrees` are enough. `known` are the nodes that have introduced themselves, each
    /// counted once however often it is named: two addresses of one safekeeper are one vote.
    pub fn decides(&self, known: &[NodeId], agrees: impl Fn(NodeId) -> bool) -> bool {
        match self {
            Electorate::Unnamed { count } => {
                let mut agreeing: Vec<NodeId> =
                    known.iter().copied().filter(|node| agrees(*node)).collect();
                agreeing.sort_unstable();
                agreeing.dedup();
                majority(*count) <= agreeing.len()
            }
            Electorate::Named(sets) => sets.iter().all(|set| {
                let agreeing =
                    set.iter().filter(|node| known.contains(node) && agrees(**node)).count();
                majority(set.len()) <= agreeing
            }),
        }
    }

    /// Whether those who refuse are so many that the others can no longer decide.
    pub fn is_blocked_by(&self, refusing: &[NodeId]) -> bool {
        let blocked = |voters: usize, refusing: usize| voters - majority(voters) < refusing;
        match self {
            Electorate::Unnamed { count } => {
                let mut refusing = refusing.to_vec();
                refusing.sort_unstable();
                refusing.dedup();
                *count == 0 || blocked(*count, refusing.len())
            }
            Electorate::Named(sets) => sets.iter().any(|set| {
                let count = set.iter().filter(|node| refusing.contains(node)).count();
                set.is_empty() || blocked(set.len(), count)
            }),
        }
    }

    /// The highest position that a majority of every set has reached; whoever is not in `reached` has reached 0.
    pub fn common_lsn(&self, reached: &BTreeMap<NodeId, Lsn>) -> Lsn {
        match self {
            Electorate::Unnamed { count } => {
                let mut lsns: Vec<Lsn> = reached.values().copied().collect();
                lsns.resize(lsns.len().max(*count), Lsn::INVALID);
                majority_lsn(lsns, *count)
            }
            Electorate::Named(sets) => sets
                .iter()
                .map(|set| {
                    let lsns = set.iter().map(|node| reached.get(node).copied());
                    majority_lsn(lsns.map(Option::unwrap_or_default).collect(), set.len())
                })
                .min()
                .unwrap_or_default(),
        }
    }

    /// The position that every voter has reached.
    pub fn everybody_lsn(&self, reached: &BTreeMap<NodeId, Lsn>) -> Lsn {
        match self {
            Electorate::Unnamed { count } if reached.len() < *count => Lsn::INVALID,
            Electorate::Unnamed { .. } => reached.values().copied().min().unwrap_or_default(),
            Electorate::Named(sets) => {
                let nodes = sets.iter().flatten();
                let lsns = nodes.map(|node| reached.get(node).copied().unwrap_or_default());
                lsns.min().unwrap_or_default()
            }
        }
    }
}

/// The highest position that a majority of `count` voters has reached.
fn majority_lsn(mut lsns: Vec<Lsn>, count: usize) -> Lsn {
    lsns.sort_unstable_by(|left, right| right.cmp(left));
    lsns.get(majority(count) - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use pg_types::Generation;
    use proptest::prelude::*;

    use super::*;
    use crate::membership::Member;

    fn named(sets: &[&[u64]]) -> Electorate {
        Electorate::Named(
            sets.iter().map(|set| set.iter().map(|id| NodeId(*id)).collect()).collect(),
        )
    }

    fn lsns(pairs: &[(u64, u64)]) -> BTreeMap<NodeId, Lsn> {
        pairs.iter().map(|(node, lsn)| (NodeId(*node), Lsn(*lsn))).collect()
    }

    /// A bar per node and a mark where the decision falls.
    fn chart(electorate: &Electorate, reached: &[(u64, u64)]) -> String {
        let decided = electorate.common_lsn(&lsns(reached)).0;
        let mut out = String::new();
        for (node, lsn) in reached {
            let bar: String = (1..=*lsn).map(|at| if at <= decided { '#' } else { '-' }).collect();
            writeln!(out, "{node} {bar}").unwrap();
        }
        out
    }

    #[test]
    fn majority_of_one_set() {
        let three = named(&[&[1, 2, 3]]);
        assert_eq!(chart(&three, &[(1, 9), (2, 5), (3, 2)]), "1 #####----\n2 #####\n3 ##\n");
        assert_eq!(chart(&three, &[(1, 9)]), "1 ---------\n");
        let four = named(&[&[1, 2, 3, 4]]);
        assert_eq!(chart(&four, &[(1, 4), (2, 3), (3, 2), (4, 1)]), "1 ##--\n2 ##-\n3 ##\n4 #\n");
        assert_eq!(chart(&named(&[&[1]]), &[(1, 3)]), "1 ###\n");
    }

    #[test]
    fn joint_needs_both_majorities() {
        let joint = named(&[&[1, 2, 3], &[3, 4, 5]]);
        assert_eq!(
            chart(&joint, &[(1, 6), (2, 6), (3, 1), (4, 4), (5, 2)]),
            "1 ##----\n2 ##----\n3 #\n4 ##--\n5 ##\n"
        );
        let known: Vec<NodeId> = (1..=5).map(NodeId).collect();
        let agree = |nodes: &[u64]| joint.decides(&known, |node| nodes.contains(&node.0));
        assert!(agree(&[1, 2, 4, 5]));
        assert!(!agree(&[1, 2, 3]));
        assert!(agree(&[1, 3, 4]));
    }

    #[test]
    fn unnamed_counts_nodes_not_connections() {
        let three = Electorate::Unnamed { count: 3 };
        assert!(!three.decides(&[NodeId(1), NodeId(1)], |_| true));
        assert!(three.decides(&[NodeId(1), NodeId(2)], |_| true));
        assert_eq!(three.common_lsn(&lsns(&[(1, 9), (2, 5)])), Lsn(5));
        assert_eq!(three.common_lsn(&lsns(&[(1, 9)])), Lsn(0));
        assert_eq!(three.everybody_lsn(&lsns(&[(1, 9), (2, 5)])), Lsn(0));
        assert_eq!(three.everybody_lsn(&lsns(&[(1, 9), (2, 5), (3, 7)])), Lsn(5));
        assert_eq!(named(&[&[1], &[2]]).everybody_lsn(&lsns(&[(1, 9), (2, 5)])), Lsn(5));
        assert_eq!(named(&[&[1], &[2]]).everybody_lsn(&lsns(&[(1, 9)])), Lsn(0));
    }

    #[test]
    fn a_configuration_names_its_sets() {
        let member = |id| Member { id: NodeId(id), host: String::new(), pg_port: 1 };
        let mut mconf = MembershipConf::default();
        assert_eq!(Electorate::of(&mconf, 3), Electorate::Unnamed { count: 3 });
        mconf.generation = Generation(1);
        mconf.members = vec![member(1), member(2)];
        assert_eq!(Electorate::of(&mconf, 3), named(&[&[1, 2]]));
        mconf.new_members = Some(vec![member(3)]);
        assert_eq!(Electorate::of(&mconf, 3), named(&[&[1, 2], &[3]]));
    }

    proptest! {
        /// What a position decides is what those who reached it decide.
        #[test]
        fn position_and_vote_agree(
            sets in prop::collection::vec(prop::collection::btree_set(1u64..8, 1..6), 1..3),
            reached in prop::collection::btree_map(1u64..8, 0u64..6, 0..8),
            at in 1u64..6,
        ) {
            let sets: Vec<Vec<NodeId>> =
                sets.iter().map(|set| set.iter().map(|id| NodeId(*id)).collect()).collect();
            let electorate = Electorate::Named(sets);
            let reached: BTreeMap<NodeId, Lsn> =
                reached.into_iter().map(|(node, lsn)| (NodeId(node), Lsn(lsn))).collect();
            let known: Vec<NodeId> = reached.keys().copied().collect();
            let decided = electorate.decides(&known, |node| Lsn(at) <= reached[&node]);
            prop_assert_eq!(decided, Lsn(at) <= electorate.common_lsn(&reached));
            let everybody: Vec<NodeId> = (1..8).map(NodeId).collect();
            let refuses = |node: &NodeId| reached.get(node).is_none_or(|lsn| *lsn < Lsn(at));
            let refusing: Vec<NodeId> = everybody.into_iter().filter(refuses).collect();
            prop_assert_eq!(electorate.is_blocked_by(&refusing), !decided);
        }
    }
}
