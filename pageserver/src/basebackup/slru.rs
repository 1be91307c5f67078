//! `pg_xact` and `pg_multixact`.

use std::io::Write;

use bytes::{Bytes, BytesMut};
use pg_types::page::ZERO_PAGE;
use pg_types::slru::{SLRU_PAGES_PER_SEGMENT, segment_file_name};
use pg_types::{BLCKSZ, Key, Lsn, SlruKind};

use super::archive::Archive;
use super::{BackupError, BackupSource};

pub(super) fn write(
    archive: &mut Archive<impl Write>,
    source: &impl BackupSource,
    lsn: Lsn,
) -> Result<(), BackupError> {
    for kind in SlruKind::ALL {
        let mut range = Key::slru_range(kind);
        // Keys of a segment: its blocks, of which there may be leftovers behind its end, then its size.
        while let Some(key) = source.first_key(range.clone(), lsn).map_err(BackupError::Source)? {
            let (.., segno, _, _) = key.fields();
            range.start = Key::slru_segment_size(kind, segno).next();
            if let Some(pages) = segment(source, kind, segno, lsn)? {
                let path = format!("{}/{}", kind.directory(), segment_file_name(segno));
                archive.file(&path, &pages)?;
            }
        }
    }
    Ok(())
}

/// The pages of a segment; `None` when it was removed.
fn segment(
    source: &impl BackupSource,
    kind: SlruKind,
    segno: u32,
    lsn: Lsn,
) -> Result<Option<Bytes>, BackupError> {
    let key = Key::slru_segment_size(kind, segno);
    let Some(size) = source.value(key, lsn).map_err(BackupError::Source)? else {
        return Ok(None);
    };
    let size = size.first_chunk::<4>().map(|size| u32::from_le_bytes(*size));
    let size = size.filter(|size| *size <= SLRU_PAGES_PER_SEGMENT).ok_or_else(|| {
        BackupError::Malformed { key, lsn, what: "no number of blocks".to_owned() }
    })?;
    let mut pages = BytesMut::with_capacity(SLRU_PAGES_PER_SEGMENT as usize * BLCKSZ);
    for blkno in 0..size {
        pages.extend_from_slice(&page(source, Key::slru_block(kind, segno, blkno), lsn)?);
    }
    Ok(Some(pages.freeze()))
}

/// A page, cut to its size; zeros when it was never written.
pub(super) fn page(source: &impl BackupSource, key: Key, lsn: Lsn) -> Result<Bytes, BackupError> {
    match source.page(key, lsn).map_err(BackupError::Source)? {
        None => Ok(Bytes::from_static(&ZERO_PAGE)),
        Some(page) if page.len() >= BLCKSZ => Ok(page.slice(..BLCKSZ)),
        Some(page) => {
            let what = format!("page of {} bytes", page.len());
            Err(BackupError::Malformed { key, lsn, what })
        }
    }
}
