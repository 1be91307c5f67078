//! What to upload next, who does it, and how long to wait: functions of values.

use std::time::Duration;

use pg_types::xlog::{WAL_SEGMENT_SIZE, segment_number, segment_offset, segment_start};
use pg_types::{Lsn, NodeId, Term};

use super::names::PartialName;

/// First pause after a failure.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
/// Longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Each member after the first one waits so much longer for those before it.
const TURN: Duration = Duration::from_secs(10);

/// What is known of a timeline's WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positions {
    /// First position of the timeline anywhere.
    pub timeline_start_lsn: Lsn,
    /// First position on this disk.
    pub local_start_lsn: Lsn,
    /// Committed.
    pub commit_lsn: Lsn,
    /// Backed up below this.
    pub backup_lsn: Lsn,
}

/// `[BK2]` First segment that this safekeeper has as a whole: the one of its first position only when nothing comes before
/// that in the timeline.
fn first_whole_segment(positions: Positions) -> u64 {
    let local_start = positions.local_start_lsn;
    let cut = local_start > positions.timeline_start_lsn && segment_offset(local_start) != 0;
    segment_number(local_start).saturating_add(u64::from(cut))
}

/// `[BK1]` The next segment to upload: it is committed to its last byte.
pub fn next_segment(positions: Positions) -> Option<u64> {
    let segno = segment_number(positions.backup_lsn).max(first_whole_segment(positions));
    (segno < segment_number(positions.commit_lsn)).then_some(segno)
}

/// Backed up below this when a segment is.
pub fn end_of(segno: u64) -> Lsn {
    segment_start(segno.saturating_add(1))
}

/// How long a member lets others go first with a segment. Members take turns; who is not named, or alone, does not wait.
/// That several upload the same segment is no harm: a committed segment has the same bytes everywhere.
pub fn patience(node_id: NodeId, members: &[NodeId], segno: u64) -> Duration {
    let mut sorted = members.to_vec();
    sorted.sort_unstable();
    let Some(place) = sorted.iter().position(|&member| member == node_id) else {
        return Duration::ZERO;
    };
    let (place, count) = (place as u64, sorted.len() as u64);
    let behind = (place + count - segno % count) % count;
    TURN.saturating_mul(u32::try_from(behind).unwrap_or(u32::MAX))
}

/// Pause after so many failures in a row; `random` in 0..1 spreads those who failed together.
pub fn backoff(failures: u32, random: f64) -> Duration {
    let factor = 1u32.checked_shl(failures.min(20)).unwrap_or(u32::MAX);
    let longest = BACKOFF_MIN.saturating_mul(factor).min(BACKOFF_MAX);
    longest.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0).max(BACKOFF_MIN)
}

/// `[BK4]` The beginning of the last segment to upload, if there is one that is wholly committed; asked when nothing was
/// committed for a while.
pub fn partial(
    node_id: NodeId,
    term: Term,
    flush_lsn: Lsn,
    positions: Positions,
) -> Option<(PartialName, usize)> {
    let commit_lsn = positions.commit_lsn;
    let segno = segment_number(commit_lsn);
    let len = segment_offset(commit_lsn);
    let here = commit_lsn == flush_lsn && first_whole_segment(positions) <= segno;
    let whole = next_segment(positions).is_none();
    // The first segment of a timeline without WAL has nothing to tell.
    let filled = len > 0 && positions.local_start_lsn < commit_lsn;
    let name = PartialName { segno, term, flush_lsn, commit_lsn, node_id };
    (here && whole && filled).then(|| (name, usize::try_from(len).unwrap_or(0)))
}

/// Unfinished segments of this safekeeper that another one has taken the place of.
pub fn outdated<'a>(
    names: impl IntoIterator<Item = &'a str>,
    node_id: NodeId,
    current: Option<PartialName>,
) -> Vec<PartialName> {
    let names = names.into_iter().filter_map(|name| name.parse::<PartialName>().ok());
    names.filter(|name| name.node_id == node_id && Some(*name) != current).collect()
}

/// Size of every whole segment.
pub const SEGMENT_BYTES: u64 = WAL_SEGMENT_SIZE;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEG: u64 = WAL_SEGMENT_SIZE;

    fn positions(timeline_start: u64, local_start: u64, commit: u64, backup: u64) -> Positions {
        Positions {
            timeline_start_lsn: Lsn(timeline_start),
            local_start_lsn: Lsn(local_start),
            commit_lsn: Lsn(commit),
            backup_lsn: Lsn(backup),
        }
    }

    #[test]
    fn whole_committed_segments_in_their_order() {
        let start = SEG + 40;
        for (commit, backup, expected) in [
            (start, 0, None),
            (2 * SEG - 8, 0, None),
            (2 * SEG, 0, Some(1)),
            (5 * SEG + 1, 0, Some(1)),
            (5 * SEG + 1, 3 * SEG, Some(3)),
            (5 * SEG + 1, 5 * SEG, None),
        ] {
            let next = next_segment(positions(start, start, commit, backup));
            assert_eq!(next, expected, "{commit:X} {backup:X}");
        }
        // A member that joined in the middle of segment 3 has only a part of it.
        let joined = |commit| next_segment(positions(start, 3 * SEG + 800, commit, 0));
        assert_eq!((joined(4 * SEG + 8), joined(5 * SEG)), (None, Some(4)));
    }

    #[test]
    fn members_take_turns() {
        let members = [NodeId(7), NodeId(3), NodeId(5)];
        for segno in 0..9 {
            let mut waits: Vec<_> =
                members.iter().map(|&member| patience(member, &members, segno)).collect();
            waits.sort_unstable();
            assert_eq!(waits, [Duration::ZERO, TURN, 2 * TURN]);
        }
        assert_eq!(patience(NodeId(3), &members, 0), Duration::ZERO);
        assert_eq!(patience(NodeId(3), &members, 1), 2 * TURN);
        assert_eq!(patience(NodeId(9), &members, 1), Duration::ZERO);
        assert_eq!(patience(NodeId(9), &[], 1), Duration::ZERO);
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        assert_eq!(backoff(0, 0.0), BACKOFF_MIN);
        assert_eq!(backoff(3, 1.0), Duration::from_millis(80));
        assert_eq!(backoff(u32::MAX, 1.0), BACKOFF_MAX);
        assert_eq!(backoff(u32::MAX, 0.0), BACKOFF_MAX / 2);
    }

    #[test]
    fn an_unfinished_segment_is_told_by_its_name() {
        let start = SEG + 40;
        let plan = |commit: u64, flush: u64, backup: u64| {
            partial(NodeId(1), Term(4), Lsn(flush), positions(start, start, commit, backup))
        };
        let (name, len) = plan(2 * SEG + 800, 2 * SEG + 800, 2 * SEG).unwrap();
        assert_eq!((name.segno, len, name.commit_lsn), (2, 800, Lsn(2 * SEG + 800)));
        assert_eq!(plan(2 * SEG + 800, 2 * SEG + 900, 2 * SEG), None, "not committed");
        assert_eq!(plan(2 * SEG + 800, 2 * SEG + 800, SEG), None, "whole segments first");
        assert_eq!(plan(2 * SEG, 2 * SEG, 2 * SEG), None, "nothing in it");
        assert_eq!(plan(start, start, SEG), None, "no WAL at all");
        let old = PartialName { commit_lsn: Lsn(2 * SEG + 80), ..name };
        let other = PartialName { node_id: NodeId(2), ..old };
        let names = [name.to_string(), old.to_string(), other.to_string(), "x".to_owned()];
        let names = || names.iter().map(String::as_str);
        assert_eq!(outdated(names(), NodeId(1), Some(name)), [old]);
        assert_eq!(outdated(names(), NodeId(1), None), [name, old]);
    }

    proptest! {
        /// Whatever the positions: only committed bytes that are here, and each upload is progress.
        #[test]
        fn only_committed_segments_and_always_forward(
            timeline_start in 0u64..1 << 30, ahead in 0u64..1 << 28, committed in 0u64..1 << 28, backup in 0u64..1 << 31,
        ) {
            let local_start = timeline_start + ahead;
            let positions = positions(timeline_start, local_start, local_start + committed, backup);
            if let Some(segno) = next_segment(positions) {
                prop_assert!(end_of(segno) <= positions.commit_lsn);
                prop_assert!(positions.backup_lsn < end_of(segno));
                prop_assert!(ahead == 0 || local_start <= segment_start(segno).0);
                prop_assert!(segment_number(Lsn(local_start)) <= segno);
            }
        }

        #[test]
        fn pauses_are_bounded(failures: u32, random in 0.0f64..1.0) {
            let pause = backoff(failures, random);
            prop_assert!(BACKOFF_MIN <= pause && pause <= BACKOFF_MAX);
        }
    }
}
