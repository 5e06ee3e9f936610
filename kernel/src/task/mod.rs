//! Tasks: one executor per CPU, tasks sent between them.
//!
//! A task stays on the CPU it was spawned for, unless that is parked; waking it puts it into that CPU's queue, and a CPU
//! that sleeps is woken by an interrupt. Between two tasks an executor tells the owners of the
//! interrupts that came, and wakes due timers; with nothing to run it halts.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use core::task::Poll;

use async_task::{Builder, Runnable, Task};
use atomic_waker::AtomicWaker;
use crossbeam_queue::SegQueue;
use spin::{LazyLock, Mutex};
use x86_64::instructions::interrupts;

use crate::arch::x86_64::percpu::{self, PerCpu};
use crate::arch::x86_64::{MAX_CPUS, apic, smp, traps};
use crate::irq;
use crate::time::timers;

/// What travels with a task.
#[derive(Debug)]
pub struct Meta {
    /// The CPU on which it runs: another when that one is parked.
    cpu: Arc<AtomicUsize>,
}

struct Executor {
    ready: SegQueue<Runnable<Meta>>,
    polls: AtomicU64,
    sleeps: AtomicU64,
}

static EXECUTORS: LazyLock<Box<[Executor]>> = LazyLock::new(|| {
    let executor = |_| Executor {
        ready: SegQueue::new(),
        polls: AtomicU64::new(0),
        sleeps: AtomicU64::new(0),
    };
    (0..MAX_CPUS).map(executor).collect()
});

/// What `tasks` shows of a task.
#[derive(Clone, Debug)]
pub struct TaskInfo {
    /// Counts up from 1.
    pub id: u64,
    /// What it was called when it was spawned.
    pub name: String,
    home: Arc<AtomicUsize>,
}

impl TaskInfo {
    /// The CPU on which it runs.
    pub fn cpu(&self) -> usize {
        self.home.load(Ordering::Relaxed)
    }
}

/// A tree, which gives memory back when many tasks have ended.
static TASKS: Mutex<BTreeMap<u64, TaskInfo>> = Mutex::new(BTreeMap::new());
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Takes the task off the list when its future goes, finished or cancelled.
struct Listed(u64);

impl Drop for Listed {
    fn drop(&mut self) {
        TASKS.lock().remove(&self.0);
    }
}

/// Runs `future` on CPU `cpu`, or on the caller's where that one is not online. Dropping the
/// handle cancels the task at its next suspension; [`Task::detach`] lets it run.
pub fn spawn<T: Send + 'static>(
    name: &str,
    cpu: Option<usize>,
    future: impl Future<Output = T> + Send + 'static,
) -> Task<T, Meta> {
    spawn_boxed(name, cpu, Box::pin(future))
}

/// As [`spawn`], of a future in a box: the workings of tasks exist once for all futures that give
/// the same.
pub fn spawn_boxed<T: Send + 'static>(
    name: &str,
    cpu: Option<usize>,
    future: Pin<Box<dyn Future<Output = T> + Send>>,
) -> Task<T, Meta> {
    let cpu = cpu
        .filter(|&cpu| is_online(cpu))
        .unwrap_or_else(|| percpu::current().index());
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let home = Arc::new(AtomicUsize::new(cpu));
    let info = TaskInfo {
        id,
        name: name.to_string(),
        home: home.clone(),
    };
    TASKS.lock().insert(id, info);
    let listed = Listed(id);
    let (runnable, task) = Builder::new().metadata(Meta { cpu: home }).spawn(
        move |_| async move {
            let _listed = listed;
            future.await
        },
        schedule,
    );
    runnable.schedule();
    task
}

/// Runs `future` in a task of its own and awaits what it gives. Dropping this leaves it running:
/// for what must not stop halfway.
pub async fn complete<T: Send + 'static>(
    name: &str,
    future: impl Future<Output = T> + Send + 'static,
) -> T {
    let shared = Arc::new((Mutex::new(None), AtomicWaker::new()));
    let given = shared.clone();
    let task = spawn(name, None, async move {
        let value = future.await;
        *given.0.lock() = Some(value);
        given.1.wake();
    });
    task.detach();
    poll_fn(|cx| {
        shared.1.register(cx.waker());
        shared.0.lock().take().map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

fn is_online(cpu: usize) -> bool {
    percpu::get(cpu).is_some_and(|cpu| cpu.online.load(Ordering::Acquire))
}

/// Puts a task into its CPU's queue, or into another's where that CPU was parked, and wakes the
/// CPU if it sleeps. Task context.
fn schedule(runnable: Runnable<Meta>) {
    let home = &runnable.metadata().cpu;
    let mut cpu = home.load(Ordering::Relaxed);
    if !is_online(cpu) {
        let this = percpu::current().index();
        let other = || {
            (0..percpu::possible())
                .find(|&cpu| is_online(cpu))
                .unwrap_or(this)
        };
        cpu = if is_online(this) { this } else { other() };
        home.store(cpu, Ordering::Relaxed);
    }
    EXECUTORS[cpu].ready.push(runnable);
    // Against a CPU that goes to sleep, or parks: it says so, then looks at its queue once more.
    fence(Ordering::SeqCst);
    let Some(target) = percpu::get(cpu) else {
        return;
    };
    if !target.online.load(Ordering::SeqCst) {
        send_away(cpu);
    } else if cpu != percpu::current().index() && target.idle.swap(false, Ordering::SeqCst) {
        apic::send(target.apic_id(), traps::WAKE);
    }
}

/// Gives the tasks in a parked CPU's queue to others.
fn send_away(cpu: usize) {
    while let Some(runnable) = EXECUTORS[cpu].ready.pop() {
        runnable.schedule();
    }
}

/// This CPU's executor, until it is parked.
pub fn run(cpu: &'static PerCpu) -> ! {
    let executor = &EXECUTORS[cpu.index()];
    cpu.running.store(true, Ordering::SeqCst);
    // Who is at a barrier may wait for this CPU from here on, without having sent for it.
    smp::barrier_answer(cpu);
    cpu.online.store(true, Ordering::Release);
    interrupts::enable();
    loop {
        irq::tell_owners(cpu);
        timers::fire(cpu.index());
        if !cpu.online.load(Ordering::Acquire) {
            send_away(cpu.index());
            if !irq::any_pending(cpu) {
                timers::move_away(cpu.index());
                smp::park(cpu);
            }
            continue;
        }
        if let Some(runnable) = executor.ready.pop() {
            executor.polls.fetch_add(1, Ordering::Relaxed);
            runnable.run();
            continue;
        }
        cpu.idle.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        interrupts::disable();
        let parking = !cpu.online.load(Ordering::Acquire);
        if executor.ready.is_empty() && !irq::any_pending(cpu) && !parking {
            executor.sleeps.fetch_add(1, Ordering::Relaxed);
            // STI takes effect after the next instruction: no interrupt slips in between.
            interrupts::enable_and_hlt();
        } else {
            interrupts::enable();
        }
        cpu.idle.store(false, Ordering::Relaxed);
    }
}

/// All tasks.
pub fn list() -> Vec<TaskInfo> {
    TASKS.lock().values().cloned().collect()
}

/// How often CPU `cpu` has polled a task, and how often it has slept.
pub fn activity(cpu: usize) -> (u64, u64) {
    let executor = &EXECUTORS[cpu % MAX_CPUS];
    (
        executor.polls.load(Ordering::Relaxed),
        executor.sleeps.load(Ordering::Relaxed),
    )
}
