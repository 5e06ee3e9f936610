//! Numbers of tickets: the order in which they were drawn.

use core::fmt;

/// A ticket's number. It wraps around: two compare by their distance, which is less than 2^31 as
/// long as both are outstanding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seq(u32);

impl Seq {
    /// The number `number`.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number itself.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// Whether it was drawn before `other`.
    pub const fn is_older_than(self, other: Self) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    /// How many were drawn from `earlier` to this one.
    pub(crate) const fn since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    pub(crate) const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A ticket as others refer to it: its number, and its place in the manager's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) place: u32,
    pub(crate) seq: Seq,
}

impl Holder {
    /// Nobody, as a word.
    pub(crate) const NOBODY: u64 = 0;

    /// As a word that is never [`Holder::NOBODY`]. There are less places than numbers.
    pub(crate) const fn word(self) -> u64 {
        (self.place as u64 + 1) << 32 | self.seq.0 as u64
    }

    pub(crate) const fn of(word: u64) -> Option<Self> {
        match (word >> 32) as u32 {
            0 => None,
            place => Some(Self {
                place: place - 1,
                seq: Seq(word as u32),
            }),
        }
    }
}
