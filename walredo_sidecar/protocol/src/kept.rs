//! A request that is served more than once.

use crate::{Message, parse, put_apply, put_begin, put_get, put_push};

/// The messages of one request, kept so that they can be gone through again.
#[derive(Debug, Default)]
pub struct KeptRequest {
    bytes: Vec<u8>,
}

impl KeptRequest {
    /// Keeps a message; one that begins a request drops the request before it.
    pub fn keep(&mut self, message: &Message<'_>) {
        match *message {
            Message::Begin(tag) => {
                self.bytes.clear();
                put_begin(&mut self.bytes, tag);
            }
            Message::Push(tag, page) => put_push(&mut self.bytes, tag, page),
            Message::Apply { end_lsn, record } => put_apply(&mut self.bytes, end_lsn, record),
            Message::Get(tag) => put_get(&mut self.bytes, tag),
        }
    }

    /// The messages in their order.
    pub fn messages(&self) -> impl Iterator<Item = Message<'_>> {
        let mut rest = self.bytes.as_slice();
        std::iter::from_fn(move || {
            let (message, size) = parse(rest).ok()??;
            rest = rest.get(size..)?;
            Some(message)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BufferTag;
    use pg_types::{BLCKSZ, ForkNumber, Lsn, RelFileLocator};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_last_request_comes_back_any_number_of_times(
            blkno: u32,
            fill: Option<u8>,
            records in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..5),
        ) {
            let locator = RelFileLocator { spc_oid: 1, db_oid: 2, rel_number: 3 };
            let tag = BufferTag { rel: locator.fork(ForkNumber::Main), blkno };
            let page = [fill.unwrap_or(0); BLCKSZ];
            let mut request = vec![Message::Begin(tag)];
            request.extend(fill.map(|_| Message::Push(tag, &page)));
            let applies = records.iter().map(|record| Message::Apply { end_lsn: Lsn(7), record });
            request.extend(applies);
            request.push(Message::Get(tag));
            let mut kept = KeptRequest::default();
            for _ in 0..2 {
                request.iter().for_each(|message| kept.keep(message));
                for _ in 0..2 {
                    let again: Vec<_> = kept.messages().collect();
                    prop_assert_eq!(&again, &request);
                }
            }
        }
    }
}
