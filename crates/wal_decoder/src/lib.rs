#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod effects;
pub mod image;
pub mod page_header;
pub mod pglz;
pub mod reader;
pub mod record;
pub mod rmgr;
pub mod stream;

pub use checkpoint::CheckPoint;
pub use effects::Effect;
pub use record::{BlockRef, DecodedRecord, ImageRef, RecordError};
pub use rmgr::{InterpretError, interpret};
pub use stream::{RawRecord, StreamError, WalStream};
