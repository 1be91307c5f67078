//! Requests of one connection, in the order of their sending, and the answers that have come.
//!
//! The page server answers in order, so the ring is a queue: answers fill it from the front, and what is used up
//! leaves it at the front. Pages that were asked for ahead of need wait in it until somebody reads them, until they
//! turn out to be out of date, or until their place is needed.

use std::collections::{HashMap, VecDeque};

use page_protocol::{Request, RequestKind};
use pg_types::{BlockNumber, Lsn, RelTag};

use crate::last_written::BlockKey;

/// Number of a request, counted from the start of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What the page server said. `P` holds a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<P> {
    /// A page.
    Page(P),
    /// Whether a fork exists.
    Exists(bool),
    /// A size, in blocks or bytes.
    Number(i64),
    /// The request failed.
    Error(String),
}

/// Where a request is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State<P> {
    /// Under way.
    Requested,
    /// Under way, but nobody will use the answer.
    Abandoned,
    /// Answered; `cached` says that the page is in the local file cache as well.
    Answered { answer: Answer<P>, cached: bool },
    /// The connection was lost before the answer came.
    Lost,
    /// Used, or not wanted any more.
    Done,
}

/// What a request was sent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A read waits for this one; it takes the answer whatever happens.
    Awaited,
    /// A read will probably want it: a page is kept until then.
    Ahead,
    /// The local file cache: the page is not kept here.
    Cache,
}

#[derive(Debug)]
struct Entry<P> {
    request: Request,
    purpose: Purpose,
    state: State<P>,
}

impl<P> Entry<P> {
    fn is_awaited(&self) -> bool {
        self.purpose == Purpose::Awaited
    }

    fn is_answered(&self) -> bool {
        matches!(self.state, State::Answered { .. })
    }
}

/// What a read finds about a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing that could be used.
    Nothing,
    /// The page was asked for and is under way.
    UnderWay(Ticket),
    /// The page is here.
    Here(Ticket),
}

/// What became of a request that somebody waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<P> {
    /// Still under way.
    UnderWay,
    /// Answered. The entry is used up by this. The flag says that the page is in the local file cache as well.
    Answered(Answer<P>, bool),
    /// The connection was lost; ask again.
    Lost,
}

/// See the module.
#[derive(Debug)]
pub struct Ring<P> {
    entries: VecDeque<Entry<P>>,
    /// Number of the entry at the front.
    front: u64,
    /// Number of the oldest entry without an answer.
    next_answer: u64,
    /// The newest entry for each block that somebody may still use.
    blocks: HashMap<BlockKey, u64>,
    capacity: usize,
    /// Pages that came and were not used before their place was needed or they were out of date.
    wasted: u64,
}

impl<P> Ring<P> {
    /// A ring that keeps at most `capacity` requests ahead of need. Requests that somebody waits for always fit.
    pub fn new(capacity: usize) -> Ring<P> {
        Ring {
            entries: VecDeque::new(),
            front: 0,
            next_answer: 0,
            blocks: HashMap::new(),
            capacity,
            wasted: 0,
        }
    }

    /// Changes the capacity; what is over it leaves as its answers come and are used.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
    }

    fn index(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.front)?).ok()
    }

    fn entry_mut(&mut self, number: u64) -> Option<&mut Entry<P>> {
        let index = self.index(number)?;
        self.entries.get_mut(index)
    }

    fn end(&self) -> u64 {
        self.front + self.entries.len() as u64
    }

    /// Requests without an answer.
    pub fn under_way(&self) -> u64 {
        self.end() - self.next_answer
    }

    /// Whether there is a page, here or under way, that [`Ring::find`] could find.
    pub fn has_blocks(&self) -> bool {
        !self.blocks.is_empty()
    }

    /// Pages that came for nothing, since the last call.
    pub fn take_wasted(&mut self) -> u64 {
        std::mem::take(&mut self.wasted)
    }

    /// What is known of a block. An entry that may be older than the block's last change is given up: a page that
    /// was asked for as "not modified since S" may be used only while the block's last-written LSN is at most S.
    pub fn find(&mut self, rel: RelTag, block: BlockNumber, last_written: Lsn) -> Found {
        let key = BlockKey::new(rel, block);
        let Some(&number) = self.blocks.get(&key) else { return Found::Nothing };
        let ticket = Ticket(number);
        let found = self.entry_mut(number).map(|entry| {
            let usable = last_written <= entry.request.not_modified_since;
            match (&entry.state, usable) {
                (State::Requested, true) => Found::UnderWay(ticket),
                (State::Answered { answer: Answer::Page(_), .. }, true) => Found::Here(ticket),
                _ => Found::Nothing,
            }
        });
        match found {
            Some(Found::Nothing) | None => {
                self.give_up(ticket);
                Found::Nothing
            }
            Some(found) => found,
        }
    }

    /// Whether a read ahead of this block would be asked for in vain: it is here or under way.
    pub fn knows(&mut self, rel: RelTag, block: BlockNumber, last_written: Lsn) -> bool {
        self.find(rel, block, last_written) != Found::Nothing
    }

    /// Makes room for one request ahead of need. `false`: everything in the ring is under way or awaited.
    pub fn make_room(&mut self) -> bool {
        while self.entries.len() >= self.capacity {
            match self.entries.front() {
                Some(entry) if !entry.is_awaited() && entry.is_answered() => {
                    self.give_up(Ticket(self.front));
                }
                _ => return false,
            }
        }
        true
    }

    /// Notes a request that is being sent.
    pub fn push(&mut self, request: Request, purpose: Purpose) -> Ticket {
        // An awaited one always fits, but used-up places behind a page that nobody reads must not pile up.
        self.make_room();
        let number = self.end();
        if let RequestKind::GetPage(rel, block) = request.kind
            && request.request_lsn == Lsn::MAX
        {
            self.blocks.insert(BlockKey::new(rel, block), number);
        }
        self.entries.push_back(Entry { request, purpose, state: State::Requested });
        Ticket(number)
    }

    /// A read waits for this request from now on.
    pub fn await_ticket(&mut self, ticket: Ticket) {
        if let Some(entry) = self.entry_mut(ticket.0) {
            entry.purpose = Purpose::Awaited;
        }
    }

    /// The request that the next answer is for.
    pub fn next_request(&self) -> Option<&Request> {
        let index = self.index(self.next_answer)?;
        self.entries.get(index).map(|entry| &entry.request)
    }

    /// What the next answer is for; `None` when nobody wants it any more.
    pub fn next_purpose(&self) -> Option<Purpose> {
        let entry = self.entries.get(self.index(self.next_answer)?)?;
        matches!(entry.state, State::Requested).then_some(entry.purpose)
    }

    /// The next answer has come; `cached`: the page was put into the local file cache as well.
    pub fn answered(&mut self, answer: Answer<P>, cached: bool) {
        let number = self.next_answer;
        let Some(entry) = self.entry_mut(number) else { return };
        let wanted = matches!(entry.state, State::Requested);
        // A failed read ahead is no news: whoever needs the page asks for it and hears of it.
        let keep = wanted
            && match entry.purpose {
                Purpose::Awaited => true,
                Purpose::Ahead => matches!(answer, Answer::Page(_)),
                Purpose::Cache => false,
            };
        entry.state = if keep { State::Answered { answer, cached } } else { State::Done };
        self.next_answer += 1;
        if !keep {
            self.forget_block(number);
        }
        self.pop_done();
    }

    /// The connection is gone: what is under way will not be answered.
    pub fn connection_lost(&mut self) {
        for number in self.next_answer..self.end() {
            self.forget_block(number);
            if let Some(entry) = self.entry_mut(number) {
                entry.state = if entry.is_awaited() { State::Lost } else { State::Done };
            }
        }
        self.next_answer = self.end();
        self.pop_done();
    }

    /// What became of an awaited request; an answer is handed over and its place is free.
    pub fn take(&mut self, ticket: Ticket) -> Outcome<P> {
        let Some(entry) = self.entry_mut(ticket.0) else { return Outcome::Lost };
        let outcome = match std::mem::replace(&mut entry.state, State::Done) {
            State::Answered { answer, cached } => Outcome::Answered(answer, cached),
            State::Requested => {
                entry.state = State::Requested;
                return Outcome::UnderWay;
            }
            State::Lost | State::Abandoned | State::Done => Outcome::Lost,
        };
        self.forget_block(ticket.0);
        self.pop_done();
        outcome
    }

    /// Nobody will use this entry.
    pub fn give_up(&mut self, ticket: Ticket) {
        self.forget_block(ticket.0);
        let Some(entry) = self.entry_mut(ticket.0) else { return };
        match entry.state {
            State::Requested => {
                entry.state = State::Abandoned;
                self.wasted += 1;
            }
            State::Answered { .. } => {
                entry.state = State::Done;
                self.wasted += 1;
            }
            State::Lost => entry.state = State::Done,
            State::Abandoned | State::Done => {}
        }
        self.pop_done();
    }

    fn forget_block(&mut self, number: u64) {
        let Some(request) = self.index(number).and_then(|i| self.entries.get(i)).map(|e| e.request)
        else {
            return;
        };
        if let RequestKind::GetPage(rel, block) = request.kind {
            let key = BlockKey::new(rel, block);
            if self.blocks.get(&key) == Some(&number) {
                self.blocks.remove(&key);
            }
        }
    }

    fn pop_done(&mut self) {
        while self.front < self.next_answer
            && matches!(self.entries.front(), Some(Entry { state: State::Done, .. }))
        {
            self.entries.pop_front();
            self.front += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg_types::{ForkNumber, RelFileLocator};
    use proptest::prelude::*;
    use std::collections::HashMap;

    const REL: RelTag = RelTag {
        locator: RelFileLocator { spc_oid: 1663, db_oid: 5, rel_number: 16384 },
        fork: ForkNumber::Main,
    };

    fn request(block: BlockNumber, since: u64) -> Request {
        Request {
            request_id: 0,
            request_lsn: Lsn::MAX,
            not_modified_since: Lsn(since),
            kind: RequestKind::GetPage(REL, block),
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Ahead(BlockNumber, Purpose),
        Answer,
        Fail,
        Read(BlockNumber),
        Change(BlockNumber),
        Lose,
        Resize(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        let block = 0u32..6;
        prop_oneof![
            3 => block.clone().prop_map(|block| Op::Ahead(block, Purpose::Ahead)),
            2 => block.clone().prop_map(|block| Op::Ahead(block, Purpose::Cache)),
            6 => Just(Op::Answer),
            1 => Just(Op::Fail),
            4 => block.clone().prop_map(Op::Read),
            2 => block.prop_map(Op::Change),
            1 => Just(Op::Lose),
            1 => (0usize..5).prop_map(Op::Resize),
        ]
    }

    /// A page server whose pages are version numbers, and a ring in front of it.
    struct World {
        ring: Ring<u64>,
        versions: HashMap<BlockNumber, u64>,
        clock: u64,
    }

    impl World {
        fn version(&self, block: BlockNumber) -> u64 {
            self.versions.get(&block).copied().unwrap_or(0)
        }

        /// The page server may answer with any version from `not_modified_since` on; the oldest is the worst.
        fn answer(&mut self) {
            let Some(request) = self.ring.next_request().copied() else { return };
            self.ring.answered(Answer::Page(request.not_modified_since.0), false);
        }

        fn ahead(&mut self, block: BlockNumber, purpose: Purpose) {
            let now = Lsn(self.version(block));
            if !self.ring.knows(REL, block, now) && self.ring.make_room() {
                self.ring.push(request(block, now.0), purpose);
            }
        }

        /// Reads a block as the page client does; `lose` loses the connection once on the way.
        fn read(&mut self, block: BlockNumber) -> u64 {
            let now = Lsn(self.version(block));
            let ask = |ring: &mut Ring<u64>| ring.push(request(block, now.0), Purpose::Awaited);
            let mut ticket = match self.ring.find(REL, block, now) {
                Found::Nothing => ask(&mut self.ring),
                Found::UnderWay(ticket) | Found::Here(ticket) => ticket,
            };
            self.ring.await_ticket(ticket);
            loop {
                match self.ring.take(ticket) {
                    Outcome::Answered(Answer::Page(version), _) => return version,
                    Outcome::UnderWay => self.answer(),
                    Outcome::Lost => ticket = ask(&mut self.ring),
                    other @ Outcome::Answered(..) => panic!("{other:?}"),
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_read_never_returns_an_old_page(ops in prop::collection::vec(op(), 0..200)) {
            let mut world = World { ring: Ring::new(4), versions: HashMap::new(), clock: 0 };
            for op in ops {
                match op {
                    Op::Ahead(block, purpose) => world.ahead(block, purpose),
                    Op::Answer => world.answer(),
                    Op::Fail => if world.ring.next_request().is_some() {
                        world.ring.answered(Answer::Error("no".to_owned()), false);
                    },
                    Op::Read(block) => {
                        let version = world.version(block);
                        prop_assert_eq!(world.read(block), version);
                    }
                    Op::Change(block) => {
                        world.clock += 1;
                        world.versions.insert(block, world.clock);
                    }
                    Op::Lose => world.ring.connection_lost(),
                    Op::Resize(capacity) => world.ring.set_capacity(capacity),
                }
                prop_assert!(world.ring.next_answer <= world.ring.end());
                prop_assert!(world.ring.entries.len() <= 5, "bounded by the greatest capacity and one read");
                for number in world.ring.blocks.values() {
                    prop_assert!(world.ring.index(*number).is_some_and(|i| i < world.ring.entries.len()));
                }
            }
        }
    }

    #[test]
    fn the_oldest_page_makes_room_and_requests_under_way_do_not() {
        let mut ring = Ring::new(2);
        for block in 0..2 {
            assert!(ring.make_room());
            ring.push(request(block, 7), Purpose::Ahead);
        }
        assert!(!ring.make_room());
        ring.answered(Answer::Page(0), false);
        assert_eq!(ring.find(REL, 0, Lsn(7)), Found::Here(Ticket(0)));
        assert!(ring.make_room());
        assert_eq!(ring.find(REL, 0, Lsn(7)), Found::Nothing);
        assert_eq!((ring.under_way(), ring.take_wasted()), (1, 1));
    }

    #[test]
    fn a_read_waits_for_what_is_under_way_and_asks_again_when_it_is_lost() {
        let mut ring: Ring<u64> = Ring::new(4);
        ring.push(request(3, 7), Purpose::Ahead);
        let Found::UnderWay(ticket) = ring.find(REL, 3, Lsn(6)) else { panic!("not found") };
        ring.await_ticket(ticket);
        assert_eq!(ring.next_purpose(), Some(Purpose::Awaited));
        assert_eq!(ring.take(ticket), Outcome::UnderWay);
        ring.connection_lost();
        assert_eq!(ring.take(ticket), Outcome::Lost);
        assert_eq!(ring.under_way(), 0);
        assert_eq!(ring.find(REL, 3, Lsn(6)), Found::Nothing);
    }

    #[test]
    fn pages_at_an_exact_position_are_not_shared() {
        let mut ring: Ring<u64> = Ring::new(4);
        let exact = Request { request_lsn: Lsn(9), ..request(3, 9) };
        let ticket = ring.push(exact, Purpose::Awaited);
        assert_eq!(ring.find(REL, 3, Lsn(9)), Found::Nothing);
        ring.answered(Answer::Page(1), false);
        assert_eq!(ring.take(ticket), Outcome::Answered(Answer::Page(1), false));
        assert!(ring.entries.is_empty());
    }

    #[test]
    fn a_page_for_the_cache_is_kept_only_for_a_read_that_came_meanwhile() {
        let mut ring: Ring<u64> = Ring::new(4);
        ring.push(request(3, 7), Purpose::Cache);
        ring.push(request(4, 7), Purpose::Cache);
        let Found::UnderWay(ticket) = ring.find(REL, 4, Lsn(7)) else { panic!("not found") };
        ring.await_ticket(ticket);
        ring.answered(Answer::Page(30), true);
        assert_eq!(ring.find(REL, 3, Lsn(7)), Found::Nothing);
        ring.answered(Answer::Page(40), true);
        assert_eq!(ring.take(ticket), Outcome::Answered(Answer::Page(40), true));
        assert!(ring.entries.is_empty());
        assert_eq!(ring.take_wasted(), 0);
    }
}
