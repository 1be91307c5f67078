//! Builds WAL records and the pages around them, from the layout that `xlogrecord.h` and `xlog_internal.h` give.

use bytes::Bytes;
use pg_types::xlog::{
    WAL_SEGMENT_SIZE, XLOG_BLCKSZ, XLOG_PAGE_MAGIC, XLP_FIRST_IS_CONTRECORD,
    XLP_FIRST_IS_OVERWRITE_CONTRECORD, XLP_LONG_HEADER, page_offset, segment_offset,
};
use pg_types::{ForkNumber, Lsn, RelFileLocator};
use wal_decoder::{DecodedRecord, Effect, RawRecord, interpret};

pub const REL: RelFileLocator = RelFileLocator { spc_oid: 70_000, db_oid: 5, rel_number: 16_384 };

/// One record, before it has a place.
#[derive(Clone, Default)]
pub struct Record {
    pub rmid: u8,
    pub info: u8,
    pub xid: u32,
    headers: Vec<u8>,
    payload: Vec<u8>,
    main: Vec<u8>,
}

/// A full-page image as it goes into a record.
pub struct Image {
    pub bytes: Vec<u8>,
    pub hole_offset: u16,
    pub hole_length: u16,
    pub info: u8,
}

impl Record {
    pub fn new(rmid: u8, info: u8, xid: u32) -> Record {
        Record { rmid, info, xid, ..Record::default() }
    }

    pub fn main(mut self, main: &[u8]) -> Record {
        self.main = main.to_vec();
        self
    }

    pub fn origin(mut self, origin: u16) -> Record {
        self.headers.push(253);
        self.headers.extend(origin.to_le_bytes());
        self
    }

    pub fn block(self, id: u8, fork: ForkNumber, blkno: u32, data: &[u8]) -> Record {
        self.block_with_image(id, fork, blkno, data, None)
    }

    pub fn block_with_image(
        mut self,
        id: u8,
        fork: ForkNumber,
        blkno: u32,
        data: &[u8],
        image: Option<Image>,
    ) -> Record {
        let mut flags = fork.number();
        flags |= if data.is_empty() { 0 } else { 0x20 };
        flags |= if image.is_some() { 0x10 } else { 0 };
        self.headers.extend([id, flags]);
        self.headers.extend(u16::try_from(data.len()).unwrap().to_le_bytes());
        if let Some(image) = image {
            self.headers.extend(u16::try_from(image.bytes.len()).unwrap().to_le_bytes());
            self.headers.extend(image.hole_offset.to_le_bytes());
            self.headers.push(image.info);
            if image.info & 0x1C != 0 && image.info & 1 != 0 {
                self.headers.extend(image.hole_length.to_le_bytes());
            }
            self.payload.extend(image.bytes);
        }
        for word in [REL.spc_oid, REL.db_oid, REL.rel_number, blkno] {
            self.headers.extend(word.to_le_bytes());
        }
        self.payload.extend(data);
        self
    }

    pub fn encode(&self, prev: Lsn) -> Vec<u8> {
        let mut body = self.headers.clone();
        if let Ok(len) = u8::try_from(self.main.len()) {
            if len > 0 {
                body.extend([255, len]);
            }
        } else {
            body.push(254);
            body.extend(u32::try_from(self.main.len()).unwrap().to_le_bytes());
        }
        body.extend(&self.payload);
        body.extend(&self.main);
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(24 + body.len()).unwrap().to_le_bytes());
        bytes.extend(self.xid.to_le_bytes());
        bytes.extend(prev.0.to_le_bytes());
        bytes.extend([self.info, self.rmid, 0, 0, 0, 0, 0, 0]);
        bytes.extend(body);
        seal(&mut bytes);
        bytes
    }

    /// The record alone, decoded, as if it stood at 1/0.
    pub fn decoded(&self) -> DecodedRecord {
        let bytes = Bytes::from(self.encode(Lsn(0x1000)));
        let start_lsn = Lsn(0x1_0000_0028);
        let next_lsn = Lsn(start_lsn.0 + bytes.len() as u64).align();
        DecodedRecord::decode(&RawRecord { start_lsn, next_lsn, bytes }).unwrap()
    }

    pub fn effects(&self) -> Vec<Effect> {
        let mut effects = Vec::new();
        interpret(&self.decoded(), &mut effects).unwrap();
        effects
    }
}

/// Puts the right CRC into a record.
pub fn seal(bytes: &mut [u8]) {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[24..]), &bytes[..20]);
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
}

/// Where a record was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    pub start: Lsn,
    pub end: Lsn,
}

/// WAL pages under construction.
pub struct Wal {
    pub start: Lsn,
    pub bytes: Vec<u8>,
    pub prev: Lsn,
}

impl Wal {
    pub fn new(start: Lsn) -> Wal {
        Wal { start, bytes: Vec::new(), prev: Lsn(start.0 - 64) }
    }

    pub fn lsn(&self) -> Lsn {
        Lsn(self.start.0 + self.bytes.len() as u64)
    }

    pub fn page_header(&mut self, flags: u16, rem_len: u32) {
        let at = self.lsn();
        let long = segment_offset(at) == 0;
        let info = flags | if long { XLP_LONG_HEADER } else { 0 };
        self.bytes.extend(XLOG_PAGE_MAGIC.to_le_bytes());
        self.bytes.extend(info.to_le_bytes());
        self.bytes.extend(1u32.to_le_bytes());
        self.bytes.extend(at.0.to_le_bytes());
        self.bytes.extend(rem_len.to_le_bytes());
        self.bytes.extend([0; 4]);
        if long {
            self.bytes.extend(0xABCDu64.to_le_bytes());
            self.bytes.extend(u32::try_from(WAL_SEGMENT_SIZE).unwrap().to_le_bytes());
            self.bytes.extend(u32::try_from(XLOG_BLCKSZ).unwrap().to_le_bytes());
        }
    }

    fn align(&mut self) {
        while !self.lsn().is_aligned() {
            self.bytes.push(0);
        }
        if page_offset(self.lsn()) == 0 {
            self.page_header(0, 0);
        }
    }

    pub fn push(&mut self, record: &Record) -> Placed {
        self.align();
        let bytes = record.encode(self.prev);
        self.push_bytes(&bytes)
    }

    pub fn push_bytes(&mut self, bytes: &[u8]) -> Placed {
        self.align();
        let start = self.lsn();
        self.push_part(bytes, bytes.len());
        self.prev = start;
        Placed { start, end: self.lsn().align() }
    }

    /// Writes the first `len` bytes of a record, with page headers where they fall.
    pub fn push_part(&mut self, bytes: &[u8], len: usize) {
        let mut done = 0;
        while done < len {
            if page_offset(self.lsn()) == 0 {
                let rem = u32::try_from(bytes.len() - done).unwrap();
                self.page_header(if done > 0 { XLP_FIRST_IS_CONTRECORD } else { 0 }, rem);
            }
            let room = usize::try_from(XLOG_BLCKSZ - page_offset(self.lsn())).unwrap();
            let part = room.min(len - done);
            self.bytes.extend(&bytes[done..done + part]);
            done += part;
        }
    }

    /// Fills the page with zeros and opens the next one as `RequestXLogSwitch` does for a lost continuation.
    pub fn overwrite_contrecord(&mut self) {
        while page_offset(self.lsn()) != 0 {
            self.bytes.push(0);
        }
        self.page_header(XLP_FIRST_IS_OVERWRITE_CONTRECORD, 0);
    }

    pub fn zeros_to_segment_end(&mut self) {
        while segment_offset(self.lsn()) != 0 {
            self.bytes.push(0);
        }
    }
}
