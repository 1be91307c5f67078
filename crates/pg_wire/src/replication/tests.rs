use super::*;
use crate::pq_proto::{BeMessage, take_frame};
use proptest::prelude::*;

fn lsn() -> impl Strategy<Value = Lsn> {
    any::<u64>().prop_map(Lsn)
}

prop_compose! {
    fn feedback()(
        current_timeline_size: u64, last_received_lsn in lsn(), disk_consistent_lsn in lsn(),
        remote_consistent_lsn in lsn(), replytime: i64, shard_number: u32, corruption_detected: bool,
    ) -> PageserverFeedback {
        PageserverFeedback {
            current_timeline_size, last_received_lsn, disk_consistent_lsn, remote_consistent_lsn,
            replytime, shard_number, corruption_detected,
        }
    }
}

prop_compose! {
    fn status()(
        write_lsn in lsn(), flush_lsn in lsn(), apply_lsn in lsn(), timestamp: i64, reply_requested: bool,
    ) -> StandbyStatusUpdate {
        StandbyStatusUpdate { write_lsn, flush_lsn, apply_lsn, timestamp, reply_requested }
    }
}

prop_compose! {
    fn hot_standby()(
        timestamp: i64, xmin: u32, xmin_epoch: u32, catalog_xmin: u32, catalog_xmin_epoch: u32,
    ) -> HotStandbyFeedback {
        HotStandbyFeedback { timestamp, xmin, xmin_epoch, catalog_xmin, catalog_xmin_epoch }
    }
}

fn standby_message() -> impl Strategy<Value = StandbyMessage> {
    prop_oneof![
        status().prop_map(StandbyMessage::Status),
        hot_standby().prop_map(StandbyMessage::HotStandbyFeedback),
        feedback().prop_map(StandbyMessage::PageserverFeedback),
    ]
}

#[test]
fn feedback_golden_bytes() {
    let mut buf = BytesMut::new();
    let feedback =
        PageserverFeedback { last_received_lsn: Lsn(7), shard_number: 1, ..Default::default() };
    feedback.write(&mut buf);
    let expected: &[&[u8]] = &[
        b"\x06",
        b"current_timeline_size\0\0\0\0\x08\0\0\0\0\0\0\0\0",
        b"ps_writelsn\0\0\0\0\x08\0\0\0\0\0\0\0\x07",
        b"ps_flushlsn\0\0\0\0\x08\0\0\0\0\0\0\0\0",
        b"ps_applylsn\0\0\0\0\x08\0\0\0\0\0\0\0\0",
        b"ps_replytime\0\0\0\0\x08\0\0\0\0\0\0\0\0",
        b"shard_number\0\0\0\0\x04\0\0\0\x01",
    ];
    assert_eq!(&buf[..], expected.concat());
}

#[test]
fn unknown_feedback_keys_are_skipped_and_long_names_known() {
    let body = b"\x02from_the_future\0\0\0\0\x03abclast_received_lsn\0\0\0\0\x08\0\0\0\0\0\0\0\x09";
    let feedback = PageserverFeedback::parse(Bytes::from_static(body)).unwrap();
    assert_eq!(feedback, PageserverFeedback { last_received_lsn: Lsn(9), ..Default::default() });
}

#[test]
fn feedback_with_a_wrong_length_is_refused() {
    // A value shorter than its type, one longer, and one that claims more than the message holds.
    for (body, what) in [
        (&b"\x01ps_writelsn\0\0\0\0\x04\0\0\0\0"[..], "ps_writelsn"),
        (b"\x01ps_writelsn\0\0\0\0\x09\0\0\0\0\0\0\0\0\0", "ps_writelsn"),
        (b"\x01ps_writelsn\0\xFF\xFF\xFF\xFF\0", "feedback value"),
    ] {
        let error = PageserverFeedback::parse(Bytes::from_static(body)).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn standby_messages_as_postgres_reads_them() {
    // ProcessStandbyReplyMessage: three LSNs, a timestamp, one byte: 34 bytes with the tag.
    let mut buf = BytesMut::new();
    StandbyMessage::Status(StandbyStatusUpdate { write_lsn: Lsn(1), ..Default::default() })
        .write(&mut buf);
    assert_eq!(buf.len(), 34);
    assert_eq!(&buf[..9], b"r\0\0\0\0\0\0\0\x01");
    // ProcessStandbyHSFeedbackMessage: timestamp and four 32-bit numbers, xid before epoch.
    let mut buf = BytesMut::new();
    let feedback = HotStandbyFeedback { xmin: 5, xmin_epoch: 6, ..Default::default() };
    StandbyMessage::HotStandbyFeedback(feedback).write(&mut buf);
    assert_eq!(&buf[..], b"h\0\0\0\0\0\0\0\0\0\0\0\x05\0\0\0\x06\0\0\0\0\0\0\0\0");
}

proptest! {
    #[test]
    fn standby_messages_round_trip(message in standby_message()) {
        let mut buf = BytesMut::new();
        message.write(&mut buf);
        prop_assert_eq!(StandbyMessage::parse(buf.freeze()), Ok(message));
    }

    #[test]
    fn walsender_messages_round_trip(start: u64, end: u64, ts: i64, flag: bool, data: Vec<u8>) {
        let (wal_start, wal_end, timestamp) = (Lsn(start), Lsn(end), ts);
        let mut buf = BytesMut::new();
        BeMessage::XLogData { wal_start, wal_end, timestamp, data: &data }.write(&mut buf).unwrap();
        BeMessage::KeepAlive { wal_end, timestamp, reply_requested: flag }.write(&mut buf).unwrap();
        let mut next = || WalSenderMessage::parse(take_frame(&mut buf, 1 << 20).unwrap().unwrap().body);
        let data = Bytes::from(data);
        prop_assert_eq!(next(), Ok(WalSenderMessage::XLogData { wal_start, wal_end, timestamp, data }));
        let keepalive = WalSenderMessage::KeepAlive { wal_end, timestamp, reply_requested: flag };
        prop_assert_eq!(next(), Ok(keepalive));
    }

    #[test]
    fn parsing_never_panics(bytes: Vec<u8>, tag in prop::sample::select(&b"wkrhz"[..])) {
        let tagged: Bytes = [&[tag][..], &bytes].concat().into();
        drop(WalSenderMessage::parse(tagged.clone()));
        drop(StandbyMessage::parse(tagged));
        drop(PageserverFeedback::parse(bytes.into()));
    }
}
