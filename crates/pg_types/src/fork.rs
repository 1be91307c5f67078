//! Relation forks.

use std::fmt;

/// `ForkNumber` of `common/relpath.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ForkNumber {
    /// The relation's own data.
    Main = 0,
    /// Free space map.
    Fsm = 1,
    /// Visibility map.
    Vm = 2,
    /// Template that an unlogged relation is reset to.
    Init = 3,
}

impl ForkNumber {
    /// All forks, in Postgres' order.
    pub const ALL: [ForkNumber; 4] =
        [ForkNumber::Main, ForkNumber::Fsm, ForkNumber::Vm, ForkNumber::Init];

    /// The fork of a number found in WAL or on the wire; `None` for a number that is no fork.
    pub fn from_number(number: u32) -> Option<ForkNumber> {
        usize::try_from(number).ok().and_then(|n| ForkNumber::ALL.get(n)).copied()
    }

    /// The number used in WAL, on the wire and in keys.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// File name suffix (`forkNames` in `relpath.c`): empty for the main fork, else `_fsm`, `_vm`, `_init`.
    pub fn file_suffix(self) -> &'static str {
        match self {
            ForkNumber::Main => "",
            ForkNumber::Fsm => "_fsm",
            ForkNumber::Vm => "_vm",
            ForkNumber::Init => "_init",
        }
    }
}

impl fmt::Display for ForkNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ForkNumber::Main => "main",
            ForkNumber::Fsm => "fsm",
            ForkNumber::Vm => "vm",
            ForkNumber::Init => "init",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip() {
        for fork in ForkNumber::ALL {
            assert_eq!(ForkNumber::from_number(u32::from(fork.number())), Some(fork));
        }
        assert_eq!(ForkNumber::from_number(4), None);
        assert_eq!(ForkNumber::from_number(u32::MAX), None);
    }
}
