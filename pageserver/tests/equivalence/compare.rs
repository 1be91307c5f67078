//! Every block of every relation and every SLRU page: the server's file against ours.

use std::collections::BTreeMap;
use std::path::Path;

use pg_types::key::KeyKind;
use pg_types::page::{Page, ZERO_PAGE, is_new, lsn as page_lsn};
use pg_types::{BLCKSZ, ForkNumber, Key, Lsn, RelTag, SlruKind};

use super::files::{self, Relations};
use super::ours::Ours;
use crate::mask::{Kind, kind, mask};

/// What was compared.
#[derive(Debug)]
pub struct Outcome {
    made: Made,
    pub forks: usize,
    pub blocks: usize,
    pub slru_pages: usize,
    pub kinds: BTreeMap<Kind, usize>,
    /// Pages whose LSN differs; masked in the comparison, as `rm_mask` does.
    pub other_lsn: BTreeMap<Kind, usize>,
    /// Visibility map pages with fewer bits than those of a server that knew more; see [`Made::ByWork`].
    pub fewer_vm_bits: usize,
    pub differences: Vec<String>,
}

/// How a server came to its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// It ran the workload. Then it knows three things that are not in WAL, and that its own standby would not
    /// know: a sequence's values since the last record (`SEQ_LOG_VALS` are logged ahead); which pages of an SP-GiST
    /// index it filled last (`SpGistUpdateMetaPage`); and visibility map bits of a database that was created by
    /// copying through WAL (`RelationCopyStorageUsingBuffer` logs map pages as if they had a hole, and all of the
    /// map is in it). The former two are hidden; of a map our bits must be a subset of its.
    ByWork,
    /// It replayed the WAL: everything must be equal.
    ByReplay,
}

/// Compares a stopped server's files with our pages at `lsn`.
pub fn compare(ours: &Ours, data: &Path, lsn: Lsn, made: Made) -> Outcome {
    let mut outcome = Outcome {
        made,
        forks: 0,
        blocks: 0,
        slru_pages: 0,
        kinds: BTreeMap::new(),
        other_lsn: BTreeMap::new(),
        fewer_vm_bits: 0,
        differences: Vec::new(),
    };
    let theirs = files::relations(data);
    same_relations(ours, &theirs, lsn, &mut outcome);
    for (rel, segments) in &theirs {
        fork(ours, *rel, &files::pages(segments), lsn, &mut outcome);
    }
    for kind in SlruKind::ALL {
        slru(ours, kind, data, lsn, &mut outcome);
    }
    relmaps(ours, data, lsn, &mut outcome);
    outcome
}

impl Outcome {
    /// Fails the test when anything differs; the LSNs of pages other than maps only if they must be the same.
    pub fn check(&self, what: &str, same_lsns: bool) {
        println!(
            "{what}: {} forks, {} blocks {:?}, {} SLRU pages, pages with another LSN {:?}, {} maps with fewer bits, {} differences",
            self.forks,
            self.blocks,
            self.kinds,
            self.slru_pages,
            self.other_lsn,
            self.fewer_vm_bits,
            self.differences.len()
        );
        let shown = self.differences.iter().take(40).cloned().collect::<Vec<_>>().join("\n");
        assert!(self.differences.is_empty(), "{what}:\n{shown}");
        let maps_alone = self.other_lsn.keys().all(|kind| *kind == Kind::VisibilityMap);
        assert!(!same_lsns || maps_alone, "{what}: LSNs differ: {:?}", self.other_lsn);
    }
}

/// A relation that is ours must have a file. (That each file is ours is seen block by block.)
fn same_relations(ours: &Ours, theirs: &Relations, lsn: Lsn, outcome: &mut Outcome) {
    let all = Key::rel_dir_range(0, 0).start..Key::rel_dir_range(u32::MAX, u32::MAX).end;
    let entries: Vec<RelTag> = ours
        .store
        .scan_keys(all, lsn)
        .unwrap()
        .filter_map(|key| match key.unwrap().kind() {
            Some(KeyKind::RelDirEntry(rel)) => Some(rel),
            _ => None,
        })
        .collect();
    let unlogged =
        entries.iter().filter(|r| r.fork == ForkNumber::Init).map(|r| r.locator).collect();
    for rel in entries.into_iter().filter(|rel| files::is_compared(*rel, &unlogged)) {
        if !theirs.contains_key(&rel) {
            outcome.differences.push(format!("{rel}: exists here, the server has no file"));
        }
    }
}

fn fork(ours: &Ours, rel: RelTag, theirs: &[Page], lsn: Lsn, outcome: &mut Outcome) {
    outcome.forks += 1;
    let Some(nblocks) = ours.nblocks(rel, lsn) else {
        // A map that was made and never written, or blocks that were added and never used, are not in WAL.
        if theirs.iter().any(|page| *page != ZERO_PAGE) || rel.fork != ForkNumber::Vm {
            outcome
                .differences
                .push(format!("{rel}: the server has a file, it does not exist here"));
        }
        return;
    };
    if nblocks as usize > theirs.len() {
        let text = format!("{rel}: {nblocks} blocks here, {} in the file", theirs.len());
        outcome.differences.push(text);
    }
    for (blkno, theirs) in theirs.iter().enumerate() {
        let blkno = u32::try_from(blkno).unwrap();
        outcome.blocks += 1;
        if blkno >= nblocks {
            // Servers extend files ahead of use, without WAL.
            if *theirs != ZERO_PAGE {
                outcome.differences.push(format!("{rel} block {blkno}: in the file, not here"));
            }
            continue;
        }
        let page = ours.pages.page(Key::rel_block(rel, blkno), lsn);
        page_pair(rel, blkno, page, *theirs, outcome);
    }
}

fn page_pair(rel: RelTag, blkno: u32, mut ours: Page, mut theirs: Page, outcome: &mut Outcome) {
    let page_kind = kind(&theirs, rel.fork);
    *outcome.kinds.entry(page_kind).or_default() += 1;
    if is_new(&ours) != is_new(&theirs) {
        // `vm_readbuf` initialises a page of zeros when it is read, and so does a reader of ours.
        let empty_map = rel.fork == ForkNumber::Vm
            && ours[24..].iter().all(|byte| *byte == 0)
            && theirs[24..].iter().all(|byte| *byte == 0);
        if !empty_map {
            outcome.differences.push(format!("{rel} block {blkno}: new on one side alone"));
        }
        return;
    }
    if page_lsn(&ours) != page_lsn(&theirs) {
        *outcome.other_lsn.entry(page_kind).or_default() += 1;
    }
    let lsns = (page_lsn(&ours), page_lsn(&theirs));
    if page_kind != kind(&ours, rel.fork) {
        outcome.differences.push(format!("{rel} block {blkno}: pages of different kinds"));
        return;
    }
    mask(&mut ours, page_kind, blkno);
    mask(&mut theirs, page_kind, blkno);
    if outcome.made == Made::ByWork {
        let hidden = only_the_worker_knows(&theirs, page_kind, blkno);
        ours[hidden.clone()].fill(0);
        theirs[hidden].fill(0);
    }
    if outcome.made == Made::ByWork && page_kind == Kind::VisibilityMap && ours != theirs {
        let subset = ours[24..].iter().zip(&theirs[24..]).all(|(ours, theirs)| ours & !theirs == 0);
        if subset {
            outcome.fewer_vm_bits += 1;
            return;
        }
    }
    if let Some(at) = (0..BLCKSZ).find(|at| ours[*at] != theirs[*at]) {
        let count = (0..BLCKSZ).filter(|at| ours[*at] != theirs[*at]).count();
        let range = at.saturating_sub(4)..(at + 12).min(BLCKSZ);
        outcome.differences.push(format!(
            "{rel} block {blkno} ({page_kind:?}, LSNs {lsns:?}): {count} bytes differ from {at} on: {:02x?} here, {:02x?} in the file",
            &ours[range.clone()],
            &theirs[range]
        ));
    }
}

/// Bytes that a server changes without WAL and without hiding them from `rm_mask`; see [`Made::ByWork`].
fn only_the_worker_knows(page: &Page, kind: Kind, blkno: u32) -> std::ops::Range<usize> {
    match kind {
        // FormData_pg_sequence_data (last_value, log_cnt, is_called) in the only tuple.
        Kind::Sequence => {
            let tuple = usize::from(u16::from_le_bytes([page[24], page[25]]) & 0x7FFF);
            let data = tuple + usize::from(page[tuple + 22]);
            data..data + 17
        }
        // lastUsedPages of the meta page, eight pairs of words behind the magic number.
        Kind::SpGist if blkno == 0 => 28..28 + 64,
        _ => 0..0,
    }
}

fn slru(ours: &Ours, kind: SlruKind, data: &Path, lsn: Lsn, outcome: &mut Outcome) {
    let theirs = files::slru(data, kind);
    let segments: Vec<(u32, u32)> = ours
        .store
        .scan_keys(Key::slru_range(kind), lsn)
        .unwrap()
        .filter_map(|key| match key.unwrap().kind() {
            Some(KeyKind::SlruSegmentSize(_, segno)) => {
                let key = Key::slru_segment_size(kind, segno);
                let (_, size) = ours.store.get_image(key, lsn).unwrap().unwrap();
                Some((segno, u32::from_le_bytes(*size.first_chunk().unwrap())))
            }
            _ => None,
        })
        .collect();
    for segno in theirs.keys().filter(|segno| !segments.iter().any(|(ours, _)| ours == *segno)) {
        outcome.differences.push(format!("{kind} segment {segno:X}: in the files, not here"));
    }
    for (segno, nblocks) in segments {
        let Some(pages) = theirs.get(&segno) else {
            outcome.differences.push(format!("{kind} segment {segno:X}: here, no file"));
            continue;
        };
        for blkno in 0..nblocks.max(u32::try_from(pages.len()).unwrap()) {
            outcome.slru_pages += 1;
            let theirs = pages.get(blkno as usize).copied().unwrap_or(ZERO_PAGE);
            let page = match blkno < nblocks {
                true => ours.pages.page(Key::slru_block(kind, segno, blkno), lsn),
                false => ZERO_PAGE,
            };
            if let Some(at) = (0..BLCKSZ).find(|at| page[*at] != theirs[*at]) {
                let range = at..(at + 8).min(BLCKSZ);
                outcome.differences.push(format!(
                    "{kind} segment {segno:X} block {blkno} byte {at}: {:02x?} here, {:02x?} in the file",
                    &page[range.clone()],
                    &theirs[range]
                ));
            }
        }
    }
}

/// The relation maps of all databases.
fn relmaps(ours: &Ours, data: &Path, lsn: Lsn, outcome: &mut Outcome) {
    for (spc_oid, db_oid, path) in files::databases(data) {
        let theirs = std::fs::read(path.join("pg_filenode.map")).ok();
        let found = ours.store.get_image(Key::rel_map(spc_oid, db_oid), lsn).unwrap();
        if theirs.as_deref() != found.as_ref().map(|(_, map)| map.as_ref()) {
            outcome.differences.push(format!("relation map of {spc_oid}/{db_oid} differs"));
        }
    }
}
