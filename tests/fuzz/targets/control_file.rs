//! A safekeeper's control file: bytes as they are, and as a body behind a right header and before a right checksum.
//! What decodes is the same after it was encoded and decoded again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use safekeeper::control_file::ControlFile;

fn check(bytes: &[u8]) {
    let Ok(file) = ControlFile::decode(bytes) else { return };
    let _ = file.removal_horizon();
    let again = file.encode().expect("what was read can be written");
    assert_eq!(ControlFile::decode(&again).expect("what was written can be read"), file);
}

fuzz_target!(|data: &[u8]| {
    check(data);
    let mut framed = Vec::from(*b"CKSN");
    // Every version that is read, and one that is not.
    let Some((version, body)) = data.split_first() else { return };
    framed.extend_from_slice(&u32::from(version % 4).to_le_bytes());
    framed.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    framed.extend_from_slice(body);
    let crc = crc32c::crc32c(&framed);
    framed.extend_from_slice(&crc.to_le_bytes());
    check(&framed);
});
