//! A record's header, block references and main data, found without copying (`DecodeXLogRecord`).
//!
//! ```text
//!   XLogRecord (24)                          tot_len u32, xid u32, prev u64, info u8, rmid u8, 2 unused, crc u32
//!   [id 0..=32: block header ...]            ascending ids
//!   [id 253: origin u16] [id 252: toplevel xid u32]
//!   [id 255: u8 length | id 254: u32 length] main data header, last
//!   image and data of each block, then the main data
//! ```

use bytes::Bytes;
use pg_types::xlog::SIZE_OF_XLOG_RECORD;
use pg_types::{
    BLCKSZ, BlockNumber, ForkNumber, Lsn, RelFileLocator, RelTag, RmgrId, TransactionId,
};

use crate::reader::{Reader, ShortRead};
use crate::stream::RawRecord;

const XLR_MAX_BLOCK_ID: u8 = 32;
const XLR_BLOCK_ID_DATA_SHORT: u8 = 255;
const XLR_BLOCK_ID_DATA_LONG: u8 = 254;
const XLR_BLOCK_ID_ORIGIN: u8 = 253;
const XLR_BLOCK_ID_TOPLEVEL_XID: u8 = 252;

const BKPBLOCK_FORK_MASK: u8 = 0x0F;
const BKPBLOCK_HAS_IMAGE: u8 = 0x10;
const BKPBLOCK_HAS_DATA: u8 = 0x20;
const BKPBLOCK_WILL_INIT: u8 = 0x40;
const BKPBLOCK_SAME_REL: u8 = 0x80;

const BKPIMAGE_HAS_HOLE: u8 = 0x01;
const BKPIMAGE_APPLY: u8 = 0x02;
const BKPIMAGE_COMPRESS_PGLZ: u8 = 0x04;
const BKPIMAGE_COMPRESS_LZ4: u8 = 0x08;
const BKPIMAGE_COMPRESS_ZSTD: u8 = 0x10;
const BKPIMAGE_COMPRESSED: u8 =
    BKPIMAGE_COMPRESS_PGLZ | BKPIMAGE_COMPRESS_LZ4 | BKPIMAGE_COMPRESS_ZSTD;

/// `BLCKSZ` in the width of the length fields.
const PAGE: u16 = 8192;
const _: () = assert!(PAGE as usize == BLCKSZ);

/// A part of a record's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Span {
    start: u32,
    len: u32,
}

/// How an image's bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageCompression {
    /// Not at all.
    None,
    /// `wal_compression = pglz`.
    Pglz,
    /// `wal_compression = lz4`.
    Lz4,
    /// `wal_compression = zstd`.
    Zstd,
}

/// A full-page image within a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageRef {
    /// First byte of the hole.
    pub hole_offset: u16,
    /// Bytes of the hole, which are zeros; 0 when there is none.
    pub hole_length: u16,
    /// Redo replaces the page by the image (`BKPIMAGE_APPLY`); otherwise the image is there for
    /// `wal_consistency_checking` alone.
    pub apply: bool,
    /// How the bytes are compressed.
    pub compression: ImageCompression,
    span: Span,
}

/// A block reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRef {
    /// Block id within the record.
    pub id: u8,
    /// Relation and fork.
    pub rel: RelTag,
    /// The block.
    pub blkno: BlockNumber,
    /// Redo makes the page from nothing (`BKPBLOCK_WILL_INIT`).
    pub will_init: bool,
    /// The full-page image, if any.
    pub image: Option<ImageRef>,
    data: Span,
}

/// Why a record is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Less there than announced.
    #[error("record is too short: {0}")]
    Short(#[from] ShortRead),
    /// `xl_tot_len` differs from the number of bytes.
    #[error("record says {tot_len} bytes, has {len}")]
    Length {
        /// `xl_tot_len`.
        tot_len: u32,
        /// Bytes given.
        len: usize,
    },
    /// The lengths in the headers do not add up to the payload.
    #[error("headers announce {announced} bytes of payload, {available} there")]
    Payload {
        /// Sum of the lengths.
        announced: u64,
        /// What follows the headers.
        available: usize,
    },
    /// No meaning is known for this id.
    #[error("invalid block id {id}")]
    BlockId {
        /// The id.
        id: u8,
    },
    /// Ids must ascend.
    #[error("block id {id} after {previous}")]
    BlockOrder {
        /// The id.
        id: u8,
        /// The one before.
        previous: u8,
    },
    /// A fork that does not exist.
    #[error("block {id}: invalid fork number {fork}")]
    Fork {
        /// Block id.
        id: u8,
        /// The number.
        fork: u8,
    },
    /// `BKPBLOCK_HAS_DATA` contradicts the data length.
    #[error("block {id}: data flag contradicts data length {len}")]
    DataFlag {
        /// Block id.
        id: u8,
        /// The length.
        len: u16,
    },
    /// `BKPBLOCK_SAME_REL` on the first block.
    #[error("block {id}: same relation as which?")]
    SameRel {
        /// Block id.
        id: u8,
    },
    /// Length, hole and flags of an image contradict each other.
    #[error(
        "block {id}: image of {len} bytes, hole at {hole_offset} of {hole_length} bytes, flags {info:02X}"
    )]
    Image {
        /// Block id.
        id: u8,
        /// `bimg_len`.
        len: u16,
        /// `hole_offset`.
        hole_offset: u16,
        /// `hole_length`.
        hole_length: u16,
        /// `bimg_info`.
        info: u8,
    },
}

/// A record taken apart. Reuse one value for many records: decoding then allocates nothing.
#[derive(Debug, Clone, Default)]
pub struct DecodedRecord {
    /// Where the record begins.
    pub start_lsn: Lsn,
    /// What pages that it changes are stamped with; see [`RawRecord::next_lsn`].
    pub next_lsn: Lsn,
    /// `xl_xid`; 0 when the record has no transaction.
    pub xid: TransactionId,
    /// `xl_prev`.
    pub prev_lsn: Lsn,
    /// `xl_info`.
    pub info: u8,
    /// `xl_rmid`.
    pub rmid: RmgrId,
    /// Replication origin, 0 for none.
    pub origin: u16,
    /// Top-level transaction, when the record gives it (`wal_level = logical`).
    pub toplevel_xid: Option<TransactionId>,
    blocks: Vec<BlockRef>,
    main_data: Span,
    bytes: Bytes,
}

impl DecodedRecord {
    /// Takes a record apart.
    pub fn decode(raw: &RawRecord) -> Result<DecodedRecord, RecordError> {
        let mut record = DecodedRecord::default();
        record.decode_into(raw)?;
        Ok(record)
    }

    /// Takes a record apart into this value. After an error the value is of no use until the next success.
    pub fn decode_into(&mut self, raw: &RawRecord) -> Result<(), RecordError> {
        self.blocks.clear();
        self.start_lsn = raw.start_lsn;
        self.next_lsn = raw.next_lsn;
        self.origin = 0;
        self.toplevel_xid = None;
        self.main_data = Span::default();
        self.bytes = raw.bytes.clone();

        let mut reader = Reader::new(&raw.bytes);
        let tot_len = reader.u32()?;
        if usize::try_from(tot_len) != Ok(raw.bytes.len()) {
            return Err(RecordError::Length { tot_len, len: raw.bytes.len() });
        }
        self.xid = reader.u32()?;
        self.prev_lsn = Lsn(reader.u64()?);
        self.info = reader.u8()?;
        self.rmid = reader.u8()?;
        reader.take(6)?;
        debug_assert_eq!(reader.offset(), SIZE_OF_XLOG_RECORD);
        self.decode_fragments(&mut reader)
    }

    fn decode_fragments(&mut self, reader: &mut Reader<'_>) -> Result<(), RecordError> {
        let mut announced = 0u64;
        let mut main_len = 0;
        let mut locator = None;
        while reader.rest().len() as u64 > announced {
            let id = reader.u8()?;
            match id {
                XLR_BLOCK_ID_DATA_SHORT | XLR_BLOCK_ID_DATA_LONG => {
                    main_len = match id {
                        XLR_BLOCK_ID_DATA_SHORT => u32::from(reader.u8()?),
                        _ => reader.u32()?,
                    };
                    announced += u64::from(main_len);
                    break;
                }
                XLR_BLOCK_ID_ORIGIN => self.origin = reader.u16()?,
                XLR_BLOCK_ID_TOPLEVEL_XID => self.toplevel_xid = Some(reader.u32()?),
                0..=XLR_MAX_BLOCK_ID => {
                    let previous = self.blocks.last().map(|block| block.id);
                    if let Some(previous) = previous.filter(|previous| *previous >= id) {
                        return Err(RecordError::BlockOrder { id, previous });
                    }
                    let block = block_header(id, &mut locator, reader)?;
                    announced += u64::from(block.data.len);
                    announced += block.image.map_or(0, |image| u64::from(image.span.len));
                    self.blocks.push(block);
                }
                _ => return Err(RecordError::BlockId { id }),
            }
        }
        if reader.rest().len() as u64 != announced {
            return Err(RecordError::Payload { announced, available: reader.rest().len() });
        }
        self.place_payload(reader.offset(), main_len);
        Ok(())
    }

    /// Gives every fragment its place; the lengths are known to add up to the record's end.
    fn place_payload(&mut self, payload_start: usize, main_len: u32) {
        let mut at = u32::try_from(payload_start).unwrap_or(u32::MAX);
        let mut place = |span: &mut Span| {
            span.start = at;
            at = at.saturating_add(span.len);
        };
        for block in &mut self.blocks {
            if let Some(image) = &mut block.image {
                place(&mut image.span);
            }
            place(&mut block.data);
        }
        self.main_data.len = main_len;
        place(&mut self.main_data);
    }

    /// The block references, ascending by id.
    pub fn blocks(&self) -> &[BlockRef] {
        &self.blocks
    }

    /// The block reference with this id.
    pub fn block(&self, id: u8) -> Option<&BlockRef> {
        self.blocks.iter().find(|block| block.id == id)
    }

    /// The main data.
    pub fn main_data(&self) -> &[u8] {
        self.slice(self.main_data)
    }

    /// A part of the main data that outlives this value, without copying; empty when out of range.
    pub fn main_data_from(&self, offset: usize) -> Bytes {
        let main = usize::try_from(self.main_data.start).unwrap_or(usize::MAX);
        let end = main.saturating_add(usize::try_from(self.main_data.len).unwrap_or(0));
        let start = main.saturating_add(offset).min(end);
        if end <= self.bytes.len() { self.bytes.slice(start..end) } else { Bytes::new() }
    }

    /// The data of a block.
    pub fn block_data(&self, block: &BlockRef) -> &[u8] {
        self.slice(block.data)
    }

    /// The bytes of an image as they stand in the record.
    pub fn image_bytes(&self, image: &ImageRef) -> &[u8] {
        self.slice(image.span)
    }

    /// The whole record as it stands in WAL.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    fn slice(&self, span: Span) -> &[u8] {
        let start = usize::try_from(span.start).unwrap_or(usize::MAX);
        let end = start.saturating_add(usize::try_from(span.len).unwrap_or(usize::MAX));
        self.bytes.get(start..end).unwrap_or_default()
    }
}

fn block_header(
    id: u8,
    locator: &mut Option<RelFileLocator>,
    reader: &mut Reader<'_>,
) -> Result<BlockRef, RecordError> {
    let flags = reader.u8()?;
    let fork = flags & BKPBLOCK_FORK_MASK;
    let fork = ForkNumber::from_number(u32::from(fork)).ok_or(RecordError::Fork { id, fork })?;
    let data_len = reader.u16()?;
    if (flags & BKPBLOCK_HAS_DATA != 0) != (data_len != 0) {
        return Err(RecordError::DataFlag { id, len: data_len });
    }
    let image = match flags & BKPBLOCK_HAS_IMAGE {
        0 => None,
        _ => Some(image_header(id, reader)?),
    };
    if flags & BKPBLOCK_SAME_REL == 0 {
        *locator = Some(RelFileLocator {
            spc_oid: reader.u32()?,
            db_oid: reader.u32()?,
            rel_number: reader.u32()?,
        });
    }
    let rel = locator.ok_or(RecordError::SameRel { id })?.fork(fork);
    let blkno = reader.u32()?;
    let data = Span { start: 0, len: u32::from(data_len) };
    Ok(BlockRef { id, rel, blkno, will_init: flags & BKPBLOCK_WILL_INIT != 0, image, data })
}

fn image_header(id: u8, reader: &mut Reader<'_>) -> Result<ImageRef, RecordError> {
    let len = reader.u16()?;
    let hole_offset = reader.u16()?;
    let info = reader.u8()?;
    let compressed = info & BKPIMAGE_COMPRESSED != 0;
    let has_hole = info & BKPIMAGE_HAS_HOLE != 0;
    let hole_length = match (compressed, has_hole) {
        (true, true) => reader.u16()?,
        (true, false) => 0,
        (false, _) => PAGE.wrapping_sub(len),
    };
    let wrong = RecordError::Image { id, len, hole_offset, hole_length, info };
    // The order of the tests is that of RestoreBlockImage.
    let compression = match info {
        _ if !compressed => ImageCompression::None,
        _ if info & BKPIMAGE_COMPRESS_PGLZ != 0 => ImageCompression::Pglz,
        _ if info & BKPIMAGE_COMPRESS_LZ4 != 0 => ImageCompression::Lz4,
        _ => ImageCompression::Zstd,
    };
    let holds = if has_hole {
        // A hole of the whole page is written by some for zero pages: nothing but zeros is left of it.
        let fits = u32::from(hole_offset) + u32::from(hole_length) <= u32::from(PAGE);
        fits && hole_length != 0 && len < PAGE && (hole_offset != 0 || hole_length == PAGE)
    } else {
        hole_offset == 0 && hole_length == 0 && (if compressed { len < PAGE } else { len == PAGE })
    };
    if !holds {
        return Err(wrong);
    }
    let span = Span { start: 0, len: u32::from(len) };
    Ok(ImageRef { hole_offset, hole_length, apply: info & BKPIMAGE_APPLY != 0, compression, span })
}
