//! Damaged copies of real records: each must decode or be refused; none may panic.

use bytes::Bytes;
use pg_types::page::ZERO_PAGE;
use wal_decoder::{DecodedRecord, RawRecord, image, interpret};

/// Records between two that are damaged.
const EVERY: usize = 17;
/// Damaged copies of one record.
const COPIES: usize = 8;

/// Counts of what became of damaged records.
#[derive(Debug, Default)]
pub struct Damaged {
    seen: usize,
    state: u64,
    pub decoded: usize,
    pub refused: usize,
}

impl Damaged {
    pub fn try_copies_of(&mut self, raw: &RawRecord) {
        self.seen += 1;
        if !self.seen.is_multiple_of(EVERY) {
            return;
        }
        for _ in 0..COPIES {
            // Behind the length, which the stream has checked.
            let at = 4 + self.random() % (raw.bytes.len() - 4);
            let mut bytes = raw.bytes.to_vec();
            bytes[at] = (self.random() & 0xFF) as u8;
            if self.random().is_multiple_of(4) {
                bytes.truncate(at);
                let len = u32::try_from(at).unwrap().to_le_bytes();
                let head = len.len().min(at);
                bytes[..head].copy_from_slice(&len[..head]);
            }
            self.try_one(&RawRecord { bytes: Bytes::from(bytes), ..raw.clone() });
        }
    }

    fn try_one(&mut self, raw: &RawRecord) {
        let Ok(record) = DecodedRecord::decode(raw) else {
            self.refused += 1;
            return;
        };
        self.decoded += 1;
        let mut page = ZERO_PAGE;
        for block in record.blocks() {
            let _ = image::restore(&record, block, &mut page);
            let _ = record.block_data(block);
        }
        let _ = interpret(&record, &mut Vec::new());
    }

    fn random(&mut self) -> usize {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) as usize
    }
}
