//! A channel: submitting, the doorbell, retiring.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::mem;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dma_fence::{Context, Fence, FenceError};
use dmaengine::{
    BoxFuture, Capabilities, ChannelOps, Client, Flags, Operation, Rejected, StartError,
    SubmitReason, Work,
};
use hal::dma::{DmaSpace, MapError, Mapping};
use hal::irq::IrqLine;
use ioat_spec::{Control, Descriptor, State};
use spin::Mutex;

use crate::device::Device;
use crate::error::ResetError;
use crate::hardware;
use crate::regs::Regs;
use crate::ring::Ring;
use crate::service::{self, Fault, Requests};
use crate::split;

/// A channel of an engine. The ring exists from start to stop.
pub(crate) struct Chan {
    this: Weak<Chan>,
    pub(crate) device: Arc<Device>,
    pub(crate) index: usize,
    pub(crate) regs: Regs,
    pub(crate) producer: Mutex<Producer>,
    pub(crate) cleaner: Mutex<Cleaner>,
    /// The oldest slot in flight. Written under the cleaner's lock.
    tail: AtomicU64,
    /// The first slot that the doorbell has not announced. Written under the producer's lock.
    issued: AtomicU64,
    pub(crate) requests: Requests,
    /// This channel's own interrupt while the channel is stopped; its task has it meanwhile.
    pub(crate) line: Mutex<Option<IrqLine>>,
    /// What a stopped channel has not finished.
    unfinished: Mutex<Vec<Operation>>,
    /// Whom the channel works for, in the order in which they came.
    pub(crate) clients: Mutex<Vec<Client>>,
    /// Of the fences of what the task is asked for.
    asked: Context,
    running: AtomicBool,
    /// It starts or runs: its interrupt is to be answered.
    awake: AtomicBool,
    pub(crate) doorbells: AtomicU64,
    pub(crate) interrupts: AtomicU64,
    pub(crate) recoveries: AtomicU64,
}

/// What submitting needs.
#[derive(Default)]
pub(crate) struct Producer {
    ring: Option<Arc<Ring>>,
    /// The next slot to write.
    head: u64,
    /// The slot at which CHAINADDR was set last: DMACOUNT counts from there.
    base: u64,
    /// The engine listens to the doorbell. While it does not, slots are written all the same.
    live: bool,
    /// The first slot that no doorbell had announced when the engine was silenced.
    announced: u64,
}

/// What retiring needs.
#[derive(Default)]
pub(crate) struct Cleaner {
    ring: Option<Arc<Ring>>,
    in_flight: VecDeque<InFlight>,
    /// The completion word as it was last looked at.
    last: u64,
    /// Somebody completes operations, outside the lock. Others leave it to them, so that
    /// completions keep their order.
    delivering: bool,
}

/// An operation in the ring, with what the engine reaches for it.
pub(crate) struct InFlight {
    /// The slot after its last.
    end: u64,
    // Before the operation: where both are dropped, the engine loses its access first.
    mapped: Mapped,
    operation: Operation,
}

/// An operation's memory as the engine sees it.
enum Mapped {
    Copy { src: Mapping, dst: Mapping },
    Fill { dst: Mapping, pattern: u64 },
    Null,
}

/// Which operations are taken out of a stopped ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// None.
    None,
    /// The oldest.
    First,
    /// Those that were announced.
    Issued,
    /// All.
    All,
}

impl InFlight {
    /// Takes the engine's access away, then ends the operation.
    pub(crate) fn finish(self, result: Result<(), FenceError>) {
        drop(self.mapped);
        self.operation.complete(result);
    }

    /// Takes the engine's access away and the operation back.
    pub(crate) fn into_operation(self) -> Operation {
        self.operation
    }
}

impl Mapped {
    fn new(space: &DmaSpace, work: &Work) -> Result<Self, SubmitReason> {
        let source = |src| space.map_source(src).map_err(SubmitReason::Map);
        let destination = |dst| space.map_destination(dst).map_err(SubmitReason::Map);
        Ok(match work {
            Work::Memcpy { dst, src } => Self::Copy {
                src: source(src)?,
                dst: destination(dst)?,
            },
            Work::Memset { dst, value } => Self::Fill {
                dst: destination(dst)?,
                pattern: u64::from_ne_bytes([*value; 8]),
            },
            Work::Interrupt => Self::Null,
            _ => return Err(SubmitReason::Unsupported),
        })
    }

    /// Descriptors that it takes, and bytes that they move.
    fn measure(&self, limit: usize) -> (u64, usize) {
        match self {
            Self::Copy { src, dst } => {
                split::measure(split::copy(src.segments(), dst.segments(), limit))
            }
            Self::Fill { dst, .. } => split::measure(split::fill(dst.segments(), limit)),
            Self::Null => (1, 0),
        }
    }

    /// Writes the `count` descriptors from slot `first` on, the last with `control`.
    fn write(&self, ring: &Ring, first: u64, count: u64, limit: usize, control: Control) {
        let last = first + count - 1;
        let control_of = |n| if n == last { control } else { Control::empty() };
        match self {
            Self::Copy { src, dst } => {
                for (n, chunk) in
                    (first..=last).zip(split::copy(src.segments(), dst.segments(), limit))
                {
                    let control = control_of(n);
                    let descriptor = Descriptor::copy(control, chunk.len, chunk.src, chunk.dst, 0);
                    ring.write(n, descriptor);
                }
            }
            Self::Fill { dst, pattern } => {
                for (n, chunk) in (first..=last).zip(split::fill(dst.segments(), limit)) {
                    let control = control_of(n);
                    ring.write(
                        n,
                        Descriptor::fill(control, chunk.len, *pattern, chunk.dst, 0),
                    );
                }
            }
            Self::Null => ring.write(first, Descriptor::null(control, 0)),
        }
    }
}

impl Chan {
    pub(crate) fn new(device: Arc<Device>, index: usize, line: Option<IrqLine>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            regs: device.regs(index),
            device,
            index,
            producer: Mutex::default(),
            cleaner: Mutex::default(),
            tail: AtomicU64::new(0),
            issued: AtomicU64::new(0),
            requests: Requests::default(),
            line: Mutex::new(line),
            unfinished: Mutex::default(),
            clients: Mutex::default(),
            asked: Context::new(),
            running: AtomicBool::new(false),
            awake: AtomicBool::new(false),
            doorbells: AtomicU64::new(0),
            interrupts: AtomicU64::new(0),
            recoveries: AtomicU64::new(0),
        })
    }

    pub(crate) fn tail(&self) -> u64 {
        self.tail.load(Ordering::Acquire)
    }

    pub(crate) fn issued(&self) -> u64 {
        self.issued.load(Ordering::Acquire)
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }

    /// Whether an interrupt may be its own.
    pub(crate) fn is_awake(&self) -> bool {
        self.awake.load(Ordering::Relaxed)
    }

    /// An interrupt came: retires, re-arms, and looks once more, for what completed in between.
    pub(crate) fn interrupted(&self) {
        self.interrupts.fetch_add(1, Ordering::Relaxed);
        self.retire();
        self.regs.arm();
        self.retire();
    }

    /// Completes what the engine has finished, on the caller's stack: a ring's worth at most, so
    /// that an engine that is fed meanwhile keeps nobody here. What is left then is the task's.
    pub(crate) fn retire(&self) {
        let mut budget = self.device.options.slots();
        let mut mine = false;
        while budget > 0 {
            let done = {
                let mut cleaner = self.cleaner.lock();
                if cleaner.delivering && !mine {
                    return;
                }
                let done = self.next_done(&mut cleaner);
                mine = done.is_some();
                cleaner.delivering = mine;
                done
            };
            match done {
                Some(in_flight) => in_flight.finish(Ok(())),
                None => return,
            }
            budget -= 1;
        }
        self.cleaner.lock().delivering = false;
        self.requests.look();
    }

    /// Takes the oldest operation out of the ring if the engine is done with it.
    fn next_done(&self, cleaner: &mut Cleaner) -> Option<InFlight> {
        if !self.is_done(cleaner)? {
            return None;
        }
        let front = cleaner.in_flight.pop_front()?;
        self.tail.store(front.end, Ordering::Release);
        Some(front)
    }

    /// Whether the completion word has passed the oldest operation; `None` where there is none.
    fn is_done(&self, cleaner: &mut Cleaner) -> Option<bool> {
        let ring = cleaner.ring.as_ref()?;
        let word = ring.completion();
        let (tail, address) = (self.tail(), word.address());
        let fresh = word.0 != cleaner.last;
        cleaner.last = word.0;
        if fresh && word.state() == Some(State::Halted) {
            self.requests.fault(Fault::Halted);
        }
        // 0: nothing is done since CHAINADDR. The slot before the tail: nothing new is.
        if address == 0 || address == ring.address(tail - 1) {
            return None;
        }
        let Some(done) = ring.position(address, tail, self.issued()) else {
            if fresh {
                self.requests.fault(Fault::Foreign);
            }
            return None;
        };
        Some(cleaner.in_flight.front()?.end <= done + 1)
    }

    /// Lets the doorbell be silent while the engine is stopped.
    pub(crate) fn silence(&self) {
        let mut producer = self.producer.lock();
        if mem::replace(&mut producer.live, false) {
            producer.announced = self.issued();
        }
    }

    /// Takes operations out of a ring whose engine is stopped, and the right to complete before
    /// all others, which [`Chan::delivered`] gives back. `None` while somebody else completes, or
    /// something is left to be completed.
    ///
    /// A ring that is `closing` takes nothing any more from the same moment on, so that nothing is
    /// left behind in it.
    pub(crate) fn take(&self, scope: Scope, closing: bool) -> Option<Vec<InFlight>> {
        let mut producer = self.producer.lock();
        let mut cleaner = self.cleaner.lock();
        if cleaner.delivering || self.is_done(&mut cleaner) == Some(true) {
            return None;
        }
        cleaner.delivering = true;
        if scope == Scope::All {
            self.issued.store(producer.head, Ordering::Release);
        }
        // What was issued while the engine was silent is no business of its fault.
        let end = match scope {
            Scope::All => producer.head,
            Scope::None => 0,
            Scope::First | Scope::Issued => producer.announced,
        };
        let reached = cleaner
            .in_flight
            .iter()
            .take_while(|entry| entry.end <= end)
            .count();
        let count = if scope == Scope::First {
            reached.min(1)
        } else {
            reached
        };
        if closing {
            producer.ring = None;
        }
        let taken: Vec<_> = cleaner.in_flight.drain(..count).collect();
        if let Some(last) = taken.last() {
            self.tail.store(last.end, Ordering::Release);
        }
        Some(taken)
    }

    /// Lets others complete again.
    pub(crate) fn delivered(&self) {
        self.cleaner.lock().delivering = false;
        self.retire();
    }

    /// Sets an engine that was reset or suspended to work again, on what is left in the ring.
    pub(crate) fn restart(&self) {
        let mut producer = self.producer.lock();
        let mut cleaner = self.cleaner.lock();
        let Some(ring) = producer.ring.clone() else {
            return;
        };
        ring.clear_completion();
        cleaner.last = 0;
        let (tail, issued) = (self.tail(), self.issued());
        producer.base = tail;
        hardware::run(&self.regs, &ring, tail);
        if issued > tail {
            self.regs.doorbell(issued - tail);
        }
        producer.live = true;
    }

    /// Gives up the ring, of an engine that is stopped for good. Nothing enters any more.
    pub(crate) fn free_ring(&self) {
        let rings = {
            let mut producer = self.producer.lock();
            let mut cleaner = self.cleaner.lock();
            producer.live = false;
            (producer.ring.take(), cleaner.ring.take())
        };
        self.running.store(false, Ordering::Relaxed);
        self.awake.store(false, Ordering::Relaxed);
        drop(rings);
    }

    /// Keeps an operation for [`ChannelOps::reclaim`].
    pub(crate) fn keep(&self, operation: Operation) {
        self.unfinished.lock().push(operation);
    }

    /// Ends what was kept and nobody reclaimed.
    pub(crate) fn abandon(&self, error: FenceError) {
        for operation in self.reclaim() {
            operation.complete(Err(error));
        }
    }

    async fn start(&self) -> Result<(), StartError> {
        self.awake.store(true, Ordering::Relaxed);
        let started = self.try_start().await;
        if started.is_err() {
            self.awake.store(false, Ordering::Relaxed);
        }
        started
    }

    async fn try_start(&self) -> Result<(), StartError> {
        let device = &self.device;
        if !device.is_usable() {
            return Err(StartError::Gone);
        }
        let ring = Ring::new(&device.dma, device.options.slots()).map_err(StartError::Memory)?;
        reset(device, &self.regs).await?;
        if let Err((status, errors)) = hardware::start(&self.regs, &ring).await {
            // The engine must let go of the ring before it is freed.
            reset(device, &self.regs).await?;
            return Err(StartError::NotReady { status, errors });
        }
        let ring = Arc::new(ring);
        // Slot 0 held the descriptor of the start.
        self.tail.store(1, Ordering::Release);
        self.issued.store(1, Ordering::Release);
        let cleaner = Cleaner {
            last: ring.completion().0,
            ring: Some(ring.clone()),
            ..Cleaner::default()
        };
        // The one before is dropped outside the lock.
        drop(mem::replace(&mut *self.cleaner.lock(), cleaner));
        *self.producer.lock() = Producer {
            ring: Some(ring),
            head: 1,
            base: 0,
            live: true,
            announced: 1,
        };
        self.running.store(true, Ordering::Relaxed);
        if let Some(this) = self.this.upgrade() {
            self.requests.open();
            let line = self.line.lock().take();
            hal::task::spawn("ioat", service::run(this, line));
        }
        Ok(())
    }
}

async fn reset(device: &Device, regs: &Regs) -> Result<(), StartError> {
    match hardware::reset(device, regs).await {
        Ok(_) => Ok(()),
        Err(ResetError::Gone) => Err(StartError::Gone),
        Err(ResetError::Stuck) => Err(StartError::NotReady {
            status: regs.status().map_or(u64::MAX, |status| status.0),
            errors: regs.errors().map_or(u32::MAX, |errors| errors.bits()),
        }),
        Err(ResetError::Errors(errors)) => Err(StartError::NotReady {
            status: regs.status().map_or(u64::MAX, |status| status.0),
            errors,
        }),
    }
}

impl ChannelOps for Chan {
    fn kinds(&self) -> Capabilities {
        Capabilities::MEMCPY | Capabilities::MEMSET | Capabilities::INTERRUPT
    }

    fn start<'a>(&'a self, _client: &'a Client) -> BoxFuture<'a, Result<(), StartError>> {
        Box::pin(self.start())
    }

    fn set_client<'a>(&'a self, client: &'a Client) -> BoxFuture<'a, Result<(), StartError>> {
        self.clients.lock().push(client.clone());
        Box::pin(async { Ok(()) })
    }

    fn release_client<'a>(&'a self, client: &'a Client) -> BoxFuture<'a, ()> {
        let mut clients = self.clients.lock();
        if let Some(index) = clients.iter().position(|other| other == client) {
            clients.remove(index);
        }
        Box::pin(async {})
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            // The task signals, or has ended before: both are an end.
            let _ = self.requests.stop(&self.asked).wait().await;
        })
    }

    fn submit(&self, operation: Operation) -> Result<(), Box<Rejected>> {
        let device = &self.device;
        let limit = device.transfer_limit();
        let mapped = match Mapped::new(&device.dma, operation.work()) {
            Ok(mapped) => mapped,
            Err(reason) => return Err(Rejected::new(operation, reason)),
        };
        let (count, bytes) = mapped.measure(limit);
        if bytes != operation.work().len() {
            let reason = SubmitReason::Map(MapError::Exhausted);
            return Err(Rejected::new(operation, reason));
        }
        let mut producer = self.producer.lock();
        let Producer { ring, head, .. } = &mut *producer;
        let Some(ring) = ring.as_ref().filter(|_| device.is_usable()) else {
            return Err(Rejected::new(operation, SubmitReason::Gone));
        };
        if count > ring.capacity() {
            return Err(Rejected::new(operation, SubmitReason::TooLarge));
        }
        // The tail only moves on: there is at least this much room.
        if *head - self.tail() + count > ring.capacity() {
            return Err(Rejected::new(operation, SubmitReason::Full));
        }
        let mut control = Control::COMPLETION;
        control.set(
            Control::INT_EN,
            operation.flags().contains(Flags::INTERRUPT),
        );
        control.set(Control::FENCE, operation.flags().contains(Flags::FENCE));
        mapped.write(ring, *head, count, limit, control);
        *head += count;
        let entry = InFlight {
            end: *head,
            operation,
            mapped,
        };
        self.cleaner.lock().in_flight.push_back(entry);
        Ok(())
    }

    fn issue_pending(&self) {
        {
            let producer = self.producer.lock();
            if self.issued() == producer.head {
                return;
            }
            self.issued.store(producer.head, Ordering::Release);
            if producer.live {
                // The register write orders the descriptors before itself.
                self.regs.doorbell(producer.head - producer.base);
                self.doorbells.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.requests.watch();
    }

    fn poll(&self) {
        self.retire();
    }

    fn terminate_all(&self) -> Fence {
        self.requests.terminate(&self.asked)
    }

    fn pause(&self) -> Fence {
        self.requests.pause(&self.asked)
    }

    fn resume(&self) {
        self.requests.resume();
    }

    fn reclaim(&self) -> Vec<Operation> {
        mem::take(&mut *self.unfinished.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmaengine::{Sources, Xor};
    use hal::dma::{Destination, Memory, Source};

    #[test]
    fn work_that_no_descriptor_does_is_refused() {
        let src = Source::new(Arc::new(Memory::new(64).unwrap()), 0..64).unwrap();
        let dst = Destination::new(Memory::new(64).unwrap(), 0..64).unwrap();
        let srcs = Sources::from_iter([src.clone(), src]);
        let work = Work::Xor(Box::new(Xor { dst, srcs }));
        let mapped = Mapped::new(&hal::host::direct_space(), &work);
        assert_eq!(mapped.err(), Some(SubmitReason::Unsupported));
    }
}
