//! Rebuilding one page: versions from the store, records to redo, result perhaps to the cache.

use bytes::Bytes;
use layer_store::Reconstruct;
use pg_types::key::KeyKind;
use pg_types::page::ZERO_PAGE;
use pg_types::{BLCKSZ, ForkNumber, Key, Lsn};
use walredo_sidecar::NeonWalRecord;

use super::page_cache::Cached;
use super::{ReadPageError, Timeline};

/// What redo is asked for, or the page itself when there is nothing to replay.
#[derive(Debug, PartialEq)]
enum Plan {
    /// The page as it is stored.
    Ready(Bytes),
    /// Records on top of a base; no base when the first record makes the page.
    Replay { base: Option<(Lsn, Bytes)>, deltas: Vec<(Lsn, Bytes)> },
}

impl Timeline {
    /// The stored page of `key` at `lsn`, which must have been reached; `not_modified_since` is the reader's
    /// knowledge that it did not change after that (`lsn` when it knows nothing).
    ///
    /// `Ok(None)`: the page was never written. Blocks the thread for file reads and redo, and holds no lock
    /// meanwhile.
    pub fn page_at(
        &self,
        key: Key,
        lsn: Lsn,
        not_modified_since: Lsn,
    ) -> Result<Option<Bytes>, ReadPageError> {
        let cached = self.pages.get(&key, lsn, not_modified_since);
        if let Cached::Answer(page) = cached {
            self.metrics.page_cache_hits.inc();
            return Ok(Some(page));
        }
        let known = match &cached {
            Cached::Base(cached_lsn, _) => *cached_lsn,
            _ => Lsn::INVALID,
        };
        let found = self.store.get_since(key, lsn, known)?;
        self.metrics.layers_per_read.observe(f64::from(found.layers_visited));
        if found.is_missing() {
            return Ok(match cached {
                // Nothing happened to the page since.
                Cached::Base(_, page) if found.base.is_none() => {
                    self.pages.insert(key, lsn, page.clone());
                    Some(page)
                }
                _ => None,
            });
        }
        let plan = plan(key, lsn, found, cached)?;
        let (base, deltas) = match plan {
            Plan::Ready(page) => return Ok(Some(page)),
            Plan::Replay { base, deltas } => (base, deltas),
        };
        let replayed = deltas.len();
        self.metrics.records_per_read.observe(replayed as f64);
        let records = deltas
            .iter()
            .map(|(record_lsn, bytes)| {
                NeonWalRecord::decode(bytes)
                    .map(|record| (*record_lsn, record))
                    .map_err(|source| ReadPageError::StoredRecord { key, lsn: *record_lsn, source })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let page = self.redo(key, lsn, base, records)?;
        // One that is in the cache stays there: else the next read would replay everything again.
        if known.is_valid() || replayed > self.limits.page_cache_min_records {
            self.pages.insert(key, lsn, page.clone());
        }
        Ok(Some(page))
    }

    fn redo(
        &self,
        key: Key,
        lsn: Lsn,
        base: Option<(Lsn, Bytes)>,
        records: Vec<(Lsn, NeonWalRecord)>,
    ) -> Result<Bytes, ReadPageError> {
        let page = super::may_block(|| {
            self.redo.request_redo(key, lsn, base, records, self.metadata.pg_version)
        })
        .map_err(|source| ReadPageError::Redo { key, lsn, source })?;
        check_length(key, lsn, &page)?;
        Ok(page)
    }
}

/// Chooses between what the store has and what the cache has. What the store was asked for lies behind the LSN of
/// the cached page: a start that it has found is newer.
fn plan(key: Key, lsn: Lsn, found: Reconstruct, cached: Cached) -> Result<Plan, ReadPageError> {
    let Reconstruct { base, deltas, first_will_init, .. } = found;
    let base = match (base, cached) {
        (Some((base_lsn, page)), _) if !page.is_empty() => {
            check_length(key, base_lsn, &page)?;
            Some((base_lsn, page))
        }
        (None, _) if first_will_init => None,
        (None, Cached::Base(cached_lsn, page)) => Some((cached_lsn, page)),
        // Never written, or removed: by a truncation, or as the gap of an extension.
        (removed, _) => {
            let lsn_of_base = removed.map_or(Lsn::INVALID, |(lsn, _)| lsn);
            Some((lsn_of_base, implied_base(key, lsn, &deltas)?))
        }
    };
    match base {
        Some((_, page)) if deltas.is_empty() => Ok(Plan::Ready(page)),
        base => Ok(Plan::Replay { base, deltas }),
    }
}

/// Free space and visibility maps are extended by zero pages without WAL (`fsm_extend`, `vm_extend`): their
/// first record may have nothing to start from. For any other page that is damage.
fn implied_base(key: Key, lsn: Lsn, deltas: &[(Lsn, Bytes)]) -> Result<Bytes, ReadPageError> {
    match key.kind() {
        Some(KeyKind::RelBlock(rel, _)) if matches!(rel.fork, ForkNumber::Fsm | ForkNumber::Vm) => {
            Ok(Bytes::from_static(&ZERO_PAGE))
        }
        _ => Err(ReadPageError::NoBase {
            key,
            lsn,
            first_record: deltas.first().map_or(lsn, |(lsn, _)| *lsn),
        }),
    }
}

/// Pages have 8192 bytes; those of `pg_xact` may carry a commit time behind (L072).
fn check_length(key: Key, lsn: Lsn, page: &[u8]) -> Result<(), ReadPageError> {
    let with_timestamp = BLCKSZ + 8;
    let is_clog = matches!(key.kind(), Some(KeyKind::SlruBlock(pg_types::SlruKind::Clog, ..)));
    if page.len() == BLCKSZ || (is_clog && page.len() == with_timestamp) {
        Ok(())
    } else {
        Err(ReadPageError::PageLength { key, lsn, len: page.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg_types::RelFileLocator;

    fn key(fork: ForkNumber) -> Key {
        let rel = RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: 16384 }.fork(fork);
        Key::rel_block(rel, 7)
    }

    fn page(fill: u8) -> Bytes {
        Bytes::from(vec![fill; BLCKSZ])
    }

    fn chain(base: Option<(u64, Bytes)>, deltas: &[u64], first_will_init: bool) -> Reconstruct {
        Reconstruct {
            base: base.map(|(lsn, page)| (Lsn(lsn), page)),
            deltas: deltas.iter().map(|lsn| (Lsn(*lsn), Bytes::from(lsn.to_string()))).collect(),
            first_will_init,
            layers_visited: 1,
        }
    }

    fn replayed(plan: Plan) -> (Option<(u64, u8)>, Vec<u64>) {
        match plan {
            Plan::Ready(page) => (Some((0, page[0])), Vec::new()),
            Plan::Replay { base, deltas } => (
                base.map(|(lsn, page)| (lsn.0, page[0])),
                deltas.into_iter().map(|(lsn, _)| lsn.0).collect(),
            ),
        }
    }

    #[test]
    fn a_stored_start_is_newer_than_the_cached_page() {
        let key = key(ForkNumber::Main);
        let run = |found, cached| replayed(plan(key, Lsn(50), found, cached).unwrap());
        let image = || Some((10, page(1)));
        let cached = || Cached::Base(Lsn(5), page(2));

        assert_eq!(run(chain(image(), &[20], false), Cached::Nothing), (Some((10, 1)), vec![20]));
        assert_eq!(run(chain(image(), &[20], false), cached()), (Some((10, 1)), vec![20]));
        assert_eq!(run(chain(None, &[20, 30], true), cached()), (None, vec![20, 30]));
        assert_eq!(run(chain(None, &[20, 30], false), cached()), (Some((5, 2)), vec![20, 30]));
        assert_eq!(run(chain(image(), &[], false), Cached::Nothing), (Some((0, 1)), vec![]));
    }

    #[test]
    fn a_page_that_was_removed_is_not_the_cached_one() {
        let removed = || chain(Some((30, Bytes::new())), &[40], false);
        let cached = || Cached::Base(Lsn(5), page(2));
        let vm = plan(key(ForkNumber::Vm), Lsn(50), removed(), cached()).unwrap();
        assert_eq!(replayed(vm), (Some((30, 0)), vec![40]));
        plan(key(ForkNumber::Main), Lsn(50), removed(), cached()).unwrap_err();
    }

    #[test]
    fn only_maps_may_begin_with_nothing() {
        let found = || chain(None, &[20], false);
        let vm = plan(key(ForkNumber::Vm), Lsn(50), found(), Cached::Nothing).unwrap();
        assert_eq!(replayed(vm), (Some((0, 0)), vec![20]));
        let error = plan(key(ForkNumber::Main), Lsn(50), found(), Cached::Nothing).unwrap_err();
        assert!(matches!(error, ReadPageError::NoBase { first_record: Lsn(20), .. }), "{error}");
    }

    #[test]
    fn a_page_of_another_length_is_refused() {
        let odd = chain(Some((10, Bytes::from_static(b"short"))), &[], false);
        let error = plan(key(ForkNumber::Main), Lsn(50), odd, Cached::Nothing).unwrap_err();
        assert!(matches!(error, ReadPageError::PageLength { len: 5, .. }), "{error}");
        let clog = Key::slru_block(pg_types::SlruKind::Clog, 0, 0);
        let long = chain(Some((10, Bytes::from(vec![0; BLCKSZ + 8]))), &[], false);
        assert!(plan(clog, Lsn(50), long, Cached::Nothing).is_ok());
    }
}
