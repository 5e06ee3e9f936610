//! Carrying out one descriptor.
//!
//! Nothing here knows of registers or channels: a descriptor goes in, memory changes, an
//! [`Outcome`] comes out. Addresses of data have [`Limits::address_bits`] bits; FreeBSD ioat(4)
//! provokes its errors by longer ones.

use std::sync::atomic::{AtomicBool, Ordering};

use ioat_spec::descriptor::offset;
use ioat_spec::{ChanErr, Control, Descriptor, DmaCap, Op};

use crate::memory::{CopyError, GuestMemory};

/// A copy looks this often, in bytes, whether it shall stop.
pub const CHUNK: usize = 256 << 10;

/// Where the page of a page-break copy ends.
const PAGE: u64 = 4096;

/// What the engine accepts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Longest transfer in bytes.
    pub(crate) transfer: u64,
    /// Bits of a data address.
    pub(crate) address_bits: u32,
    /// Advertised operations.
    pub(crate) capabilities: DmaCap,
}

/// How a descriptor ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is done; this many bytes were written.
    Done(u64),
    /// It was told to stop, and can be done again from its start.
    Stopped,
    /// It failed, with one bit.
    Failed(ChanErr),
}

/// Whether a descriptor moves data, as far as can be told before it is checked.
pub(crate) fn moves_data(descriptor: &Descriptor) -> bool {
    descriptor.op() != Op::COPY || !descriptor.control().contains(Control::NULL)
}

/// Reads the descriptor at `addr`.
pub(crate) fn fetch(memory: &dyn GuestMemory, addr: u64) -> Result<Descriptor, ChanErr> {
    if !addr.is_multiple_of(ioat_spec::descriptor::LEN as u64) {
        return Err(ChanErr::NEXT_ADDR);
    }
    let mut descriptor = Descriptor::default();
    for (n, word) in (0..).zip(&mut descriptor.0) {
        *word = memory
            .load64(addr + 8 * n)
            .map_err(|_| ChanErr::DESCRIPTOR)?;
    }
    Ok(descriptor)
}

/// Carries out `descriptor`, as long as `stop` is not set.
pub(crate) fn execute(
    descriptor: &Descriptor,
    limits: &Limits,
    memory: &dyn GuestMemory,
    stop: &AtomicBool,
) -> Outcome {
    match checked(descriptor, limits) {
        Ok(Work::Nothing) => Outcome::Done(0),
        Ok(Work::Copy { src, dst }) => copy(&src, &dst, memory, stop),
        Ok(Work::Fill { pattern, dst }) => fill(pattern, &dst, memory, stop),
        Err(error) => Outcome::Failed(error),
    }
}

/// One or two stretches of memory, in order.
type Ranges = [Range; 2];

#[derive(Clone, Copy, Debug, Default)]
struct Range {
    addr: u64,
    len: u64,
}

enum Work {
    Nothing,
    Copy { src: Ranges, dst: Ranges },
    Fill { pattern: u64, dst: Ranges },
}

fn checked(descriptor: &Descriptor, limits: &Limits) -> Result<Work, ChanErr> {
    let control = descriptor.control();
    let size = u64::from(descriptor.size());
    let op = descriptor.op();
    let known = match op {
        Op::COPY => true,
        Op::FILL => limits.capabilities.contains(DmaCap::FILL_BLOCK),
        _ => false,
    };
    let plain = (control & (Control::SRC_PAGE_BREAK | Control::DST_PAGE_BREAK)).is_empty();
    if !known || !(plain || limits.capabilities.contains(DmaCap::PAGE_BREAK)) {
        return Err(ChanErr::CONTROL);
    }
    if size == 0 || size > limits.transfer {
        return Err(ChanErr::LENGTH);
    }
    if !moves_data(descriptor) {
        return Ok(Work::Nothing);
    }
    let place = |first, broken, next, error| {
        let ranges = ranges(
            descriptor.word(first),
            control.contains(broken),
            descriptor.word(next),
            size,
        );
        let end = 1u64 << limits.address_bits;
        let reachable = |range: &Range| range.addr < end && range.len <= end - range.addr;
        if ranges.iter().all(reachable) {
            Ok(ranges)
        } else {
            Err(error)
        }
    };
    let dst = || {
        place(
            offset::DST,
            Control::DST_PAGE_BREAK,
            offset::NEXT_DST,
            ChanErr::DST_ADDR,
        )
    };
    if op == Op::FILL {
        let pattern = descriptor.word(offset::SRC);
        return Ok(Work::Fill {
            pattern,
            dst: dst()?,
        });
    }
    Ok(Work::Copy {
        src: place(
            offset::SRC,
            Control::SRC_PAGE_BREAK,
            offset::NEXT_SRC,
            ChanErr::SRC_ADDR,
        )?,
        dst: dst()?,
    })
}

/// With a page break, what is left after the first page lies at `next`.
fn ranges(addr: u64, broken: bool, next: u64, size: u64) -> Ranges {
    let first = if broken {
        size.min(PAGE - addr % PAGE)
    } else {
        size
    };
    let range = |addr, len| Range { addr, len };
    let rest = size - first;
    [
        range(addr, first),
        range(if rest > 0 { next } else { 0 }, rest),
    ]
}

/// Walks through stretches of memory: the next part, of at most `most` bytes.
struct Walk<'a> {
    left: std::slice::Iter<'a, Range>,
    now: Range,
}

impl<'a> Walk<'a> {
    fn new(ranges: &'a Ranges) -> Self {
        Self {
            left: ranges.iter(),
            now: Range::default(),
        }
    }

    /// Bytes that lie together from here; 0 at the end.
    fn run(&mut self) -> u64 {
        while self.now.len == 0 {
            match self.left.next() {
                Some(range) => self.now = *range,
                None => return 0,
            }
        }
        self.now.len
    }

    /// The address here; then `len` bytes on, which are at most [`Walk::run`].
    fn step(&mut self, len: u64) -> u64 {
        let addr = self.now.addr;
        self.now.addr += len;
        self.now.len -= len;
        addr
    }
}

fn copy(src: &Ranges, dst: &Ranges, memory: &dyn GuestMemory, stop: &AtomicBool) -> Outcome {
    let (mut src, mut dst) = (Walk::new(src), Walk::new(dst));
    let mut done = 0;
    loop {
        let len = src.run().min(dst.run()).min(CHUNK as u64);
        if len == 0 {
            return Outcome::Done(done);
        }
        if stop.load(Ordering::Relaxed) {
            return Outcome::Stopped;
        }
        match memory.copy(src.step(len), dst.step(len), len as usize) {
            Ok(()) => done += len,
            Err(CopyError::Source) => return Outcome::Failed(ChanErr::READ_DATA),
            Err(CopyError::Destination) => return Outcome::Failed(ChanErr::WRITE_DATA),
        }
    }
}

fn fill(pattern: u64, dst: &Ranges, memory: &dyn GuestMemory, stop: &AtomicBool) -> Outcome {
    const BLOCK: usize = 4096;
    let mut block = [0; BLOCK + 8];
    for word in block.chunks_exact_mut(8) {
        word.copy_from_slice(&pattern.to_le_bytes());
    }
    let mut dst = Walk::new(dst);
    let mut done = 0;
    loop {
        let len = dst.run().min(BLOCK as u64);
        if len == 0 {
            return Outcome::Done(done);
        }
        if stop.load(Ordering::Relaxed) {
            return Outcome::Stopped;
        }
        // The pattern goes on from the first byte filled, across a page break too.
        let phase = (done % 8) as usize;
        let bytes = &block[phase..phase + len as usize];
        if memory.write(dst.step(len), bytes).is_err() {
            return Outcome::Failed(ChanErr::WRITE_DATA);
        }
        done += len;
    }
}
