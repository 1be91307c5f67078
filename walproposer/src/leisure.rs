//! Who gets WAL at once, and who a moment later together with what comes next.
//!
//! A commit needs a majority. Each further safekeeper that writes and syncs the same few bytes at the same moment costs its
//! machine, its disk and this process as much as the ones that count, and makes the commit no more durable. So as many
//! as are enough are prompt; the others may wait [`LEISURE_PAUSE`](crate::limits::LEISURE_PAUSE) and take part in every
//! commit that the prompt ones do not achieve within it.

use std::collections::BTreeSet;

use wal_consensus::membership::MembershipConf;
use wal_consensus::proposer::SkId;

/// See the module's description. Nobody may wait at first.
#[derive(Debug, Default)]
pub(crate) struct Leisure {
    may_wait: BTreeSet<SkId>,
}

/// How many safekeepers achieve a commit by themselves, whichever they are; `None` while two majorities are needed.
pub(crate) fn enough(mconf: &MembershipConf, connected_to: usize) -> Option<usize> {
    let members = if mconf.members.is_empty() { connected_to } else { mconf.members.len() };
    mconf.new_members.is_none().then_some(members / 2 + 1)
}

impl Leisure {
    pub(crate) fn may_wait(&self, sk: SkId) -> bool {
        self.may_wait.contains(&sk)
    }

    /// Gives the parts anew to those that `stream`, of which `enough` are prompt, and changes as little as possible.
    /// `reader` feeds a page server, which is not to wait for WAL that is committed.
    pub(crate) fn arrange(
        &mut self,
        stream: &BTreeSet<SkId>,
        enough: Option<usize>,
        reader: Option<SkId>,
    ) {
        let room = enough.map_or(0, |enough| stream.len().saturating_sub(enough));
        self.may_wait.retain(|sk| stream.contains(sk) && Some(*sk) != reader);
        while room < self.may_wait.len() {
            self.may_wait.pop_last();
        }
        let others: Vec<SkId> = stream.difference(&self.may_wait).copied().collect();
        let candidates = others.into_iter().rev().filter(|sk| Some(*sk) != reader);
        self.may_wait.extend(candidates.take(room - self.may_wait.len()));
    }

    /// `slow`, of which a commit had to wait for too long, changes places with one that may wait.
    pub(crate) fn demote(&mut self, slow: SkId) {
        if !self.may_wait(slow) && self.may_wait.pop_first().is_some() {
            self.may_wait.insert(slow);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(ids: impl IntoIterator<Item = usize>) -> BTreeSet<SkId> {
        ids.into_iter().map(SkId).collect()
    }

    #[test]
    fn one_of_three_waits_and_not_the_page_servers() {
        let mut leisure = Leisure::default();
        leisure.arrange(&set([0, 1]), Some(2), None);
        assert_eq!(leisure.may_wait, set([]), "two of three are all needed");
        leisure.arrange(&set([0, 1, 2]), Some(2), None);
        assert_eq!(leisure.may_wait, set([2]));
        leisure.arrange(&set([0, 1, 2]), Some(2), Some(SkId(2)));
        assert_eq!(leisure.may_wait, set([1]));
        leisure.demote(SkId(0));
        assert_eq!(leisure.may_wait, set([0]));
        leisure.arrange(&set([0, 1, 2]), Some(2), Some(SkId(2)));
        assert_eq!(leisure.may_wait, set([0]), "nothing changes without need");
        leisure.arrange(&set([0, 1, 2]), None, None);
        assert_eq!(leisure.may_wait, set([]), "two majorities need everybody");
    }

    #[test]
    fn one_safekeeper_never_waits() {
        let mut leisure = Leisure::default();
        leisure.arrange(&set([0]), Some(1), None);
        leisure.demote(SkId(0));
        assert!(!leisure.may_wait(SkId(0)));
    }

    proptest! {
        #[test]
        fn enough_are_prompt_whatever_happens(
            steps in prop::collection::vec(
                (prop::collection::btree_set(0usize..7, 0..7), 1usize..5, prop::option::of(0usize..7), 0usize..7),
                1..20,
            ),
        ) {
            let mut leisure = Leisure::default();
            for (stream, enough, reader, slow) in steps {
                let stream: BTreeSet<SkId> = stream.into_iter().map(SkId).collect();
                leisure.arrange(&stream, Some(enough), reader.map(SkId));
                leisure.demote(SkId(slow));
                let waiting = leisure.may_wait.intersection(&stream).count();
                prop_assert!(enough.min(stream.len()) <= stream.len() - waiting);
            }
        }
    }
}
