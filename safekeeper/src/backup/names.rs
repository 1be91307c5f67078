//! Keys of objects.
//!
//! ```text
//! PREFIX/TENANT/TIMELINE/000000010000000000000001                                     a whole segment
//! PREFIX/TENANT/TIMELINE/partial/SEGMENT_TERM_FLUSH_COMMIT_skNODE.partial             the beginning of the last one
//! ```

use std::fmt;
use std::str::FromStr;

use pg_types::xlog::segment_file_name;
use pg_types::{Lsn, NodeId, PG_TLI, Term};

use crate::timeline::TenantTimelineId;
use crate::wal_storage::segment_number_of_name;

/// Folder of a timeline.
pub(super) fn timeline(id: TenantTimelineId) -> Vec<String> {
    vec![id.tenant_id.to_string(), id.timeline_id.to_string()]
}

/// A whole segment.
pub(super) fn segment(id: TenantTimelineId, segno: u64) -> Vec<String> {
    let mut parts = timeline(id);
    parts.push(segment_file_name(PG_TLI, segno));
    parts
}

/// Folder of unfinished segments.
pub(super) fn partial_dir(id: TenantTimelineId) -> Vec<String> {
    let mut parts = timeline(id);
    parts.push("partial".to_owned());
    parts
}

/// The name of an unfinished segment, which says all that is needed to choose among those of several safekeepers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialName {
    /// Number of the segment.
    pub segno: u64,
    /// Term of its last WAL.
    pub term: Term,
    /// End of the log when it was uploaded.
    pub flush_lsn: Lsn,
    /// Committed up to here; the object ends here.
    pub commit_lsn: Lsn,
    /// Who uploaded it.
    pub node_id: NodeId,
}

impl fmt::Display for PartialName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PartialName { segno, term, flush_lsn, commit_lsn, node_id } = self;
        let segment = segment_file_name(PG_TLI, *segno);
        let (flush, commit) = (flush_lsn.0, commit_lsn.0);
        write!(f, "{segment}_{}_{flush:016X}_{commit:016X}_sk{}.partial", term.0, node_id.0)
    }
}

/// A name that is none of an unfinished segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the name of an unfinished segment")]
pub struct NotPartial;

impl FromStr for PartialName {
    type Err = NotPartial;

    fn from_str(text: &str) -> Result<PartialName, NotPartial> {
        let parse = || {
            let mut parts = text.strip_suffix(".partial")?.split('_');
            let segno = segment_number_of_name(parts.next()?)?;
            let term = Term(parts.next()?.parse().ok()?);
            let flush_lsn = Lsn(u64::from_str_radix(parts.next()?, 16).ok()?);
            let commit_lsn = Lsn(u64::from_str_radix(parts.next()?, 16).ok()?);
            let node_id = NodeId(parts.next()?.strip_prefix("sk")?.parse().ok()?);
            let name = PartialName { segno, term, flush_lsn, commit_lsn, node_id };
            // Only what this program writes: no signs, no zeros in front, nothing behind.
            (name.to_string() == text).then_some(name)
        };
        parse().ok_or(NotPartial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_says_everything() {
        let name = PartialName {
            segno: 0x1FF,
            term: Term(7),
            flush_lsn: Lsn(0x1_FF00_0100),
            commit_lsn: Lsn(0x1_FF00_0080),
            node_id: NodeId(3),
        };
        let text = "0000000100000001000000FF_7_00000001FF000100_00000001FF000080_sk3.partial";
        assert_eq!(name.to_string(), text);
        assert_eq!(text.parse(), Ok(name));
        for bad in ["", "x.partial", "0000000100000001000000FF_+7_1_1_sk3.partial", &text[..70]] {
            assert_eq!(bad.parse::<PartialName>(), Err(NotPartial), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn names_round_trip(segno in 0u64..1 << 32, term: u64, flush: u64, commit: u64, node: u64) {
            let name = PartialName {
                segno,
                term: Term(term),
                flush_lsn: Lsn(flush),
                commit_lsn: Lsn(commit),
                node_id: NodeId(node),
            };
            prop_assert_eq!(name.to_string().parse(), Ok(name));
        }

        #[test]
        fn any_text_parses_or_fails(text in "\\PC{0,90}") {
            let _ = text.parse::<PartialName>();
        }
    }
}
