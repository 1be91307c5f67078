//! Log sequence numbers.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A byte position in the write-ahead log, `XLogRecPtr` in Postgres. Prints as `pg_lsn` does: `16/B374D848`.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

/// Why a text is not an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid LSN \"{0}\": expected two hexadecimal numbers as in 16/B374D848")]
pub struct LsnParseError(pub String);

impl Lsn {
    /// `InvalidXLogRecPtr`: no position.
    pub const INVALID: Lsn = Lsn(0);
    /// The greatest value; in a page request it means "the newest version".
    pub const MAX: Lsn = Lsn(u64::MAX);

    /// Whether this is a position at all.
    pub fn is_valid(self) -> bool {
        self != Lsn::INVALID
    }

    /// Rounds up to the 8-byte alignment at which records start (`MAXALIGN`).
    /// Saturates at the last aligned position.
    pub fn align(self) -> Lsn {
        Lsn(self.0.saturating_add(7) & !7)
    }

    /// Whether a record could start here as far as alignment goes.
    pub fn is_aligned(self) -> bool {
        self.0 & 7 == 0
    }

    /// Bytes from `earlier` to `self`; `None` when `earlier` is later.
    pub fn checked_sub(self, earlier: Lsn) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }

    /// `self + bytes`; `None` on overflow.
    pub fn checked_add(self, bytes: u64) -> Option<Lsn> {
        self.0.checked_add(bytes).map(Lsn)
    }

    /// Bytes from `earlier` to `self`, 0 when `earlier` is later.
    pub fn saturating_sub(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<u64> for Lsn {
    type Output = Lsn;
    fn add(self, bytes: u64) -> Lsn {
        Lsn(self.0 + bytes)
    }
}

impl AddAssign<u64> for Lsn {
    fn add_assign(&mut self, bytes: u64) {
        self.0 += bytes;
    }
}

impl Sub<Lsn> for Lsn {
    type Output = u64;
    fn sub(self, earlier: Lsn) -> u64 {
        self.0 - earlier.0
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Lsn {
    type Err = LsnParseError;

    /// The grammar of `pg_lsn_in_internal` (`pg_lsn.c`): one to eight hex digits, a slash, one to eight more.
    fn from_str(text: &str) -> Result<Lsn, LsnParseError> {
        let part = |digits: &str| {
            let plain =
                (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            if plain { u64::from_str_radix(digits, 16).ok() } else { None }
        };
        text.split_once('/')
            .and_then(|(hi, lo)| Some(Lsn(part(hi)? << 32 | part(lo)?)))
            .ok_or_else(|| LsnParseError(text.to_owned()))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Lsn, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prints_and_parses_like_pg_lsn() {
        assert_eq!(Lsn(0x16_B374_D848).to_string(), "16/B374D848");
        assert_eq!("0/0".parse(), Ok(Lsn::INVALID));
        assert_eq!("FFFFFFFF/FFFFFFFF".parse(), Ok(Lsn::MAX));
        for bad in ["", "/", "1", "1/", "/1", "123456789/0", "0/123456789", "+1/0", "1/0x", "1/0/0"]
        {
            assert_eq!(bad.parse::<Lsn>(), Err(LsnParseError(bad.to_owned())));
        }
    }

    #[test]
    fn aligns_without_overflow() {
        assert_eq!(Lsn(1).align(), Lsn(8));
        assert_eq!(Lsn(8).align(), Lsn(8));
        assert_eq!(Lsn::MAX.align(), Lsn(!7));
    }

    proptest! {
        #[test]
        fn text_round_trips(value: u64) {
            prop_assert_eq!(Lsn(value).to_string().parse::<Lsn>(), Ok(Lsn(value)));
        }
    }
}
