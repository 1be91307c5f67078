//! Total reading of little-endian structures.

/// A structure that is shorter than what it claims to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} bytes wanted at offset {offset}, {available} there")]
pub struct ShortRead {
    /// Where, from the start of the structure.
    pub offset: usize,
    /// How many bytes the next field needs.
    pub wanted: usize,
    /// How many are left.
    pub available: usize,
}

/// A cursor over bytes that came from outside; every read is checked.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    /// Reads from the first byte of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, offset: 0 }
    }

    /// Offset of the next byte.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.offset..).unwrap_or_default()
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], ShortRead> {
        match self.rest().get(..len) {
            Some(taken) => {
                self.offset += len;
                Ok(taken)
            }
            None => {
                Err(ShortRead { offset: self.offset, wanted: len, available: self.rest().len() })
            }
        }
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], ShortRead> {
        match self.rest().first_chunk::<N>() {
            Some(chunk) => {
                self.offset += N;
                Ok(*chunk)
            }
            None => Err(ShortRead { offset: self.offset, wanted: N, available: self.rest().len() }),
        }
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, ShortRead> {
        self.array().map(|[byte]| byte)
    }

    /// A little-endian `u16`.
    pub fn u16(&mut self) -> Result<u16, ShortRead> {
        self.array().map(u16::from_le_bytes)
    }

    /// A little-endian `u32`.
    pub fn u32(&mut self) -> Result<u32, ShortRead> {
        self.array().map(u32::from_le_bytes)
    }

    /// A little-endian `i32`.
    pub fn i32(&mut self) -> Result<i32, ShortRead> {
        self.array().map(i32::from_le_bytes)
    }

    /// A little-endian `u64`.
    pub fn u64(&mut self) -> Result<u64, ShortRead> {
        self.array().map(u64::from_le_bytes)
    }

    /// A little-endian `i64`.
    pub fn i64(&mut self) -> Result<i64, ShortRead> {
        self.array().map(i64::from_le_bytes)
    }

    /// `count` items of `size` bytes each, as one slice; a count from outside never overflows.
    pub fn items(&mut self, count: u32, size: usize) -> Result<&'a [u8], ShortRead> {
        let len = usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(size);
        self.take(len)
    }

    /// `count` little-endian `u32`s.
    pub fn u32s(&mut self, count: u32) -> Result<Vec<u32>, ShortRead> {
        let (words, _) = self.items(count, 4)?.as_chunks::<4>();
        Ok(words.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_in_order_and_stops_at_the_end() {
        let mut reader = Reader::new(&[1, 2, 0, 3, 0, 0, 0, 9]);
        assert_eq!(reader.u8(), Ok(1));
        assert_eq!(reader.u16(), Ok(2));
        assert_eq!(reader.u32(), Ok(3));
        assert_eq!(reader.u16(), Err(ShortRead { offset: 7, wanted: 2, available: 1 }));
        assert!(reader.items(u32::MAX, usize::MAX).is_err());
        assert_eq!(reader.rest(), [9]);
    }
}
