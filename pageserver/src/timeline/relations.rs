//! Answers that are not one stored page: existence, sizes, segments, and pages fenced by their relation's size.

use bytes::{Bytes, BytesMut};
use page_protocol::{Payload, RequestKind};
use pg_types::key::KeyKind;
use pg_types::page::{Page, ZERO_PAGE};
use pg_types::slru::SLRU_PAGES_PER_SEGMENT;
use pg_types::{BLCKSZ, BlockNumber, ForkNumber, Key, Lsn, Oid, RelTag, SlruKind};

use super::relation_sizes::Remembered;
use super::{ReadPageError, RequestError, Timeline};

/// The answer to a request, with its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// See [`Payload::Exists`].
    Exists(bool),
    /// See [`Payload::Nblocks`].
    Nblocks(u32),
    /// See [`Payload::Page`]; 8192 bytes.
    Page(Bytes),
    /// See [`Payload::DbSize`].
    DbSize(i64),
    /// See [`Payload::SlruSegment`]; whole pages.
    SlruSegment(Bytes),
}

impl Answer {
    /// What goes to the client.
    pub fn payload(&self) -> Payload<'_> {
        match self {
            Answer::Exists(exists) => Payload::Exists(*exists),
            Answer::Nblocks(nblocks) => Payload::Nblocks(*nblocks),
            // Only `Timeline::answer` makes this, out of checked pages; a shorter one is shown as an error.
            Answer::Page(page) => page.first_chunk::<BLCKSZ>().map_or_else(
                || Payload::Error("page of wrong length".into()),
                |page: &Page| Payload::Page(page),
            ),
            Answer::DbSize(size) => Payload::DbSize(*size),
            Answer::SlruSegment(pages) => Payload::SlruSegment(pages),
        }
    }
}

impl Timeline {
    /// Answers a request at `lsn`, which must have been reached. Blocks the thread, for file reads and redo.
    pub fn answer(
        &self,
        kind: &RequestKind,
        lsn: Lsn,
        not_modified_since: Lsn,
    ) -> Result<Answer, RequestError> {
        Ok(match kind {
            RequestKind::Exists(rel) => Answer::Exists(self.relation_exists(*rel, lsn)?),
            RequestKind::Nblocks(rel) => Answer::Nblocks(self.relation_nblocks(*rel, lsn)?),
            RequestKind::GetPage(rel, blkno) => {
                Answer::Page(self.relation_page(*rel, *blkno, lsn, not_modified_since)?)
            }
            RequestKind::DbSize(db_oid) => Answer::DbSize(self.database_size(*db_oid, lsn)?),
            RequestKind::SlruSegment(kind, segno) => {
                Answer::SlruSegment(self.slru_segment(*kind, *segno, lsn)?)
            }
        })
    }

    /// Whether a relation fork exists at `lsn`.
    pub fn relation_exists(&self, rel: RelTag, lsn: Lsn) -> Result<bool, ReadPageError> {
        self.relation_size(rel, lsn).map(|size| size.is_some())
    }

    /// Blocks of a relation fork at `lsn`; `None` when it does not exist.
    pub fn relation_size(
        &self,
        rel: RelTag,
        lsn: Lsn,
    ) -> Result<Option<BlockNumber>, ReadPageError> {
        // No relation has number 0, but `\d+` of a view asks.
        if rel.locator.rel_number == 0 {
            return Ok(None);
        }
        match self.sizes.get(&rel, lsn) {
            Remembered::Size(size) => {
                self.metrics.relsize_hits.inc();
                return Ok(size);
            }
            Remembered::AsOf(checked, size) if self.is_size_unchanged(rel, lsn, checked)? => {
                self.metrics.relsize_hits.inc();
                self.sizes.extend(&rel, checked, lsn);
                return Ok(size);
            }
            Remembered::AsOf(..) | Remembered::Nothing => {}
        }
        self.metrics.relsize_misses.inc();
        let entry = self.store.get_image(Key::rel_dir_entry(rel), lsn)?;
        let size = match entry.filter(|(_, value)| !value.is_empty()) {
            Some(_) => Some(self.stored_size(Key::rel_size(rel), lsn)?.unwrap_or(0)),
            None => None,
        };
        self.sizes.insert(rel, lsn, size);
        Ok(size)
    }

    /// Whether neither size nor existence of a relation changed behind `checked` up to `lsn`.
    fn is_size_unchanged(
        &self,
        rel: RelTag,
        lsn: Lsn,
        checked: Lsn,
    ) -> Result<bool, ReadPageError> {
        for key in [Key::rel_size(rel), Key::rel_dir_entry(rel)] {
            if self.store.get_since(key, lsn, checked)?.newest_lsn().is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn stored_size(&self, key: Key, lsn: Lsn) -> Result<Option<u32>, ReadPageError> {
        let Some((_, value)) = self.store.get_image(key, lsn)? else { return Ok(None) };
        match value.as_array() {
            Some(bytes) => Ok(Some(u32::from_le_bytes(*bytes))),
            None if value.is_empty() => Ok(None),
            None => Err(ReadPageError::SizeLength { key, lsn, len: value.len() }),
        }
    }

    /// Blocks of a relation fork at `lsn`. Missing maps have none: they are made when first needed.
    fn relation_nblocks(&self, rel: RelTag, lsn: Lsn) -> Result<BlockNumber, RequestError> {
        match self.relation_size(rel, lsn)? {
            Some(nblocks) => Ok(nblocks),
            None if matches!(rel.fork, ForkNumber::Fsm | ForkNumber::Vm) => Ok(0),
            None => Err(RequestError::NoRelation { rel, lsn }),
        }
    }

    /// A page of a relation: zeros behind its end, and where nothing was ever written.
    pub fn relation_page(
        &self,
        rel: RelTag,
        blkno: BlockNumber,
        lsn: Lsn,
        not_modified_since: Lsn,
    ) -> Result<Bytes, RequestError> {
        // The fence: a block above the size may have versions from before a truncation.
        if blkno >= self.relation_nblocks(rel, lsn)? {
            return Ok(Bytes::from_static(&ZERO_PAGE));
        }
        let page = self.page_at(Key::rel_block(rel, blkno), lsn, not_modified_since)?;
        Ok(page.unwrap_or_else(|| Bytes::from_static(&ZERO_PAGE)))
    }

    /// The relation forks of a database in a tablespace, in key order.
    pub fn relations(
        &self,
        spc_oid: Oid,
        db_oid: Oid,
        lsn: Lsn,
    ) -> Result<Vec<RelTag>, ReadPageError> {
        let mut relations = Vec::new();
        for key in self.store.scan_keys(Key::rel_dir_range(spc_oid, db_oid), lsn)? {
            if let Some(KeyKind::RelDirEntry(rel)) = key?.kind() {
                relations.push(rel);
            }
        }
        Ok(relations)
    }

    /// Bytes of all relation forks of a database, whatever their tablespace.
    pub fn database_size(&self, db_oid: Oid, lsn: Lsn) -> Result<i64, ReadPageError> {
        self.sum_of_sizes(lsn, |rel| rel.locator.db_oid == db_oid)
    }

    /// Bytes of all relation forks of the cluster.
    pub fn logical_size(&self, lsn: Lsn) -> Result<i64, ReadPageError> {
        self.sum_of_sizes(lsn, |_| true)
    }

    fn sum_of_sizes(
        &self,
        lsn: Lsn,
        wanted: impl Fn(&RelTag) -> bool,
    ) -> Result<i64, ReadPageError> {
        let everything = Key::rel_dir_range(0, 0).start..Key::rel_dir_range(u32::MAX, u32::MAX).end;
        let mut bytes = 0i64;
        for key in self.store.scan_keys(everything, lsn)? {
            let Some(KeyKind::RelDirEntry(rel)) = key?.kind() else { continue };
            if wanted(&rel) {
                let nblocks = self.relation_size(rel, lsn)?.unwrap_or(0);
                bytes = bytes.saturating_add(i64::from(nblocks) * BLOCK_BYTES);
            }
        }
        Ok(bytes)
    }

    /// All pages of an SLRU segment, 8192 bytes each.
    pub fn slru_segment(
        &self,
        kind: SlruKind,
        segno: u32,
        lsn: Lsn,
    ) -> Result<Bytes, RequestError> {
        let nblocks = self
            .stored_size(Key::slru_segment_size(kind, segno), lsn)?
            .ok_or(RequestError::NoSegment { kind, segno, lsn })?
            .min(SLRU_PAGES_PER_SEGMENT);
        let mut pages = BytesMut::new();
        for blkno in 0..nblocks {
            let page = self.page_at(Key::slru_block(kind, segno, blkno), lsn, lsn)?;
            // What is behind the 8192 bytes is a commit time for our own use (L072).
            pages.extend_from_slice(match &page {
                Some(page) => page.get(..BLCKSZ).unwrap_or(&ZERO_PAGE),
                None => &ZERO_PAGE,
            });
        }
        Ok(pages.freeze())
    }
}

/// [`BLCKSZ`] as sizes are counted on the wire.
const BLOCK_BYTES: i64 = 8192;
