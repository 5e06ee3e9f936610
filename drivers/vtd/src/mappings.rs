//! A domain's mappings, found again by the memory that they lead to.
//!
//! Who maps memory that is mapped already shares that mapping, and costs the unit nothing: a transfer
//! within a buffer that somebody keeps mapped, as an attachment does. A mapping ends with the last of
//! those who share it. So a device reaches memory exactly as long as somebody has it mapped for it,
//! and may do with it what one of them asked for.

use alloc::collections::{BTreeMap, BTreeSet};
use core::ops::Range;

use crate::tables::Permissions;

/// The mappings of a domain, in whole pages: those of memory in one piece are found again.
#[derive(Debug, Default)]
pub struct Mappings {
    /// By their first address.
    by_address: BTreeMap<u64, Shared>,
    /// First byte of memory, and first address.
    by_memory: BTreeSet<(u64, u64)>,
}

#[derive(Debug)]
struct Shared {
    len: u64,
    /// First byte of the memory, if it is one piece.
    memory: Option<u64>,
    permissions: Permissions,
    users: usize,
}

/// So many mappings that begin below some memory are looked at: there are few that overlap.
const LOOKS: usize = 4;

impl Mappings {
    /// None.
    pub const fn new() -> Self {
        Self {
            by_address: BTreeMap::new(),
            by_memory: BTreeSet::new(),
        }
    }

    /// Joins those who share a mapping of all of `memory` that allows this, if there is one: where
    /// `memory` begins in it.
    pub fn share(&mut self, memory: &Range<u64>, permissions: Permissions) -> Option<u64> {
        let below = self.by_memory.range(..=(memory.start, u64::MAX)).rev();
        for &(start, at) in below.take(LOOKS) {
            let shared = self.by_address.get_mut(&at)?;
            if memory.end <= start + shared.len && shared.permissions.contains(permissions) {
                shared.users += 1;
                return Some(at + (memory.start - start));
            }
        }
        None
    }

    /// Notes a mapping of `len` bytes from `at` on, with one user. `memory` is where the memory begins,
    /// if it is one piece.
    pub fn note(&mut self, at: u64, len: u64, memory: Option<u64>, permissions: Permissions) {
        self.by_memory.extend(memory.map(|memory| (memory, at)));
        let shared = Shared {
            len,
            memory,
            permissions,
            users: 1,
        };
        self.by_address.insert(at, shared);
    }

    /// One who shares the mapping that holds the address `at` goes. The addresses that are to be
    /// unmapped, where that was the last.
    pub fn leave(&mut self, at: u64) -> Option<Range<u64>> {
        let (&start, shared) = self.by_address.range_mut(..=at).next_back()?;
        let len = shared.len;
        if at - start >= len {
            return None;
        }
        shared.users -= 1;
        if shared.users > 0 {
            return None;
        }
        if let Some(memory) = shared.memory {
            self.by_memory.remove(&(memory, start));
        }
        self.by_address.remove(&start);
        Some(start..start + len)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_address.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Permissions = Permissions::READ;
    const WRITE: Permissions = Permissions::WRITE;

    #[test]
    fn what_is_mapped_is_shared_and_ends_with_the_last() {
        let mut mappings = Mappings::new();
        assert_eq!(mappings.share(&(0x1000..0x2000), READ), None);
        mappings.note(0x9_0000, 0x4000, Some(0x1000), READ);
        assert_eq!(mappings.share(&(0x1000..0x5000), READ), Some(0x9_0000));
        assert_eq!(mappings.share(&(0x2000..0x3000), READ), Some(0x9_1000));
        assert_eq!(mappings.share(&(0x2000..0x6000), READ), None, "not all");
        assert_eq!(mappings.share(&(0x0..0x2000), READ), None, "not all");
        assert_eq!(
            mappings.share(&(0x2000..0x3000), WRITE),
            None,
            "not allowed"
        );
        assert_eq!(mappings.leave(0x9_1000), None);
        assert_eq!(mappings.leave(0x9_0000), None);
        assert_eq!(mappings.leave(0x9_4000), None, "not of this one");
        assert_eq!(mappings.leave(0x9_3000), Some(0x9_0000..0x9_4000));
        assert!(mappings.is_empty());
        assert_eq!(mappings.share(&(0x1000..0x2000), READ), None, "gone");
        assert_eq!(mappings.leave(0x9_0000), None);
    }

    #[test]
    fn the_same_memory_may_be_mapped_differently() {
        let mut mappings = Mappings::new();
        mappings.note(0x9_0000, 0x4000, Some(0x1000), READ);
        mappings.note(0x8_0000, 0x4000, Some(0x1000), WRITE);
        mappings.note(0x7_0000, 0x1000, Some(0x2000), READ);
        assert_eq!(mappings.share(&(0x2000..0x4000), WRITE), Some(0x8_1000));
        assert_eq!(mappings.share(&(0x2000..0x4000), READ), Some(0x9_1000));
        assert_eq!(mappings.len(), 3);
        mappings.note(0x6_0000, 0x2000, None, READ);
        assert_eq!(mappings.share(&(0..0x1000), READ), None, "in pieces");
        assert_eq!(mappings.leave(0x6_1000), Some(0x6_0000..0x6_2000));
    }
}
