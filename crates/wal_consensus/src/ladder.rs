//! The order of a safekeeper's positions, checked after every step (invariant C7).

use pg_types::Lsn;

/// All positions of one acceptor. The rungs, lowest first:
///
/// ```text
/// timeline_start <= local_start <= persisted_commit <= commit <= flush <= synced <= write
/// truncate <= commit
/// ```
///
/// `flush` is the end of the last whole record on disk, `synced` the last byte on disk, which may be inside a record.
/// The commit position of the *quorum* may be far above a safekeeper that lags; it is no rung.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LsnLadder {
    /// First position of the timeline anywhere; 0 while unknown.
    pub timeline_start_lsn: Lsn,
    /// First position that is kept on this safekeeper's disk.
    pub local_start_lsn: Lsn,
    /// Everybody has everything below.
    pub truncate_lsn: Lsn,
    /// Commit position in the state that was saved last.
    pub persisted_commit_lsn: Lsn,
    /// Committed, and here.
    pub commit_lsn: Lsn,
    /// End of the last whole durable record.
    pub flush_lsn: Lsn,
    /// End of the durable bytes.
    pub synced_lsn: Lsn,
    /// End of the received bytes.
    pub write_lsn: Lsn,
}

/// Two positions in the wrong order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{lower_name} {lower} is above {upper_name} {upper}")]
pub struct LadderError {
    /// Name of the position that should be the lower one.
    pub lower_name: &'static str,
    /// Its value.
    pub lower: Lsn,
    /// Name of the position that should be the upper one.
    pub upper_name: &'static str,
    /// Its value.
    pub upper: Lsn,
}

impl LsnLadder {
    /// Checks the order.
    ///
    /// # Errors
    /// The lowest pair that is out of order.
    pub fn validate(&self) -> Result<(), LadderError> {
        let rungs = [
            ("timeline_start_lsn", self.timeline_start_lsn),
            ("local_start_lsn", self.local_start_lsn),
            ("persisted_commit_lsn", self.persisted_commit_lsn),
            ("commit_lsn", self.commit_lsn),
            ("flush_lsn", self.flush_lsn),
            ("synced_lsn", self.synced_lsn),
            ("write_lsn", self.write_lsn),
        ];
        let truncate = [("truncate_lsn", self.truncate_lsn), ("commit_lsn", self.commit_lsn)];
        let pairs = rungs.windows(2).chain(std::iter::once(&truncate[..]));
        for pair in pairs {
            let [(lower_name, lower), (upper_name, upper)] = *pair else { continue };
            if upper < lower {
                return Err(LadderError { lower_name, lower, upper_name, upper });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_broken_rung() {
        let good = LsnLadder { synced_lsn: Lsn(8), write_lsn: Lsn(9), ..LsnLadder::default() };
        assert_eq!(good.validate(), Ok(()));
        let bad = LsnLadder { flush_lsn: Lsn(16), ..good };
        let error = bad.validate().unwrap_err();
        assert_eq!(error.to_string(), "flush_lsn 0/10 is above synced_lsn 0/8");
        let bad = LsnLadder { truncate_lsn: Lsn(1), ..good };
        assert_eq!(bad.validate().unwrap_err().lower_name, "truncate_lsn");
    }
}
