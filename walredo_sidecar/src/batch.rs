//! Which records go together to the same applier.

use pg_types::Lsn;

use crate::NeonWalRecord;

/// Consecutive records of one kind.
#[derive(Debug, PartialEq, Eq)]
pub enum Batch<'a> {
    /// For the redo process.
    Postgres(&'a [(Lsn, NeonWalRecord)]),
    /// Applied in Rust.
    Neon(&'a [(Lsn, NeonWalRecord)]),
}

/// Splits records into maximal runs of the same kind, in order (L049).
pub fn batches(records: &[(Lsn, NeonWalRecord)]) -> impl Iterator<Item = Batch<'_>> {
    records.chunk_by(|(_, a), (_, b)| a.is_postgres() == b.is_postgres()).map(|run| {
        if run.iter().all(|(_, record)| record.is_postgres()) {
            Batch::Postgres(run)
        } else {
            Batch::Neon(run)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn record(postgres: bool) -> (Lsn, NeonWalRecord) {
        let record = if postgres {
            NeonWalRecord::Postgres { will_init: false, rec: Bytes::new() }
        } else {
            NeonWalRecord::MultixactOffsetCreate { mid: 1, moff: 1 }
        };
        (Lsn(8), record)
    }

    #[test]
    fn p_p_n_p_makes_three() {
        let records = [record(true), record(true), record(false), record(true)];
        let made: Vec<_> = batches(&records).collect();
        assert_eq!(
            made,
            [
                Batch::Postgres(&records[..2]),
                Batch::Neon(&records[2..3]),
                Batch::Postgres(&records[3..])
            ]
        );
        assert_eq!(batches(&[]).count(), 0);
    }

    proptest! {
        #[test]
        fn runs_are_pure_maximal_and_complete(kinds: Vec<bool>) {
            let records: Vec<_> = kinds.iter().copied().map(record).collect();
            let mut joined = Vec::new();
            let mut last = None;
            for batch in batches(&records) {
                let (postgres, run) = match batch { Batch::Postgres(run) => (true, run), Batch::Neon(run) => (false, run) };
                prop_assert!(!run.is_empty());
                prop_assert!(run.iter().all(|(_, r)| r.is_postgres() == postgres));
                prop_assert_ne!(last.replace(postgres), Some(postgres));
                joined.extend_from_slice(run);
            }
            prop_assert_eq!(joined, records);
        }
    }
}
