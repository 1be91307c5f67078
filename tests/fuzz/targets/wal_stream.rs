//! A WAL stream in pieces: page headers, records over pages, checksums. The first byte chooses the pieces' size,
//! and however the bytes are cut, the same records must come out.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pg_types::Lsn;
use wal_decoder::WalStream;

fn records(data: &[u8], piece: usize) -> (Vec<Bytes>, bool) {
    let mut stream = WalStream::new(Lsn(0x100_0028)).without_prev_check();
    let mut all = Vec::new();
    for piece in data.chunks(piece) {
        stream.feed(Bytes::copy_from_slice(piece));
        loop {
            match stream.poll() {
                Ok(Some(record)) => all.push(record.bytes),
                Ok(None) => break,
                Err(_) => return (all, false),
            }
        }
    }
    (all, true)
}

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let whole = records(rest, usize::MAX);
    assert_eq!(records(rest, usize::from(*first).max(1)), whole);
});
