//! Buffers whose every byte is accounted for.

use std::sync::Arc;

use dmaengine::{Channel, Flags, Memcpy, Submitted};
use hal::dma::{Destination, Memory, Source};

/// A small generator of numbers; the seed is printed by whoever fails.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// `len` bytes of noise.
pub(crate) fn noise(len: usize, seed: u64) -> Arc<Memory> {
    let mut random = Random(seed | 1);
    let mut memory = Memory::new(len).unwrap();
    for chunk in memory.chunks_mut(8) {
        let bytes = random.next().to_le_bytes();
        chunk.copy_from_slice(&bytes[..chunk.len()]);
    }
    Arc::new(memory)
}

/// A destination, and a source that is full of `byte`.
pub(crate) fn filled(len: usize, byte: u8) -> (Destination, Source) {
    let mut src = Memory::new(len).unwrap();
    src.fill(byte);
    let dst = Destination::new(Memory::new(len).unwrap(), 0..len).unwrap();
    (dst, Source::new(Arc::new(src), 0..len).unwrap())
}

/// A destination buffer and what it should hold.
pub(crate) struct Target {
    memory: Option<Memory>,
    expected: Vec<u8>,
}

/// A copy under way into a [`Target`].
pub(crate) struct Pending {
    target: usize,
    submitted: Submitted<Memcpy>,
    src: Source,
    dst_off: usize,
}

/// How far around a destination its neighbours are compared after each copy.
const NEIGHBOURS: usize = 512;

impl Target {
    pub(crate) fn new(len: usize, seed: u64) -> Self {
        let memory = Arc::into_inner(noise(len, seed)).unwrap();
        Self {
            expected: memory.to_vec(),
            memory: Some(memory),
        }
    }

    /// Compares the whole buffer.
    pub(crate) fn check(&self) {
        let memory = self.memory.as_ref().unwrap();
        assert!(
            memory[..] == self.expected[..],
            "a byte beside a copy changed"
        );
    }
}

/// Submits a copy of `len` bytes into target `index`, waiting for room in the ring.
pub(crate) async fn submit(
    channel: &Channel,
    targets: &mut [Target],
    index: usize,
    src: &Arc<Memory>,
    (src_off, dst_off, len): (usize, usize, usize),
    flags: Flags,
) -> Pending {
    let memory = targets[index].memory.take().unwrap();
    let dst = Destination::new(memory, dst_off..dst_off + len).unwrap();
    let src = Source::new(src.clone(), src_off..src_off + len).unwrap();
    let descriptor = channel.prep_memcpy(dst, src.clone(), flags).unwrap();
    let submitted = channel.submit_wait(descriptor).await.unwrap();
    Pending {
        target: index,
        submitted,
        src,
        dst_off,
    }
}

/// Awaits a copy, and checks it and what lies around it.
pub(crate) async fn finish(targets: &mut [Target], pending: Pending) {
    let Pending {
        target,
        submitted,
        src,
        dst_off,
    } = pending;
    let finished = submitted.finish().await;
    finished.result.unwrap();
    let memory = finished.buffers.unwrap().0.into_memory();
    let target = &mut targets[target];
    let end = dst_off + src.len();
    target.expected[dst_off..end].copy_from_slice(src.bytes());
    let around = dst_off.saturating_sub(NEIGHBOURS)..(end + NEIGHBOURS).min(memory.len());
    let len = src.len();
    assert!(
        memory[around.clone()] == target.expected[around],
        "a copy of {len} bytes to {dst_off:#x} is wrong, or its neighbours are"
    );
    target.memory = Some(memory);
}

/// Polls until `submitted` has ended.
pub(crate) async fn poll(channel: &Channel, submitted: &Submitted<Memcpy>) {
    while !submitted.fence().is_signalled() {
        channel.poll();
        hal::task::yield_now().await;
    }
}

impl Pending {
    pub(crate) fn submitted(&self) -> &Submitted<Memcpy> {
        &self.submitted
    }
}
