//! What a server sends to our client: messages of every kind, and the WAL inside a replication stream.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use pg_wire::BeMessage;
use pg_wire::pq_proto::{BackendMessage, Frame, take_frame};
use pg_wire::replication::{PageserverFeedback, WalSenderMessage};

/// WAL and keepalives that parse say the same after they were written and parsed again.
fn wal_sender(payload: Bytes) {
    let Ok(message) = WalSenderMessage::parse(payload) else { return };
    let written = match &message {
        WalSenderMessage::XLogData { wal_start, wal_end, timestamp, data } => {
            let (wal_start, wal_end, timestamp) = (*wal_start, *wal_end, *timestamp);
            BeMessage::XLogData { wal_start, wal_end, timestamp, data }
        }
        WalSenderMessage::KeepAlive { wal_end, timestamp, reply_requested } => {
            let (wal_end, timestamp) = (*wal_end, *timestamp);
            BeMessage::KeepAlive { wal_end, timestamp, reply_requested: *reply_requested }
        }
    };
    let mut buffer = BytesMut::new();
    written.write(&mut buffer).expect("a message that was received can be sent");
    let frame = take_frame(&mut buffer, usize::MAX).expect("what we write is a frame");
    let again = BackendMessage::parse(frame.expect("a whole one"));
    let Ok(BackendMessage::CopyData(payload)) = again else { panic!("no CopyData: {again:?}") };
    assert_eq!(WalSenderMessage::parse(payload), Ok(message));
}

fn parse(frame: Frame) {
    match BackendMessage::parse(frame) {
        Ok(BackendMessage::CopyData(payload)) => wal_sender(payload),
        Ok(BackendMessage::DataRow(row)) => {
            for index in 0..=row.len() {
                let _ = row.text(index);
            }
        }
        Ok(BackendMessage::ErrorResponse(error) | BackendMessage::NoticeResponse(error)) => {
            let _ = error.to_string();
        }
        _ => {}
    }
}

fuzz_target!(|data: &[u8]| {
    let mut buffer = BytesMut::from(data);
    while let Ok(Some(frame)) = take_frame(&mut buffer, data.len()) {
        parse(frame);
    }
    // Without a frame's length in front the messages themselves are found sooner.
    if let Some((&tag, body)) = data.split_first() {
        parse(Frame { tag, body: Bytes::copy_from_slice(body) });
    }
    let payload = Bytes::copy_from_slice(data);
    wal_sender(payload.clone());
    // Inside an append response, without a standby message around it.
    if let Ok(feedback) = PageserverFeedback::parse(payload) {
        let mut again = BytesMut::new();
        feedback.write(&mut again);
        assert_eq!(PageserverFeedback::parse(again.freeze()), Ok(feedback));
    }
});
