//! Reading a server's WAL.

use std::path::Path;

use bytes::Bytes;
use pg_types::page::Page;
use pg_types::xlog::{WAL_SEGMENT_SIZE, segment_file_name, segment_number, segment_offset};
use pg_types::{BLCKSZ, Lsn, PG_TLI};
use wal_decoder::{BlockRef, DecodedRecord, WalStream, image};
use walredo_sidecar::NeonWalRecord;

/// Every record from `start`, where one begins, up to the end of the WAL.
pub fn records(data_dir: &Path, start: Lsn) -> Vec<DecodedRecord> {
    let mut stream = WalStream::new(start);
    let mut found = Vec::new();
    let mut segno = segment_number(start);
    let mut skip = usize::try_from(segment_offset(start)).unwrap();
    loop {
        let path = data_dir.join("pg_wal").join(segment_file_name(PG_TLI, segno));
        let Ok(bytes) = std::fs::read(&path) else { return found };
        assert_eq!(bytes.len() as u64, WAL_SEGMENT_SIZE);
        stream.feed(Bytes::from(bytes).slice(skip..));
        skip = 0;
        loop {
            match stream.poll() {
                Ok(Some(raw)) => found.push(DecodedRecord::decode(&raw).unwrap()),
                Ok(None) => break,
                // The end of WAL looks like an invalid record.
                Err(_) => return found,
            }
        }
        segno += 1;
    }
}

/// The record as ingest would store it for this block.
pub fn stored(record: &DecodedRecord, block: &BlockRef) -> (Lsn, NeonWalRecord) {
    let rec = record.bytes().clone();
    (record.next_lsn, NeonWalRecord::Postgres { will_init: makes_page(block), rec })
}

/// Whether the record needs no base image for this block.
pub fn makes_page(block: &BlockRef) -> bool {
    block.will_init || block.image.is_some_and(|image| image.apply)
}

/// The page that `wal_consistency_checking` put into the record: the server's page right after the change.
pub fn consistency_image(record: &DecodedRecord, block: &BlockRef) -> Option<Page> {
    block.image?;
    let mut page = [0; BLCKSZ];
    image::restore(record, block, &mut page).unwrap();
    Some(page)
}
