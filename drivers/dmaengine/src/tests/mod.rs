//! The layer as a whole, promise by promise: the numbers in the names are those of ../README.md.

mod clients;
mod hurry;
mod polling;
mod removal;

use alloc::sync::Arc;
use std::vec::Vec;

use hal::dma::{Destination, Memory, Source};
use hal::host::block_on;
use hal::time::{Duration, poll_until};

use crate::mock::{self, Mock};
use crate::{Channel, ChannelOps, DmaDevice, Flags, Memcpy, Registry, Submitted};

/// Registers a device with as many mock channels.
fn device(registry: &Registry, mocks: &[Arc<Mock>]) -> DmaDevice {
    let ops: Vec<_> = mocks
        .iter()
        .map(|mock| mock.clone() as Arc<dyn ChannelOps>)
        .collect();
    registry.register(mock::info(), ops).unwrap()
}

fn copy(channel: &Channel, len: usize) -> Submitted<Memcpy> {
    let mut memory = Memory::new(len).unwrap();
    memory.fill(7);
    let src = Source::new(Arc::new(memory), 0..len).unwrap();
    let dst = Destination::new(Memory::new(len).unwrap(), 0..len).unwrap();
    let descriptor = channel.prep_memcpy(dst, src, Flags::empty()).unwrap();
    channel.submit(descriptor).unwrap()
}

fn await_that(what: &str, condition: impl FnMut() -> bool) {
    let waited = poll_until(Duration::from_secs(10), Duration::from_millis(1), condition);
    block_on(waited).unwrap_or_else(|_| panic!("never came: {what}"));
}
