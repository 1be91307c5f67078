use super::*;
use bytes::Bytes;

fn pair() -> (Framed<tokio::io::DuplexStream>, Framed<tokio::io::DuplexStream>) {
    let (a, b) = tokio::io::duplex(64);
    (Framed::new(a), Framed::new(b))
}

#[tokio::test]
async fn full_duplex_with_split_halves() {
    // L263: one task writes while another reads, through a pipe much smaller than the data.
    let (mut server, mut client) = pair();
    server.reader.set_max_message(MAX_MESSAGE);
    client.reader.set_max_message(MAX_MESSAGE);
    let payload = vec![7u8; 100_000];
    let mut writer = server.writer;
    let sent = payload.clone();
    let write = tokio::spawn(async move {
        writer.write_message_noflush(&BeMessage::CopyData(&sent)).unwrap();
        writer.flush().await.unwrap();
        writer
    });
    client.writer.write_message_noflush(&BeMessage::CopyData(&payload)).unwrap();
    let (flushed, at_server, at_client) =
        tokio::join!(client.writer.flush(), server.reader.read_frame(), client.reader.read_frame());
    flushed.unwrap();
    assert_eq!(at_server.unwrap().unwrap().body, Bytes::from(payload.clone()));
    assert_eq!(at_client.unwrap().unwrap().body, Bytes::from(payload));
    drop(write.await.unwrap());
}

#[tokio::test]
async fn end_of_stream_inside_a_message_is_an_error() {
    let (mut server, client) = pair();
    let Framed { reader: _reader, mut writer } = client;
    writer.buffer().extend_from_slice(b"d\0\0\0\x09abc");
    writer.shutdown().await.unwrap();
    let error = server.reader.read_frame().await.unwrap_err();
    let ConnectionError::Io(error) = error else { panic!("{error}") };
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn io_and_protocol_errors_are_told_apart() {
    // L260.
    let (mut server, mut client) = pair();
    client.writer.buffer().extend_from_slice(b"Q\0\0\0\x00");
    client.writer.flush().await.unwrap();
    let error = server.reader.read_frame().await.unwrap_err();
    assert!(matches!(error, ConnectionError::Protocol(ProtocolError::InvalidLength { .. })));
    assert!(!error.is_expected());
}

#[tokio::test(start_paused = true)]
async fn remade_read_futures_do_not_push_the_deadline_away() {
    let (mut server, _client) = pair();
    server.reader.set_timeout(Some(Duration::from_secs(10)));
    let started = Instant::now();
    let mut ticks = 0;
    let error = loop {
        tokio::select! {
            read = server.reader.read_frame() => break read.unwrap_err(),
            () = tokio::time::sleep(Duration::from_secs(1)) => ticks += 1,
        }
    };
    assert_eq!(error.to_string(), "timed out");
    assert!(error.is_expected());
    assert!((9..=10).contains(&ticks), "{ticks}");
    assert_eq!(started.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_ends_a_flush() {
    let (mut server, _client) = pair();
    server.writer.set_timeout(Some(Duration::from_secs(5)));
    let error = server.write_message(&BeMessage::CopyData(&[0; 1000])).await.unwrap_err();
    assert_eq!(error.to_string(), "timed out");
}
