//! Messages from the server, as a client reads them.

use bytes::Bytes;

use super::{Frame, ProtocolError};
use crate::read::{Reader, Text};

/// A message from the server. Payloads are slices of the receive buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendMessage {
    /// How the server wants the client to prove who it is.
    Authentication(Authentication),
    /// A setting of the server.
    ParameterStatus {
        /// Its name.
        name: Text,
        /// Its value.
        value: Text,
    },
    /// Key for cancel requests.
    BackendKeyData {
        /// Process id.
        pid: u32,
        /// Secret.
        key: u32,
    },
    /// Waiting for a command; transaction status byte.
    ReadyForQuery(u8),
    /// Empty query string.
    EmptyQueryResponse,
    /// Columns of the rows that follow.
    RowDescription(Vec<Column>),
    /// A row.
    DataRow(DataRow),
    /// The command is done; its tag.
    CommandComplete(Text),
    /// The server will send COPY data.
    CopyOutResponse,
    /// The server wants COPY data.
    CopyInResponse,
    /// Both.
    CopyBothResponse,
    /// A piece of a COPY stream.
    CopyData(Bytes),
    /// End of a COPY stream.
    CopyDone,
    /// The command failed.
    ErrorResponse(ServerError),
    /// Something to know.
    NoticeResponse(ServerError),
    /// `NOTIFY`, or a protocol version negotiation: of no interest here.
    Ignored(u8),
}

/// Authentication requests (`protocol.sgml`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authentication {
    /// Let in.
    Ok,
    /// Password in clear text.
    CleartextPassword,
    /// MD5 of password, user and this salt.
    Md5Password([u8; 4]),
    /// SASL with one of these mechanisms.
    Sasl(Vec<Text>),
    /// Next SASL challenge.
    SaslContinue(Bytes),
    /// Last SASL message.
    SaslFinal(Bytes),
    /// A method that is not spoken here, by number.
    Unsupported(u32),
}

/// A result column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Name.
    pub name: Text,
    /// Type.
    pub type_oid: u32,
}

/// Values of one row, in the format the server chose (text, for simple queries).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataRow(Vec<Option<Bytes>>);

impl DataRow {
    /// Value of column `index`; `None` for NULL and for a column that is not there.
    pub fn get(&self, index: usize) -> Option<&Bytes> {
        self.0.get(index).and_then(Option::as_ref)
    }

    /// Value of column `index` as text.
    pub fn text(&self, index: usize) -> Option<&str> {
        self.get(index).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Number of columns.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no columns.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// An error or notice from the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerError {
    /// `ERROR`, `FATAL`, `PANIC`, or a notice level.
    pub severity: String,
    /// SQLSTATE.
    pub code: String,
    /// Primary text.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} (SQLSTATE {})", self.severity, self.message, self.code)?;
        if let Some(detail) = &self.detail {
            write!(f, "; {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; hint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}

fn parse_authentication(mut body: Reader) -> Result<Authentication, ProtocolError> {
    match body.u32("authentication kind")? {
        0 => Ok(Authentication::Ok),
        3 => Ok(Authentication::CleartextPassword),
        5 => {
            let salt = body.u32("MD5 salt")?.to_be_bytes();
            Ok(Authentication::Md5Password(salt))
        }
        10 => {
            let mut mechanisms = Vec::new();
            loop {
                let mechanism = body.cstr("SASL mechanism")?;
                if mechanism.as_str().is_empty() {
                    return Ok(Authentication::Sasl(mechanisms));
                }
                mechanisms.push(mechanism);
            }
        }
        11 => Ok(Authentication::SaslContinue(body.into_rest())),
        12 => Ok(Authentication::SaslFinal(body.into_rest())),
        other => Ok(Authentication::Unsupported(other)),
    }
}

fn parse_columns(mut body: Reader) -> Result<Vec<Column>, ProtocolError> {
    let count = body.u16("number of columns")?;
    let mut columns = Vec::new();
    for _ in 0..count {
        let name = body.cstr("column name")?;
        body.bytes(6, "column table and number")?;
        let type_oid = body.u32("column type")?;
        body.bytes(8, "column size, modifier and format")?;
        columns.push(Column { name, type_oid });
    }
    body.finish("RowDescription")?;
    Ok(columns)
}

fn parse_row(mut body: Reader) -> Result<DataRow, ProtocolError> {
    let count = body.u16("number of values")?;
    let mut values = Vec::new();
    for _ in 0..count {
        let len = body.i32("length of a value")?;
        values.push(match usize::try_from(len) {
            Ok(len) => Some(body.bytes(len, "value")?),
            Err(_) if len == -1 => None,
            Err(_) => {
                return Err(ProtocolError::InvalidValue {
                    what: "length of a value",
                    value: i64::from(len),
                });
            }
        });
    }
    body.finish("DataRow")?;
    Ok(DataRow(values))
}

/// Texts of error fields may be in any encoding: shown lossily rather than refused.
fn parse_report(body: Reader) -> Result<ServerError, ProtocolError> {
    let mut report = ServerError::default();
    let bytes = body.into_rest();
    let mut fields = bytes.split(|&byte| byte == 0);
    for field in fields.by_ref() {
        let Some((kind, text)) = field.split_first() else {
            // The empty field is the terminator.
            return Ok(report);
        };
        let text = String::from_utf8_lossy(text).into_owned();
        match kind {
            // 'V' is never translated, 'S' may be; 'S' comes first.
            b'S' | b'V' => report.severity = text,
            b'C' => report.code = text,
            b'M' => report.message = text,
            b'D' => report.detail = Some(text),
            b'H' => report.hint = Some(text),
            _ => {}
        }
    }
    Err(ProtocolError::Unterminated { what: "error fields" })
}

impl BackendMessage {
    /// Interprets a frame.
    pub fn parse(frame: Frame) -> Result<BackendMessage, ProtocolError> {
        let mut body = Reader::new(frame.body);
        match frame.tag {
            b'd' => Ok(BackendMessage::CopyData(body.into_rest())),
            b'R' => parse_authentication(body).map(BackendMessage::Authentication),
            b'S' => {
                let name = body.cstr("parameter name")?;
                let value = body.cstr("parameter value")?;
                body.finish("ParameterStatus")?;
                Ok(BackendMessage::ParameterStatus { name, value })
            }
            b'K' => {
                let pid = body.u32("backend process id")?;
                let key = body.u32("backend key")?;
                body.finish("BackendKeyData")?;
                Ok(BackendMessage::BackendKeyData { pid, key })
            }
            b'Z' => {
                let status = body.u8("transaction status")?;
                body.finish("ReadyForQuery")?;
                Ok(BackendMessage::ReadyForQuery(status))
            }
            b'I' => body.finish("EmptyQuery").map(|()| BackendMessage::EmptyQueryResponse),
            b'T' => parse_columns(body).map(BackendMessage::RowDescription),
            b'D' => parse_row(body).map(BackendMessage::DataRow),
            b'C' => {
                let tag = body.cstr("command tag")?;
                body.finish("CommandComplete")?;
                Ok(BackendMessage::CommandComplete(tag))
            }
            b'H' => Ok(BackendMessage::CopyOutResponse),
            b'G' => Ok(BackendMessage::CopyInResponse),
            b'W' => Ok(BackendMessage::CopyBothResponse),
            b'c' => body.finish("CopyDone").map(|()| BackendMessage::CopyDone),
            b'E' => parse_report(body).map(BackendMessage::ErrorResponse),
            b'N' => parse_report(body).map(BackendMessage::NoticeResponse),
            tag @ (b'A' | b'v') => Ok(BackendMessage::Ignored(tag)),
            tag => Err(ProtocolError::UnknownTag(tag)),
        }
    }

    /// Name for error texts.
    pub fn name(&self) -> &'static str {
        match self {
            BackendMessage::Authentication(_) => "Authentication",
            BackendMessage::ParameterStatus { .. } => "ParameterStatus",
            BackendMessage::BackendKeyData { .. } => "BackendKeyData",
            BackendMessage::ReadyForQuery(_) => "ReadyForQuery",
            BackendMessage::EmptyQueryResponse => "EmptyQueryResponse",
            BackendMessage::RowDescription(_) => "RowDescription",
            BackendMessage::DataRow(_) => "DataRow",
            BackendMessage::CommandComplete(_) => "CommandComplete",
            BackendMessage::CopyOutResponse => "CopyOutResponse",
            BackendMessage::CopyInResponse => "CopyInResponse",
            BackendMessage::CopyBothResponse => "CopyBothResponse",
            BackendMessage::CopyData(_) => "CopyData",
            BackendMessage::CopyDone => "CopyDone",
            BackendMessage::ErrorResponse(_) => "ErrorResponse",
            BackendMessage::NoticeResponse(_) => "NoticeResponse",
            BackendMessage::Ignored(_) => "NotificationResponse",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pq_proto::{BeMessage, RowDescriptor, SqlState, TypeOid, take_frame};
    use bytes::BytesMut;
    use proptest::prelude::*;

    fn round_trip(message: BeMessage<'_>) -> BackendMessage {
        let mut buf = BytesMut::new();
        message.write(&mut buf).unwrap();
        let parsed = BackendMessage::parse(take_frame(&mut buf, 1 << 20).unwrap().unwrap());
        assert!(buf.is_empty());
        parsed.unwrap()
    }

    #[test]
    fn rows() {
        let columns = [RowDescriptor { name: "xlogpos", type_oid: TypeOid::Text }];
        let BackendMessage::RowDescription(columns) =
            round_trip(BeMessage::RowDescription(&columns))
        else {
            panic!("no row description");
        };
        assert_eq!((columns[0].name.as_str(), columns[0].type_oid), ("xlogpos", 25));
        let BackendMessage::DataRow(row) =
            round_trip(BeMessage::DataRow(&[Some(b"0/1"), None, Some(b"")]))
        else {
            panic!("no row");
        };
        assert_eq!(
            (row.text(0), row.text(1), row.text(2), row.text(3)),
            (Some("0/1"), None, Some(""), None)
        );
    }

    #[test]
    fn errors() {
        let BackendMessage::ErrorResponse(error) = round_trip(BeMessage::ErrorResponse {
            severity: "FATAL",
            code: SqlState::ADMIN_SHUTDOWN,
            message: "going down",
        }) else {
            panic!("no error");
        };
        assert_eq!(error.to_string(), "FATAL: going down (SQLSTATE 57P01)");
        let unterminated = Frame { tag: b'E', body: Bytes::from_static(b"Mx") };
        assert_eq!(
            BackendMessage::parse(unterminated),
            Err(ProtocolError::Unterminated { what: "error fields" })
        );
    }

    proptest! {
        #[test]
        fn never_panics(tag: u8, body: Vec<u8>) {
            drop(BackendMessage::parse(Frame { tag, body: body.into() }));
        }
    }
}
