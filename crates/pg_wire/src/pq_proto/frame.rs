//! The frame around every message but the first: type byte, length, body.

use bytes::{Buf, Bytes, BytesMut};

use super::ProtocolError;

/// Type byte and length field.
const HEADER_LEN: usize = 5;

/// One whole message. `body` is a slice of the receive buffer: nothing is copied (L259).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Type byte.
    pub tag: u8,
    /// What follows the length field.
    pub body: Bytes,
}

/// Takes one message off the front of `buf`, or returns `None` when more bytes are needed; then room for
/// them is reserved.
///
/// `max_body` bounds the body *before* anything is reserved for it, so a hostile length costs nothing.
pub fn take_frame(buf: &mut BytesMut, max_body: usize) -> Result<Option<Frame>, ProtocolError> {
    let Some(&[tag, l0, l1, l2, l3]) = buf.first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes([l0, l1, l2, l3]);
    // The length field counts itself.
    let body_len = len.checked_sub(4).ok_or(ProtocolError::InvalidLength { tag, len })?;
    let body_len = match usize::try_from(body_len) {
        Ok(body_len) if body_len <= max_body => body_len,
        _ => return Err(ProtocolError::TooLong { tag, len: u64::from(len), max: max_body }),
    };
    let total = HEADER_LEN.saturating_add(body_len);
    if let Some(missing) = total.checked_sub(buf.len()).filter(|&missing| missing > 0) {
        buf.reserve(missing);
        return Ok(None);
    }
    let mut message = buf.split_to(total);
    message.advance(HEADER_LEN);
    Ok(Some(Frame { tag, body: message.freeze() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn body_points_into_the_receive_buffer() {
        // L259: no copy between socket buffer and consumer.
        let mut buf = BytesMut::from(&b"d\0\0\0\x08WAL!d\0\0"[..]);
        let body_address = buf[HEADER_LEN..].as_ptr();
        let frame = take_frame(&mut buf, 100).unwrap().unwrap();
        assert_eq!(frame, Frame { tag: b'd', body: Bytes::from_static(b"WAL!") });
        assert_eq!(frame.body.as_ptr(), body_address);
        assert_eq!(&buf[..], b"d\0\0");
        assert_eq!(take_frame(&mut buf, 100), Ok(None));
    }

    #[test]
    fn hostile_lengths_reserve_nothing() {
        let mut buf = BytesMut::from(&b"d\xFF\xFF\xFF\xFF"[..]);
        let before = buf.capacity();
        let error = take_frame(&mut buf, 1000).unwrap_err();
        assert_eq!(error, ProtocolError::TooLong { tag: b'd', len: 0xFFFF_FFFF, max: 1000 });
        assert_eq!(buf.capacity(), before);
        let mut buf = BytesMut::from(&b"d\0\0\0\x03"[..]);
        let error = take_frame(&mut buf, 1000).unwrap_err();
        assert_eq!(error, ProtocolError::InvalidLength { tag: b'd', len: 3 });
    }

    proptest! {
        #[test]
        fn never_panics_and_never_exceeds_the_limit(bytes: Vec<u8>, max in 0usize..64) {
            let mut buf = BytesMut::from(&bytes[..]);
            while let Ok(Some(frame)) = take_frame(&mut buf, max) {
                prop_assert!(frame.body.len() <= max);
            }
        }
    }
}
