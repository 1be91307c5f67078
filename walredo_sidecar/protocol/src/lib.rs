//! Messages between the page server and its redo process, for both sides. No I/O happens here.
//!
//! ```text
//! one request    B tag   [P tag page]   (A lsn record) ...   G tag
//! one message    u8 type, u32 length (big-endian; counts itself and the payload, not the type), payload
//!
//!   B 0x42  length 21        tag                    begin: forget the last request
//!   P 0x50  length 21+8192   tag, page              the page before the first record
//!   A 0x41  length 12+n      u64 end LSN, record    apply one WAL record of n bytes
//!   G 0x47  length 21        tag                    answer with the page: 8192 bytes, nothing else
//!
//! tag            u8 fork, u32 tablespace, u32 database, u32 relation, u32 block (all big-endian): 17 bytes
//! ```
#![forbid(unsafe_code)]

mod admission;
mod input;
mod kept;
mod message;
mod tag;

pub use admission::{RecordRefusal, check_record};
pub use input::Input;
pub use kept::KeptRequest;
pub use message::{
    HEADER_SIZE, MAX_RECORD_SIZE, Message, MessageError, frame_size, parse, put_apply, put_begin,
    put_get, put_push,
};
pub use tag::{BUFFER_TAG_SIZE, BufferTag, UnknownFork};
