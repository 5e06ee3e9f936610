//! The kernel as the machine of the `hal`.

use core::future::Future;
use core::pin::Pin;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::task::Waker;

use alloc::boxed::Box;
use hal::cpu::BarrierTimeout;
use hal::{Machine, RawMemory, RawScattered, TimerId};

use crate::arch::x86_64::{self as arch, percpu, smp};
use crate::mm;
use crate::mm::frames::FRAMES;
use crate::numa;
use crate::task;
use crate::time::{clock, timers};

struct Kernel;

/// Buffers handed out and not yet back: the allocator's own count.
static BUFFERS: AtomicUsize = AtomicUsize::new(0);

/// Installs the kernel as the machine.
pub fn install() {
    hal::install(&Kernel);
}

/// How many buffers are handed out.
pub fn buffers() -> usize {
    BUFFERS.load(Ordering::Relaxed)
}

/// Scattered memory, which counts as one buffer.
struct Counted {
    _memory: Box<dyn Send + Sync>,
}

impl Counted {
    fn new(memory: Box<dyn Send + Sync>) -> Self {
        BUFFERS.fetch_add(1, Ordering::Relaxed);
        Self { _memory: memory }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        BUFFERS.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Machine for Kernel {
    fn now_ns(&self) -> u64 {
        clock::now_ns()
    }

    fn set_timer(&self, deadline_ns: u64, waker: Waker) -> TimerId {
        TimerId(timers::set(deadline_ns, waker))
    }

    fn cancel_timer(&self, timer: TimerId) {
        timers::cancel(timer.0);
    }

    fn spawn(
        &self,
        name: &'static str,
        cpu: Option<usize>,
        future: Pin<Box<dyn Future<Output = ()> + Send>>,
    ) {
        task::spawn_boxed(name, cpu, future).detach();
    }

    fn alloc_memory(&self, len: usize, align: usize, limit: u64) -> Option<RawMemory> {
        // A block is as long as its alignment, so that its length alone gives it back.
        let len = len.max(align);
        let phys = FRAMES.lock().alloc(len, mm::PAGE, limit)?;
        let ptr = NonNull::new(mm::direct(phys))?;
        BUFFERS.fetch_add(1, Ordering::Relaxed);
        Some(RawMemory { ptr, phys, len })
    }

    unsafe fn free_memory(&self, memory: RawMemory) {
        BUFFERS.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: by the contract, what `alloc_memory` gave, unused now.
        unsafe { FRAMES.lock().free(memory.phys, memory.len, mm::PAGE) };
    }

    fn write_back(&self, memory: RawMemory) {
        arch::write_back(memory.ptr, memory.len);
    }

    fn alloc_scattered(&self, len: usize, chunk: usize) -> Option<RawScattered> {
        let mut memory = mm::vcm::alloc_scattered(len, chunk)?;
        memory.owner = Box::new(Counted::new(memory.owner));
        Some(memory)
    }

    fn barrier(&self) -> Result<(), BarrierTimeout> {
        smp::barrier()
    }

    fn node(&self, cpu: usize) -> Option<u32> {
        numa::of_cpu(cpu)
    }

    fn is_online(&self, cpu: usize) -> bool {
        percpu::get(cpu).is_some_and(|cpu| cpu.online.load(Ordering::Acquire))
    }
}
