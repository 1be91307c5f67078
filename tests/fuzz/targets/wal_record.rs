//! One WAL record: header, block references, images, and every resource manager's reading of it.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pg_types::{Lsn, page};
use wal_decoder::{DecodedRecord, RawRecord, image, interpret};

fuzz_target!(|data: &[u8]| {
    let raw = RawRecord {
        start_lsn: Lsn(0x100_0028),
        next_lsn: Lsn(0x100_0028) + data.len() as u64,
        bytes: Bytes::copy_from_slice(data),
    };
    let Ok(record) = DecodedRecord::decode(&raw) else { return };
    let mut target = page::ZERO_PAGE;
    for block in record.blocks() {
        let _ = image::restore(&record, block, &mut target);
        let _ = record.block_data(block);
    }
    let mut effects = Vec::new();
    let _ = interpret(&record, &mut effects);
});
