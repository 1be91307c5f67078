//! What a client sends to a Postgres-protocol port: the startup packet and its options, frames in pieces, messages,
//! the commands of a safekeeper, and what standbys and page servers report inside a COPY stream.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use pg_wire::pq_proto::{FeMessage, FeStartupPacket, Frame, take_frame};
use pg_wire::replication::StandbyMessage;
use safekeeper::command::Command;

/// A body limit that inputs can reach.
const BODY_MAX: usize = 16_384;

/// The frames of `data` that arrives `piece` bytes at a time, and whether it ended in an error.
fn frames(data: &[u8], piece: usize) -> (Vec<Frame>, bool) {
    let mut buffer = BytesMut::new();
    let mut frames = Vec::new();
    for piece in data.chunks(piece) {
        buffer.extend_from_slice(piece);
        loop {
            match take_frame(&mut buffer, BODY_MAX) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, false),
            }
        }
    }
    (frames, true)
}

/// A report that parses says the same after it was written and parsed again.
fn standby(payload: Bytes) {
    let Ok(message) = StandbyMessage::parse(payload) else { return };
    let mut again = BytesMut::new();
    message.write(&mut again);
    assert_eq!(StandbyMessage::parse(again.freeze()).as_ref(), Ok(&message));
}

/// A command is written in capitals and with words of its own, so these are given to the fuzzer.
fn commands(text: &str) {
    let _ = text.parse::<Command>();
    for name in ["START_WAL_PUSH", "START_REPLICATION PHYSICAL", "IDENTIFY_SYSTEM"] {
        let _ = format!("{name} {text}").parse::<Command>();
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let mut startup = BytesMut::from(rest);
    if let Ok(Some(FeStartupPacket::StartupMessage { params, .. })) =
        FeStartupPacket::parse(&mut startup)
    {
        for (name, _) in params.iter() {
            let _ = params.option(name);
        }
        let _ = params.option("tenant_id");
    }
    let whole = frames(rest, usize::MAX);
    assert_eq!(frames(rest, usize::from(*first).max(1)), whole);
    for frame in whole.0 {
        assert!(frame.body.len() <= BODY_MAX);
        match FeMessage::parse(frame) {
            Ok(FeMessage::CopyData(payload)) => standby(payload),
            Ok(FeMessage::Query(text)) => commands(text.as_str()),
            _ => {}
        }
    }
    // Without a frame around them they are found sooner.
    standby(Bytes::copy_from_slice(rest));
    if let Ok(text) = std::str::from_utf8(rest) {
        commands(text);
    }
});
