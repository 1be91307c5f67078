//! `RM_LOGICALMSG_ID`: messages in WAL (`replication/message.h`). Those with the prefix `neon-file:<path>` carry a
//! file of the compute's data directory (L157); all others are for logical decoding alone.

use crate::effects::Effect;
use crate::reader::Reader;
use crate::record::DecodedRecord;

use super::{Effects, InterpretErrorKind, rmgr_info};

const XLOG_LOGICAL_MESSAGE: u8 = 0x00;
/// Start of the prefix of a message that carries a file.
pub const AUX_FILE_PREFIX: &str = "neon-file:";
/// Offset of the prefix in the main data: database, flag with padding, two sizes.
const SIZE_OF_LOGICAL_MESSAGE: usize = 24;

pub(super) fn interpret(record: &DecodedRecord, effects: &mut Vec<Effect>) -> Effects {
    if rmgr_info(record) != XLOG_LOGICAL_MESSAGE {
        return Err(InterpretErrorKind::UnknownInfo);
    }
    let mut main = Reader::new(record.main_data());
    main.take(8)?;
    let prefix_size = usize::try_from(main.u64()?).unwrap_or(usize::MAX);
    let message_size = usize::try_from(main.u64()?).unwrap_or(usize::MAX);
    let prefix = main.take(prefix_size)?;
    main.take(message_size)?;
    if !prefix.starts_with(AUX_FILE_PREFIX.as_bytes()) {
        return Ok(());
    }
    let prefix = match prefix.split_last() {
        Some((0, text)) => std::str::from_utf8(text).ok(),
        _ => None,
    };
    let path = prefix
        .and_then(|text| text.strip_prefix(AUX_FILE_PREFIX))
        .filter(|path| is_relative(path))
        .ok_or(InterpretErrorKind::Text { field: "neon-file path" })?;
    let start = SIZE_OF_LOGICAL_MESSAGE.saturating_add(prefix_size);
    let content = record.main_data_from(start).slice(..message_size);
    effects.push(Effect::AuxFile { path: path.to_owned(), content });
    Ok(())
}

/// The path goes into a basebackup: it must stay below the data directory.
fn is_relative(path: &str) -> bool {
    !path.is_empty() && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}
