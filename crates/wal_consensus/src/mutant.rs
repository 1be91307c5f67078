//! Deliberate defects, to show that the simulation and the model check find them. Outside this crate's own tests there
//! are none: [`is`] is `false` and costs nothing.

/// What can be made wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// An acceptor acknowledges WAL that is written but not durable.
    AcknowledgesBeforeSync,
    /// An acceptor votes for a second candidate of the same term.
    VotesTwice,
    /// An acceptor does not save its promise.
    ForgetsPromise,
    /// An acceptor keeps WAL that the elected proposer does not have.
    DoesNotCut,
    /// Logs boast of terms whose WAL they do not hold, and are believed.
    BoastsOfHistory,
    /// Messages of another membership generation are taken, on both sides.
    IgnoresGeneration,
    /// A majority is one voter short.
    MajorityOneShort,
    /// Of a joint configuration only the old members count.
    OnlyOldMembersCount,
    /// Of a joint configuration only the new members count.
    OnlyNewMembersCount,
    /// The longest log wins, whatever its term.
    LongestLogWins,
    /// A leader's commit position counts safekeepers that it has only sent the WAL to.
    CountsSent,
    /// A membership change ends before the old members know that it has begun.
    FinishesBeforeOldMembersKnow,
    /// A membership change ends before the new members have the log.
    FinishesBeforeNewMembersAreLevel,
    /// A membership change does not raise terms.
    RaisesNoTerm,
}

#[cfg(not(test))]
pub(crate) const fn is(_mutant: Mutant) -> bool {
    false
}

#[cfg(test)]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

#[cfg(test)]
pub(crate) fn is(mutant: Mutant) -> bool {
    ACTIVE.get() == Some(mutant)
}

/// Makes this thread's state machines wrong in one way while `work` runs.
#[cfg(test)]
pub(crate) fn with<T>(mutant: Mutant, work: impl FnOnce() -> T) -> T {
    ACTIVE.set(Some(mutant));
    let result = work();
    ACTIVE.set(None);
    result
}
