//! `neon.wal_redo_repeat`: each request is served several times before it is answered once.
//!
//! For the benchmark alone. The more often, the more of the time between request and answer is the work of redo, and
//! the less is the hand-over between two processes: two numbers of rounds give both. It is a setting of the launch and
//! not of the protocol, so nothing that arrives on the pipe can ask for it, and it needs no system call.

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use walredo_protocol::{KeptRequest, Message};

static ROUNDS: GucSetting<i32> = GucSetting::<i32>::new(1);

/// Defines the setting; only a redo process has it.
pub(crate) fn define_setting() {
    GucRegistry::define_int_guc(
        c"neon.wal_redo_repeat",
        c"How often each WAL redo request is served before it is answered.",
        c"For measuring redo without the hand-over between processes; a page server leaves it at 1.",
        &ROUNDS,
        1,
        i32::MAX,
        GucContext::Postmaster,
        GucFlags::NO_SHOW_ALL,
    );
}

/// Rounds of each request before the one that is answered.
pub(crate) struct Repeat {
    rehearsals: i32,
    kept: KeptRequest,
}

impl Repeat {
    /// As the setting says.
    pub(crate) fn from_setting() -> Repeat {
        Repeat { rehearsals: ROUNDS.get().saturating_sub(1), kept: KeptRequest::default() }
    }

    /// Sees each message before it is handled. When one asks for the page, `handle` gets it and then all before it,
    /// once for each rehearsal: what is left is the state that the message was to find.
    pub(crate) fn rehearse(&mut self, message: &Message<'_>, mut handle: impl FnMut(Message<'_>)) {
        if self.rehearsals == 0 {
            return;
        }
        let Message::Get(tag) = *message else { return self.kept.keep(message) };
        for _ in 0..self.rehearsals {
            handle(Message::Get(tag));
            self.kept.messages().for_each(&mut handle);
        }
    }
}
