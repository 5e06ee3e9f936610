//! Descriptor memory: a power of two of slots, linked into a ring, and the completion word.
//!
//! Slots are counted without end; slot `n` lies at `n` modulo their number. From `tail` to `issued`
//! they belong to the engine, from `issued` to `head` they are written and wait for the doorbell,
//! the rest is free. One slot always stays free, so that the last completed descriptor is never
//! mistaken for one in flight.
//!
//! This module only moves memory. Writing a slot is not ordered by itself: the doorbell, a
//! register write, orders all earlier writes before itself. Reading the completion word acquires:
//! what the engine wrote before it is seen after it.

use core::ops::Range;
use core::sync::atomic::Ordering;

use hal::dma::{Coherent, CoherentError, DmaSpace};
use ioat_spec::descriptor::{LEN, offset};
use ioat_spec::{ChanSts, Descriptor};

use crate::queue::Slots;

pub(crate) struct Ring {
    /// The slots, then the completion word.
    memory: Coherent,
    slots: u64,
}

impl Ring {
    /// `slots`, a power of two, all zero but for their links.
    pub(crate) fn new(space: &DmaSpace, slots: u64) -> Result<Self, CoherentError> {
        let memory = space.coherent((slots as usize + 1) * LEN, LEN)?;
        Ok(Self { memory, slots })
    }

    /// Takes its memory out of use for good: the engine may still read and write it.
    pub(crate) fn withhold(self) {
        self.memory.withhold();
    }

    /// Where the engine sees slot `n`.
    pub(crate) fn address(&self, n: u64) -> u64 {
        self.memory.addr().bits() + (n & (self.slots - 1)) * LEN as u64
    }

    /// Where the engine writes the completion word.
    pub(crate) fn completion_address(&self) -> u64 {
        self.memory.addr().bits() + self.slots * LEN as u64
    }

    /// Writes slot `n`, linked to the one after it.
    #[inline]
    pub(crate) fn write(&self, n: u64, mut descriptor: Descriptor) {
        let start = (n & (self.slots - 1)) as usize * LEN;
        descriptor.0[offset::NEXT / 8] = self.address(n + 1);
        self.memory
            .store64s(start, &descriptor.0, Ordering::Relaxed);
    }

    /// The completion word.
    pub(crate) fn completion(&self) -> ChanSts {
        let offset = self.slots as usize * LEN;
        ChanSts(self.memory.load64(offset, Ordering::Acquire))
    }

    /// Forgets the completion word, while the engine is stopped.
    pub(crate) fn clear_completion(&self) {
        let offset = self.slots as usize * LEN;
        self.memory.store64(offset, 0, Ordering::Release);
    }

    /// Which of the slots that it was `given` the engine means by `address`; `None` where it means
    /// none of them.
    pub(crate) fn position(&self, address: u64, given: Range<u64>) -> Option<u64> {
        let distance = address.checked_sub(self.memory.addr().bits())?;
        let slot = distance / LEN as u64;
        if !distance.is_multiple_of(LEN as u64) || slot >= self.slots {
            return None;
        }
        // The first count at or after the tail that lies at this slot.
        let n = given.start + (slot.wrapping_sub(given.start) & (self.slots - 1));
        (n < given.end).then_some(n)
    }
}

impl Slots for Ring {
    fn capacity(&self) -> u64 {
        self.slots - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hal::host::{bus_read, bus_write, direct_space};
    use ioat_spec::{Control, State};
    use proptest::prelude::*;

    fn ring(slots: u64) -> Ring {
        Ring::new(&direct_space(), slots).unwrap()
    }

    fn slot_from_bus(ring: &Ring, n: u64) -> Descriptor {
        let mut bytes = [0; LEN];
        bus_read(ring.address(n), &mut bytes).unwrap();
        let (words, _) = bytes.as_chunks::<8>();
        Descriptor(core::array::from_fn(|i| u64::from_le_bytes(words[i])))
    }

    #[test]
    fn slots_are_linked_into_a_ring() {
        let ring = ring(8);
        for n in 0..20 {
            ring.write(n, Descriptor::copy(Control::COMPLETION, 100, n, 2, 3));
        }
        let mut n = 12;
        for _ in 0..8 {
            let descriptor = slot_from_bus(&ring, n);
            assert_eq!(descriptor.next(), ring.address(n + 1));
            assert_eq!(descriptor.size(), 100);
            assert_eq!(descriptor.word(offset::SRC), n);
            n += 1;
        }
        assert_eq!(ring.address(n), ring.address(12));
    }

    #[test]
    fn the_completion_word_lies_apart() {
        let ring = ring(4);
        assert_eq!(ring.completion_address(), ring.address(3) + LEN as u64);
        let word = ChanSts::new(ring.address(2), State::Idle);
        bus_write(ring.completion_address(), &word.0.to_le_bytes()).unwrap();
        assert_eq!(ring.completion(), word);
        ring.clear_completion();
        assert_eq!(ring.completion().address(), 0);
    }

    #[test]
    fn foreign_addresses_have_no_position() {
        let ring = ring(8);
        let base = ring.address(0);
        for address in [0, base - 64, base + 1, base + 32, base + 8 * 64, !63] {
            assert_eq!(ring.position(address, 0..7), None, "{address:#x}");
        }
        assert_eq!(
            ring.position(ring.address(5), 6..9),
            None,
            "completed before"
        );
        assert_eq!(
            ring.position(ring.address(10), 6..9),
            None,
            "not issued yet"
        );
    }

    proptest! {
        #[test]
        fn positions_are_found_across_the_wrap(tail in 0u64..1000, used in 0u64..8, at in 0u64..8) {
            let ring = ring(8);
            let n = tail + at;
            let expected = (at < used).then_some(n);
            prop_assert_eq!(ring.position(ring.address(n), tail..tail + used), expected);
        }
    }
}
