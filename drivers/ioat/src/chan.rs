//! A channel: submitting, the doorbell, retiring.

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::mem;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dma_fence::{Context, Fence, FenceError};
use dmaengine::{
    BoxFuture, Capabilities, ChannelOps, Client, Flags, Operation, Rejected, StartError,
    SubmitReason, Work,
};
use hal::dma::MapError;
use hal::irq::IrqLine;
use ioat_spec::{Control, Descriptor, State};
use spin::Mutex;

use crate::device::Device;
use crate::error::ResetError;
use crate::hardware;
use crate::queue::{Queue, Refusal, Scope};
use crate::regs::Regs;
use crate::ring::Ring;
use crate::service::{self, Fault, Requests};
use crate::split::{self, Chunk};

/// A channel of an engine. The ring exists from start to stop.
pub(crate) struct Chan {
    this: Weak<Chan>,
    pub(crate) device: Arc<Device>,
    pub(crate) index: usize,
    pub(crate) regs: Regs,
    queue: Queue<Ring, Operation>,
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

/// What a channel that is gone or stopped hands back. Its buffers are the device's no more, unless it
/// is `exposed`: then the device may still write them.
pub(crate) fn hand_back(mut operation: Operation, exposed: bool) -> Operation {
    operation.unmap();
    if exposed {
        operation.expose();
    }
    operation
}

/// Writes the descriptors for it, `len` bytes in all, into the free slots, the last with
/// `control`. How many they are, of which those are written that find a slot; `None` where
/// not just `len` bytes are mapped.
fn write(
    operation: &Operation,
    ring: &Ring,
    free: Range<u64>,
    limit: usize,
    control: Control,
) -> Option<u64> {
    let work = operation.work();
    let (dst, src) = operation.mapped().segments();
    let len = work.len();
    match work {
        Work::Memcpy { .. } => {
            let copy = |control, chunk: Chunk| {
                Descriptor::copy(control, chunk.len, chunk.src, chunk.dst, 0)
            };
            if let Some(chunk) = split::single(src.clone(), dst.clone(), limit)
                && chunk.len as usize == len
            {
                if !free.is_empty() {
                    ring.write(free.start, copy(control, chunk));
                }
                return Some(1);
            }
            let chunks = split::copy(src, dst, limit);
            write_chunks(ring, free, len, chunks, control, copy)
        }
        Work::Memset { value, .. } => {
            let pattern = u64::from_ne_bytes([*value; 8]);
            let chunks = split::fill(dst, limit);
            write_chunks(ring, free, len, chunks, control, |control, chunk| {
                Descriptor::fill(control, chunk.len, pattern, chunk.dst, 0)
            })
        }
        Work::Interrupt => {
            if !free.is_empty() {
                ring.write(free.start, Descriptor::null(control, 0));
            }
            Some(1)
        }
        _ => None,
    }
}

fn write_chunks(
    ring: &Ring,
    mut free: Range<u64>,
    len: usize,
    chunks: impl Iterator<Item = Chunk>,
    control: Control,
    descriptor: impl Fn(Control, Chunk) -> Descriptor,
) -> Option<u64> {
    let (mut count, mut left) = (0, len);
    for chunk in chunks {
        count += 1;
        left = left.checked_sub(chunk.len as usize)?;
        if let Some(slot) = free.next() {
            let control = if left == 0 { control } else { Control::empty() };
            ring.write(slot, descriptor(control, chunk));
        }
    }
    (left == 0).then_some(count)
}

impl Chan {
    pub(crate) fn new(device: Arc<Device>, index: usize, line: Option<IrqLine>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            regs: device.regs(index),
            device,
            index,
            queue: Queue::new(),
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
        self.queue.tail()
    }

    pub(crate) fn issued(&self) -> u64 {
        self.queue.issued()
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
        let budget = self.device.options.slots();
        let look = |ring: &Ring, seen: &mut u64, given| self.look(ring, seen, given);
        if self
            .queue
            .complete(budget, look, |operation| operation.complete(Ok(())))
        {
            self.requests.look();
        }
    }

    /// Up to which of the slots that it was `given` the engine is done, by its completion word.
    fn look(&self, ring: &Ring, seen: &mut u64, given: Range<u64>) -> u64 {
        let word = ring.completion();
        let address = word.address();
        let fresh = mem::replace(seen, word.0) != word.0;
        if fresh && word.state() == Some(State::Halted) {
            self.requests.fault(Fault::Halted);
        }
        // 0: nothing is done since CHAINADDR. The slot before the tail: nothing new is.
        if address == 0 || address == ring.address(given.start - 1) {
            return given.start;
        }
        match ring.position(address, given.clone()) {
            Some(slot) => slot + 1,
            None => {
                if fresh {
                    self.requests.fault(Fault::Foreign);
                }
                given.start
            }
        }
    }

    /// Lets the doorbell be silent while the engine is stopped.
    pub(crate) fn silence(&self) {
        self.queue.silence();
    }

    /// Takes operations out of a ring whose engine is stopped; see [`Queue::take`].
    pub(crate) fn take(&self, scope: Scope, closing: bool) -> Option<Vec<Operation>> {
        let look = |ring: &Ring, seen: &mut u64, given| self.look(ring, seen, given);
        self.queue.take(scope, closing, look)
    }

    /// Lets others complete again.
    pub(crate) fn delivered(&self) {
        self.queue.delivered();
        self.retire();
    }

    /// Sets an engine that was reset or suspended to work again, on what is left in the ring.
    pub(crate) fn restart(&self) {
        self.queue.restart(|ring, tail, issued| {
            ring.clear_completion();
            hardware::run(&self.regs, ring, tail);
            if issued > 0 {
                self.regs.doorbell(issued);
            }
        });
    }

    /// Gives up the ring, of an engine that is stopped for good. Nothing enters any more. Where the
    /// engine may still reach it, its memory is not used again.
    pub(crate) fn free_ring(&self) {
        let ring = self.queue.close();
        self.running.store(false, Ordering::Relaxed);
        self.awake.store(false, Ordering::Relaxed);
        if let Some(ring) = ring.filter(|_| self.device.is_exposed()) {
            ring.withhold();
        }
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
            if let Err(error) = reset(device, &self.regs).await {
                if device.is_exposed() {
                    ring.withhold();
                }
                return Err(error);
            }
            return Err(StartError::NotReady { status, errors });
        }
        // Slot 0 held the descriptor of the start.
        let seen = ring.completion().0;
        self.queue.open(Arc::new(ring), 1, seen);
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

    fn submit(&self, mut operation: Operation) -> Result<(), Rejected> {
        let device = &self.device;
        let limit = device.transfer_limit();
        if let Err(reason) = operation.map(&device.dma) {
            return Err(Rejected::new(operation, reason));
        }
        if !device.is_usable() {
            return Err(Rejected::new(operation, SubmitReason::Gone));
        }
        let flags = operation.flags();
        let mut control = Control::COMPLETION;
        control.set(Control::INT_EN, flags.contains(Flags::INTERRUPT));
        control.set(Control::FENCE, flags.contains(Flags::FENCE));
        let write =
            |ring: &Ring, free, operation: &Operation| write(operation, ring, free, limit, control);
        self.queue
            .push(operation, write)
            .map_err(|(mut operation, refusal)| {
                operation.unmap();
                let reason = match refusal {
                    Refusal::Closed => SubmitReason::Gone,
                    Refusal::TooLarge => SubmitReason::TooLarge,
                    Refusal::Full => SubmitReason::Full,
                    Refusal::Torn => SubmitReason::Map(MapError::Exhausted),
                };
                Rejected::new(operation, reason)
            })
    }

    fn issue_pending(&self) {
        let issued = self.queue.issue(|slots| {
            // The register write orders the descriptors before itself.
            self.regs.doorbell(slots);
            self.doorbells.fetch_add(1, Ordering::Relaxed);
        });
        if issued {
            self.requests.watch();
        }
    }

    /// What does not interrupt is found by the watchdog, in tens of milliseconds.
    fn ends_silently(&self) -> bool {
        true
    }

    fn has_unissued(&self) -> bool {
        self.queue.has_unissued()
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
