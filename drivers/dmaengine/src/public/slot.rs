//! Slots: the numbers by which tables and references name public channels.
//!
//! A slot is one of the machine's CPU-local counters ([`hal::cpu::local_add`]) and what belongs to
//! it: the channel behind it, its state, the alignment it needs. There is one set of slots per
//! machine. Slot 0 stands for "no channel": its counter means nothing.
//!
//! Only the sum of a slot's counters means anything; they are never reset, so that a slot may be
//! used again while a finder that came too late still adds one to it and takes it back.

use alloc::sync::Arc;
use core::num::NonZeroU8;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use hal::cpu::{COUNTERS, KERNEL_COUNTERS};
use spin::{Mutex, RwLock};

use super::count;
use crate::chan::Chan;

/// The number of a slot that is not the dummy.
pub(crate) type Number = NonZeroU8;

/// Numbers at or above this one are not given out.
const END: usize = COUNTERS - KERNEL_COUNTERS;

/// What a slot is doing. The values are those of [`Slot::state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// Nobody's. A finder that came too late may still touch its counter.
    Free,
    /// Names a channel.
    Live,
    /// Names a channel that is being withdrawn: there will be no new references.
    Draining,
    /// Names nothing, but references are left; free again when they are gone.
    Tombstone,
    /// As a tombstone, but nothing proves that its references will have gone ([`count::settle`]).
    /// Not used again.
    Lost,
}

struct Slot {
    state: AtomicU8,
    /// Log2 of the alignment that the channel needs.
    align: AtomicU8,
    /// How many channels it has named.
    generation: AtomicU32,
    chan: RwLock<Option<Arc<Chan>>>,
}

// The array has a place for every byte, so that indexing with one is never out of bounds.
const _: () = assert!(COUNTERS == 256 && END > 1);
static SLOTS: [Slot; COUNTERS] = [const {
    Slot {
        state: AtomicU8::new(State::Free as u8),
        align: AtomicU8::new(0),
        generation: AtomicU32::new(0),
        chan: RwLock::new(None),
    }
}; COUNTERS];
/// Held while a slot changes hands.
static HANDS: Mutex<()> = Mutex::new(());

fn slot(number: Number) -> &'static Slot {
    &SLOTS[usize::from(number.get())]
}

/// Whether the slot names a channel that stays.
pub(crate) fn is_live(number: Number) -> bool {
    // Sequentially consistent, as the store is: an increment of the caller's comes before.
    slot(number).state.load(Ordering::SeqCst) == State::Live as u8
}

/// Log2 of the alignment that the channel behind the slot needs.
pub(crate) fn alignment(number: Number) -> u8 {
    slot(number).align.load(Ordering::Relaxed)
}

/// The channel behind the slot. `None` once it was withdrawn.
pub(crate) fn chan(number: Number) -> Option<Arc<Chan>> {
    slot(number).chan.read().clone()
}

/// All that may be given out.
fn numbers() -> impl Iterator<Item = Number> {
    (1..END as u8).filter_map(Number::new)
}

/// Whether the slot may be given out now.
pub(crate) fn is_free(number: Number) -> bool {
    let state = slot(number).state.load(Ordering::Relaxed);
    // The count of a tombstone only falls.
    state == State::Free as u8
        || (state == State::Tombstone as u8 && count::references(number) == 0)
}

/// Gives `chan` a slot. `None` where all are taken: it is then not public.
pub(crate) fn allocate(chan: &Arc<Chan>) -> Option<Number> {
    let _hands = HANDS.lock();
    let number = numbers().find(|&number| is_free(number))?;
    let slot = slot(number);
    *slot.chan.write() = Some(chan.clone());
    slot.align.store(chan.info.copy_align, Ordering::Relaxed);
    slot.generation.fetch_add(1, Ordering::Relaxed);
    slot.state.store(State::Live as u8, Ordering::SeqCst);
    Some(number)
}

/// Refuses new references to a live slot.
pub(crate) fn drain(number: Number) {
    slot(number)
        .state
        .store(State::Draining as u8, Ordering::SeqCst);
}

/// Takes that back, for a channel that stays.
pub(crate) fn revive(number: Number) {
    slot(number)
        .state
        .store(State::Live as u8, Ordering::SeqCst);
}

/// Takes the channel out of a draining slot that no table names. `settled`: [`count::settle`] has
/// said so since.
pub(crate) fn retire(number: Number, settled: bool) {
    let hands = HANDS.lock();
    let state = match (settled, count::references(number)) {
        (false, _) => State::Lost,
        (true, 0) => State::Free,
        (true, _) => State::Tombstone,
    };
    let slot = slot(number);
    let chan = slot.chan.write().take();
    slot.state.store(state as u8, Ordering::SeqCst);
    drop(hands);
    // Dropped outside the lock: it may be the last reference.
    drop(chan);
}

/// How many slots are in each state: free, live, draining, tombstone, lost.
pub(crate) fn census() -> [usize; 5] {
    let mut census = [0; 5];
    for number in numbers() {
        let state = slot(number).state.load(Ordering::Relaxed);
        if let Some(count) = census.get_mut(usize::from(state)) {
            *count += 1;
        }
    }
    census
}

/// How many channels the slot has named.
#[cfg(test)]
pub(crate) fn generation(number: Number) -> u32 {
    slot(number).generation.load(Ordering::Relaxed)
}
