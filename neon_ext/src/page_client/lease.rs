//! Taking the client of this process out of its place and putting it back.

use std::cell::Cell;
use std::mem::ManuallyDrop;

use super::client::Client;
use crate::counters::{self, Counter};
use crate::ffi::timer;

thread_local! {
    /// Not dropped when the process ends: Postgres' functions must not be called any more then, and the kernel closes
    /// the socket.
    static CLIENT: Cell<Option<ManuallyDrop<Box<Client>>>> = const { Cell::new(None) };
}

/// The client while it is in use. Dropped without [`Lease::put_back`], as when an error unwinds, it takes the client
/// with it: nobody knows which answers were still to come.
pub struct Lease(Box<Client>);

impl Lease {
    /// The client, a new one if there is none or if it is in use further up the stack (serving interrupts may read
    /// catalogs).
    pub fn take() -> Lease {
        Lease::of_existing().unwrap_or_else(|| Lease(Box::new(Client::new())))
    }

    /// The client if there is one and it is not in use.
    pub fn of_existing() -> Option<Lease> {
        CLIENT.take().map(ManuallyDrop::into_inner).map(Lease)
    }

    /// The client.
    pub fn client(&mut self) -> &mut Client {
        &mut self.0
    }

    /// Puts the client back, and has it attended to while something is under way.
    pub fn put_back(mut self) {
        match self.0.ring.take_wasted() {
            0 => {}
            wasted => counters::add(Counter::PrefetchWasted, wasted),
        }
        if self.0.ring.under_way() > 0 {
            timer::arm();
        }
        // One that was made meanwhile, further down the stack, is closed.
        drop(CLIENT.replace(Some(ManuallyDrop::new(self.0))).map(ManuallyDrop::into_inner));
    }
}
