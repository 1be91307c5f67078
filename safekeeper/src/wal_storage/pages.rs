//! The end of a segment in memory, as direct I/O wants it: whole pages, in memory that begins at a page's boundary.

/// Page of the kernel's cache. Writes are padded to whole ones: a part of a page that is not in the cache would
/// make the kernel read the page from the disk first, in the middle of a commit. Direct I/O takes nothing else.
pub(super) const PAGE: usize = 4096;
/// More than this is written through the kernel's cache, which puts large writes together better.
pub(super) const CAPACITY: usize = 64 * 1024;

/// Bytes from a page's boundary in the file on; zeros behind them up to the next.
#[derive(Debug)]
pub(super) struct Pages {
    /// A page more than [`CAPACITY`], so that there is a boundary to begin at.
    memory: Vec<u8>,
    begin: usize,
    /// Place of the first byte in the file, a multiple of [`PAGE`].
    offset: u64,
    len: usize,
    has_news: bool,
}

impl Pages {
    /// Nothing yet, at a page's boundary in the file.
    pub(super) fn at(offset: u64) -> Pages {
        let memory = vec![0u8; CAPACITY + PAGE];
        let begin = memory.as_ptr().addr().wrapping_neg() % PAGE;
        Pages { memory, begin, offset, len: 0, has_news: false }
    }

    /// Bytes of the file's page that have been written already.
    pub(super) fn begin_with(&mut self, written: &[u8]) {
        self.extend(written);
        self.has_news = false;
    }

    /// Appends bytes; `false`, and nothing happens, when there is no room for them.
    pub(super) fn extend(&mut self, data: &[u8]) -> bool {
        let from = self.begin + self.len;
        let fits = self.len + data.len() <= CAPACITY;
        if let Some(room) = self.memory.get_mut(from..from + data.len()).filter(|_| fits) {
            room.copy_from_slice(data);
            self.len += data.len();
            self.has_news |= !data.is_empty();
        }
        fits
    }

    /// Whether there are bytes that [`Self::settle`] has not seen.
    pub(super) fn has_news(&self) -> bool {
        self.has_news
    }

    /// Bytes of the last page that is not full.
    pub(super) fn unfinished(&self) -> usize {
        self.len % PAGE
    }

    /// All pages, and where they belong.
    pub(super) fn padded(&self) -> (&[u8], u64) {
        let end = self.begin + self.len.next_multiple_of(PAGE);
        (self.memory.get(self.begin..end).unwrap_or_default(), self.offset)
    }

    /// Everything is written: full pages go, the unfinished one stays, to be written again with what follows.
    pub(super) fn settle(&mut self) {
        let unfinished = self.unfinished();
        let full = self.len - unfinished;
        if full > 0 {
            let used = self.begin..self.begin + self.len;
            self.memory.copy_within(used.end - unfinished..used.end, self.begin);
            if let Some(rest) = self.memory.get_mut(self.begin + unfinished..used.end) {
                rest.fill(0);
            }
            self.offset += full as u64;
            self.len = unfinished;
        }
        self.has_news = false;
    }

    /// Whole pages were written at the end, past this; nothing is unfinished.
    pub(super) fn skip(&mut self, bytes: usize) {
        self.offset += bytes as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_aligned_and_padded_and_the_unfinished_one_stays() {
        let mut pages = Pages::at(8192);
        pages.begin_with(b"old");
        assert!(!pages.has_news());
        assert!(pages.extend(&[7; PAGE]));
        assert!(pages.has_news());
        let (padded, offset) = pages.padded();
        assert_eq!((padded.len(), offset, padded.as_ptr().addr() % PAGE), (2 * PAGE, 8192, 0));
        assert_eq!(padded[..4], [b'o', b'l', b'd', 7]);
        assert_eq!(padded[PAGE + 2..PAGE + 4], [7, 0]);
        pages.settle();
        assert_eq!((pages.unfinished(), pages.has_news()), (3, false));
        let (padded, offset) = pages.padded();
        assert_eq!((padded.len(), offset), (PAGE, 8192 + PAGE as u64));
        assert!(padded[..3].iter().all(|byte| *byte == 7) && padded[3..].iter().all(|b| *b == 0));
        assert!(!pages.extend(&vec![1; CAPACITY - 2]));
        assert!(pages.extend(&vec![1; CAPACITY - 3]));
    }
}
