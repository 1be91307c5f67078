//! What the server writes is read back by `postgres-protocol`, an independent implementation.

use super::*;
use postgres_protocol::message::backend::Message;
use proptest::prelude::*;

fn written(message: BeMessage<'_>) -> BytesMut {
    let mut buf = BytesMut::new();
    message.write(&mut buf).unwrap();
    buf
}

#[test]
fn golden_bytes() {
    assert_eq!(&written(BeMessage::AuthenticationOk)[..], b"R\0\0\0\x08\0\0\0\0");
    assert_eq!(&written(BeMessage::ReadyForQuery)[..], b"Z\0\0\0\x05I");
    assert_eq!(&written(BeMessage::EncryptionRefused)[..], b"N");
    assert_eq!(&written(BeMessage::CopyBothResponse)[..], b"W\0\0\0\x07\0\0\0");
    assert_eq!(
        &written(BeMessage::KeepAlive {
            wal_end: Lsn(0x0102),
            timestamp: 3,
            reply_requested: true
        })[..],
        b"d\0\0\0\x16k\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\0\x03\x01"
    );
}

#[test]
fn refused_message_leaves_the_buffer_alone() {
    let mut buf = BytesMut::from(&b"before"[..]);
    let message = BeMessage::ParameterStatus { name: "ok", value: "not\0ok" };
    let error = message.write(&mut buf).unwrap_err();
    assert_eq!(
        error,
        ProtocolError::Encode { what: "parameter value", reason: "it contains a NUL" }
    );
    assert_eq!(&buf[..], b"before");
}

#[test]
fn error_fields() {
    let buf = written(BeMessage::ErrorResponse {
        severity: "ERROR",
        code: SqlState::UNDEFINED_OBJECT,
        message: "a\0b",
    });
    // The NUL of the text would end the field early: it is replaced.
    assert_eq!(&buf[..], b"E\0\0\0\x1FSERROR\0VERROR\0C42704\0Ma?b\0\0");
}

proptest! {
    #[test]
    fn copy_data_round_trips(data: Vec<u8>) {
        let mut buf = written(BeMessage::CopyData(&data));
        let Some(Message::CopyData(body)) = Message::parse(&mut buf).unwrap() else {
            panic!("no copy data");
        };
        prop_assert_eq!(body.data(), &data[..]);
        prop_assert!(buf.is_empty());
    }
}
