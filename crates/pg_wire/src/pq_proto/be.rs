//! Messages from the server, as it writes them.

use bytes::{BufMut, BytesMut};
use pg_types::Lsn;

use super::ProtocolError;

/// Five-character SQLSTATE codes (`errcodes.txt`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SqlState(pub &'static str);

impl SqlState {
    /// `successful_completion`
    pub const SUCCESSFUL_COMPLETION: SqlState = SqlState("00000");
    /// `connection_failure`: try again, perhaps elsewhere.
    pub const CONNECTION_FAILURE: SqlState = SqlState("08006");
    /// `protocol_violation`
    pub const PROTOCOL_VIOLATION: SqlState = SqlState("08P01");
    /// `feature_not_supported`
    pub const FEATURE_NOT_SUPPORTED: SqlState = SqlState("0A000");
    /// `invalid_authorization_specification`
    pub const INVALID_AUTHORIZATION: SqlState = SqlState("28000");
    /// `invalid_password`
    pub const INVALID_PASSWORD: SqlState = SqlState("28P01");
    /// `syntax_error`
    pub const SYNTAX_ERROR: SqlState = SqlState("42601");
    /// `undefined_object`
    pub const UNDEFINED_OBJECT: SqlState = SqlState("42704");
    /// `invalid_parameter_value`
    pub const INVALID_PARAMETER_VALUE: SqlState = SqlState("22023");
    /// `object_not_in_prerequisite_state`
    pub const OBJECT_NOT_IN_PREREQUISITE_STATE: SqlState = SqlState("55000");
    /// `query_canceled`
    pub const QUERY_CANCELED: SqlState = SqlState("57014");
    /// `admin_shutdown`
    pub const ADMIN_SHUTDOWN: SqlState = SqlState("57P01");
    /// `idle_session_timeout`
    pub const IDLE_TIMEOUT: SqlState = SqlState("57P05");
    /// `io_error`
    pub const IO_ERROR: SqlState = SqlState("58030");
    /// `undefined_file`
    pub const UNDEFINED_FILE: SqlState = SqlState("58P01");
    /// `data_corrupted`
    pub const DATA_CORRUPTED: SqlState = SqlState("XX001");
    /// `internal_error`
    pub const INTERNAL_ERROR: SqlState = SqlState("XX000");
}

/// Types of result columns (`pg_type.dat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TypeOid {
    /// `int4`
    Int4,
    /// `int8`
    Int8,
    /// `text`
    Text,
    /// `bytea`
    Bytea,
}

impl TypeOid {
    fn oid_and_len(self) -> (u32, i16) {
        match self {
            TypeOid::Int4 => (23, 4),
            TypeOid::Int8 => (20, 8),
            TypeOid::Text => (25, -1),
            TypeOid::Bytea => (17, -1),
        }
    }
}

/// One column of a result. Values are always sent in text format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowDescriptor<'a> {
    /// Column name.
    pub name: &'a str,
    /// Its type.
    pub type_oid: TypeOid,
}

/// A message to the client.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum BeMessage<'a> {
    /// Client is let in.
    AuthenticationOk,
    /// Client is asked for its password in clear text.
    AuthenticationCleartextPassword,
    /// Answer `N` to an SSL or GSS encryption request: no length field around it.
    EncryptionRefused,
    /// A setting that clients want to know.
    ParameterStatus {
        /// Its name.
        name: &'a str,
        /// Its value.
        value: &'a str,
    },
    /// The protocol's minor version is newer than ours, or the client sent `_pq_.` options.
    NegotiateProtocolVersion {
        /// Newest minor version that is spoken here.
        newest_minor: u32,
    },
    /// Waiting for a command. There are no transactions here: always idle.
    ReadyForQuery,
    /// The query string was empty.
    EmptyQueryResponse,
    /// Columns of the rows that follow.
    RowDescription(&'a [RowDescriptor<'a>]),
    /// A row, in text format; `None` is NULL.
    DataRow(&'a [Option<&'a [u8]>]),
    /// The command is done; its tag.
    CommandComplete(&'a str),
    /// Server sends COPY data.
    CopyOutResponse,
    /// Client sends COPY data.
    CopyInResponse,
    /// Both send COPY data.
    CopyBothResponse,
    /// A piece of a COPY stream.
    CopyData(&'a [u8]),
    /// WAL inside CopyData (`walsender.c`, `XLogSendPhysical`).
    XLogData {
        /// Position of the first byte.
        wal_start: Lsn,
        /// End of WAL that could be sent now.
        wal_end: Lsn,
        /// Microseconds since 2000-01-01.
        timestamp: i64,
        /// WAL bytes.
        data: &'a [u8],
    },
    /// Keepalive inside CopyData (`walsender.c`, `WalSndKeepalive`).
    KeepAlive {
        /// End of WAL that could be sent now.
        wal_end: Lsn,
        /// Microseconds since 2000-01-01.
        timestamp: i64,
        /// Whether an answer is wanted at once.
        reply_requested: bool,
    },
    /// End of a COPY stream.
    CopyDone,
    /// The command, or the session, failed.
    ErrorResponse {
        /// `ERROR` ends the command, `FATAL` the session.
        severity: &'a str,
        /// Machine-readable reason.
        code: SqlState,
        /// Human-readable reason.
        message: &'a str,
    },
    /// Something to know.
    NoticeResponse(&'a str),
}

/// Writes `tag`, a length, and what `fill` writes.
fn framed(
    buf: &mut BytesMut,
    tag: u8,
    fill: impl FnOnce(&mut BytesMut) -> Result<(), ProtocolError>,
) -> Result<(), ProtocolError> {
    let start = buf.len();
    buf.put_u8(tag);
    let length_at = buf.len();
    buf.put_u32(0);
    let filled = fill(buf).and_then(|()| {
        i32::try_from(buf.len() - length_at).map_err(|_| ProtocolError::Encode {
            what: "message",
            reason: "it is longer than 2 GiB",
        })
    });
    let length = filled.inspect_err(|_| buf.truncate(start))?;
    if let Some(field) = buf.get_mut(length_at..length_at + 4) {
        field.copy_from_slice(&length.to_be_bytes());
    }
    Ok(())
}

/// [`framed`] for bodies that can always be encoded.
fn plain(
    buf: &mut BytesMut,
    tag: u8,
    fill: impl FnOnce(&mut BytesMut),
) -> Result<(), ProtocolError> {
    framed(buf, tag, |buf| {
        fill(buf);
        Ok(())
    })
}

fn put_cstr(buf: &mut BytesMut, what: &'static str, text: &str) -> Result<(), ProtocolError> {
    if text.contains('\0') {
        return Err(ProtocolError::Encode { what, reason: "it contains a NUL" });
    }
    buf.put_slice(text.as_bytes());
    buf.put_u8(0);
    Ok(())
}

fn put_count(buf: &mut BytesMut, what: &'static str, count: usize) -> Result<(), ProtocolError> {
    let count = i16::try_from(count)
        .map_err(|_| ProtocolError::Encode { what, reason: "there are more than 32767" })?;
    buf.put_i16(count);
    Ok(())
}

/// Formats of COPY streams: text, no columns; storage streams are opaque to the protocol.
fn put_copy_response(buf: &mut BytesMut, tag: u8) -> Result<(), ProtocolError> {
    plain(buf, tag, |buf| {
        buf.put_u8(0);
        buf.put_i16(0);
    })
}

fn put_row_description(
    buf: &mut BytesMut,
    columns: &[RowDescriptor<'_>],
) -> Result<(), ProtocolError> {
    put_count(buf, "row description", columns.len())?;
    for column in columns {
        let (oid, len) = column.type_oid.oid_and_len();
        put_cstr(buf, "column name", column.name)?;
        buf.put_u32(0); // table
        buf.put_i16(0); // attribute number
        buf.put_u32(oid);
        buf.put_i16(len);
        buf.put_i32(-1); // typmod
        buf.put_i16(0); // text format
    }
    Ok(())
}

fn put_data_row(buf: &mut BytesMut, values: &[Option<&[u8]>]) -> Result<(), ProtocolError> {
    put_count(buf, "data row", values.len())?;
    for value in values {
        match value {
            None => buf.put_i32(-1),
            Some(value) => {
                let len = i32::try_from(value.len()).map_err(|_| ProtocolError::Encode {
                    what: "column value",
                    reason: "it is longer than 2 GiB",
                })?;
                buf.put_i32(len);
                buf.put_slice(value);
            }
        }
    }
    Ok(())
}

/// Error texts may hold anything, also bytes of a hostile peer: a NUL is replaced rather than refused.
fn put_error_field(buf: &mut BytesMut, field: u8, text: &str) {
    buf.put_u8(field);
    buf.extend(text.bytes().map(|byte| if byte == 0 { b'?' } else { byte }));
    buf.put_u8(0);
}

fn put_report(buf: &mut BytesMut, severity: &str, code: SqlState, message: &str) {
    put_error_field(buf, b'S', severity);
    put_error_field(buf, b'V', severity);
    put_error_field(buf, b'C', code.0);
    put_error_field(buf, b'M', message);
    buf.put_u8(0);
}

impl BeMessage<'_> {
    /// Appends the message to `buf`; `buf` is unchanged on error.
    pub fn write(&self, buf: &mut BytesMut) -> Result<(), ProtocolError> {
        match *self {
            BeMessage::AuthenticationOk => plain(buf, b'R', |buf| buf.put_u32(0)),
            BeMessage::AuthenticationCleartextPassword => plain(buf, b'R', |buf| buf.put_u32(3)),
            BeMessage::EncryptionRefused => {
                buf.put_u8(b'N');
                Ok(())
            }
            BeMessage::ParameterStatus { name, value } => framed(buf, b'S', |buf| {
                put_cstr(buf, "parameter name", name)?;
                put_cstr(buf, "parameter value", value)
            }),
            BeMessage::NegotiateProtocolVersion { newest_minor } => plain(buf, b'v', |buf| {
                buf.put_u32(newest_minor);
                buf.put_u32(0);
            }),
            BeMessage::ReadyForQuery => plain(buf, b'Z', |buf| buf.put_u8(b'I')),
            BeMessage::EmptyQueryResponse => plain(buf, b'I', |_| ()),
            BeMessage::RowDescription(columns) => {
                framed(buf, b'T', |buf| put_row_description(buf, columns))
            }
            BeMessage::DataRow(values) => framed(buf, b'D', |buf| put_data_row(buf, values)),
            BeMessage::CommandComplete(tag) => {
                framed(buf, b'C', |buf| put_cstr(buf, "command tag", tag))
            }
            BeMessage::CopyOutResponse => put_copy_response(buf, b'H'),
            BeMessage::CopyInResponse => put_copy_response(buf, b'G'),
            BeMessage::CopyBothResponse => put_copy_response(buf, b'W'),
            BeMessage::CopyData(_) | BeMessage::XLogData { .. } | BeMessage::KeepAlive { .. } => {
                plain(buf, b'd', |buf| self.put_copy_payload(buf))
            }
            BeMessage::CopyDone => plain(buf, b'c', |_| ()),
            BeMessage::ErrorResponse { severity, code, message } => {
                plain(buf, b'E', |buf| put_report(buf, severity, code, message))
            }
            BeMessage::NoticeResponse(message) => plain(buf, b'N', |buf| {
                put_report(buf, "NOTICE", SqlState::SUCCESSFUL_COMPLETION, message);
            }),
        }
    }

    /// What travels inside CopyData; nothing for other messages.
    fn put_copy_payload(&self, buf: &mut BytesMut) {
        match *self {
            BeMessage::CopyData(data) => buf.put_slice(data),
            BeMessage::XLogData { wal_start, wal_end, timestamp, data } => {
                buf.put_u8(b'w');
                buf.put_u64(wal_start.0);
                buf.put_u64(wal_end.0);
                buf.put_i64(timestamp);
                buf.put_slice(data);
            }
            BeMessage::KeepAlive { wal_end, timestamp, reply_requested } => {
                buf.put_u8(b'k');
                buf.put_u64(wal_end.0);
                buf.put_i64(timestamp);
                buf.put_u8(u8::from(reply_requested));
            }
            _ => {}
        }
    }
}

/// Appends a CopyData message whose payload `fill` writes straight into the output buffer.
pub fn write_copy_data(
    buf: &mut BytesMut,
    fill: impl FnOnce(&mut BytesMut) -> Result<(), ProtocolError>,
) -> Result<(), ProtocolError> {
    framed(buf, b'd', fill)
}

#[cfg(test)]
mod tests;
