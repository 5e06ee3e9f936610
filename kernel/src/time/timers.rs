//! Timers: each CPU wakes the tasks that armed theirs on it.

use core::sync::atomic::{AtomicU64, Ordering};
use core::task::Waker;

use spin::Mutex;

use super::clock::now_ns;
use super::queue::DeadlineQueue;
use crate::arch::x86_64::{MAX_CPUS, apic, percpu, traps};

struct CpuTimers {
    queue: Mutex<DeadlineQueue<Waker>>,
    next: Next,
}

/// A queue's earliest deadline, `u64::MAX` for none, so that the executor need not take the lock to
/// see that nothing is due. Kept as its complement: a table of zeros takes no room in the image.
struct Next(AtomicU64);

impl Next {
    fn get(&self) -> u64 {
        !self.0.load(Ordering::Relaxed)
    }

    fn set(&self, deadline: u64) {
        self.0.store(!deadline, Ordering::Relaxed);
    }
}

static TIMERS: [CpuTimers; MAX_CPUS] = [const {
    CpuTimers {
        queue: Mutex::new(DeadlineQueue::new()),
        next: Next(AtomicU64::new(0)),
    }
}; MAX_CPUS];
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// Wakes `waker` at `deadline`. The number returned tells the CPU as well.
pub fn set(deadline: u64, waker: Waker) -> u64 {
    let cpu = percpu::current().index();
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed) * MAX_CPUS as u64 + cpu as u64;
    let timers = &TIMERS[cpu];
    let mut queue = timers.queue.lock();
    queue.insert(id, deadline, waker);
    arm(timers, &queue);
    id
}

/// Forgets a timer.
pub fn cancel(id: u64) {
    // Where it was set, or where it moved when that CPU was parked.
    let first = &TIMERS[id as usize % MAX_CPUS];
    let gone = forget(first, id).or_else(|| TIMERS.iter().find_map(|timers| forget(timers, id)));
    drop(gone);
}

fn forget(timers: &CpuTimers, id: u64) -> Option<Waker> {
    let mut queue = timers.queue.lock();
    let waker = queue.remove(id)?;
    // The hardware may fire for nothing, once; it is not worth another CPU's attention.
    timers.next.set(queue.next().unwrap_or(u64::MAX));
    Some(waker)
}

/// Gives the timers of a CPU that is about to park to one that is online.
pub fn move_away(cpu: usize) {
    let online = |other: &&percpu::PerCpu| other.online.load(Ordering::Acquire);
    let Some(other) = percpu::all().find(online) else {
        return;
    };
    let moved = core::mem::take(&mut *TIMERS[cpu].queue.lock());
    TIMERS[cpu].next.set(u64::MAX);
    if !moved.is_empty() {
        TIMERS[other.index()].queue.lock().append(moved);
        // Its hardware is its own to arm: as if its timer had fired.
        apic::send(other.apic_id(), traps::TIMER);
    }
}

/// Wakes what is due on this CPU, and arms the hardware for the rest. For the executor.
pub fn fire(cpu: usize) {
    let timers = &TIMERS[cpu];
    let now = now_ns();
    if timers.next.get() > now {
        return;
    }
    loop {
        let mut queue = timers.queue.lock();
        let due = queue.pop(now);
        if due.is_none() {
            arm(timers, &queue);
        }
        drop(queue);
        match due {
            Some(waker) => waker.wake(),
            None => return,
        }
    }
}

/// Arms the hardware again after it fired without anything being due yet.
pub fn rearm(cpu: usize) {
    let timers = &TIMERS[cpu];
    {
        let queue = timers.queue.lock();
        timers.next.set(u64::MAX);
        arm(timers, &queue);
    }
    fire(cpu);
}

/// How many timers wait, over all CPUs.
pub fn pending() -> usize {
    TIMERS.iter().map(|timers| timers.queue.lock().len()).sum()
}

/// With the queue locked, on the CPU that it belongs to.
fn arm(timers: &CpuTimers, queue: &DeadlineQueue<Waker>) {
    let next = queue.next().unwrap_or(u64::MAX);
    let before = timers.next.get();
    timers.next.set(next);
    if before != next && next != u64::MAX {
        apic::set_timer(Some(next.saturating_sub(now_ns())));
    }
}
