//! `bench buffers`: what sharing costs. From a fence's signal to the task that waits for it; a
//! ticket's way from its first reservation to its published fence; frames through a pipeline of
//! three transfers, by an engine and by the CPU.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dma_buf::{DmaBuf, Manager, Options, Pipeline, Resv, Usage, copy, fill};
use dma_fence::{Context, Fence, Signaler};
use dmaengine::{AsyncTx, Client, DmaChan, registry};
use hal::time::{Duration, Instant, poll_until, timeout};

use super::copy::BATCH_PATIENCE;
use super::counts::Counts;
use super::find::together;
use super::params::Params;
use super::ratio::{Ratio, per_second};
use super::{Benchmark, Run};
use crate::arch::x86_64::percpu;
use crate::events::Event;
use crate::task;
use crate::time::clock;

pub(super) const BENCHMARK: Benchmark = Benchmark {
    name: "buffers",
    usage: "signals=200 tickets=2000 frames=50 size=65536 repeat=1",
    run: |params| -> Run { Box::pin(run(params)) },
};

/// How many buffers a ticket asks for.
const SETS: [usize; 3] = [1, 4, 16];
/// Buffers that tickets of several CPUs quarrel about.
const BUFFERS: usize = 16;
/// A task that has said that it waits does so by then.
const SETTLED: Duration = Duration::from_micros(200);
const SIZE_LIMIT: usize = 1 << 20;

async fn run(mut params: Params) -> Result<(), String> {
    let signals = params.number("signals", 200, 1, 100_000)?;
    let tickets = params.number("tickets", 2000, 1, 1_000_000)?;
    let frames = params.number("frames", 50, 1, 100_000)?;
    let size = params.number("size", 65536, 1, SIZE_LIMIT)?;
    let repeat = params.number("repeat", 1, 1, 1000)?;
    params.finish()?;
    let cpus: Vec<usize> = hal::cpu::online().collect();
    for _ in 0..repeat {
        wake("same", cpus[0], cpus[0], signals).await?;
        if let Some(&other) = cpus.get(1) {
            wake("other", cpus[0], other, signals).await?;
        }
        for set in SETS {
            reserve(&cpus[..1], set, tickets).await?;
            if cpus.len() > 1 {
                reserve(&cpus, set, tickets).await?;
            }
        }
        let cpu = registry().cpu();
        let engine = registry()
            .channels()
            .into_iter()
            .find(|chan| chan.name() != cpu.name());
        for chan in engine.iter().chain([&cpu]) {
            frames_by(chan, frames, size).await?;
        }
    }
    Ok(())
}

fn fences(count: usize) -> Vec<(Signaler, Fence)> {
    let context = Context::new();
    (0..count).map(|_| context.fence()).collect()
}

/// Signals on one CPU, one after the other, what a task of another waits for.
async fn wake(place: &str, signals_on: usize, waits_on: usize, count: usize) -> Result<(), String> {
    let (signalers, fences): (Vec<_>, Vec<_>) = fences(count).into_iter().unzip();
    // The number of the fence that is waited for, from 1 on.
    let asleep = Arc::new(AtomicUsize::new(0));
    let awake = Arc::new(AtomicU64::new(0));
    let base = Instant::now();
    let waiter = {
        let (asleep, awake) = (asleep.clone(), awake.clone());
        task::spawn("bench-waiter", Some(waits_on), async move {
            for (at, fence) in fences.into_iter().enumerate() {
                asleep.store(at + 1, Ordering::Release);
                let _ = fence.wait().await;
                awake.store(base.elapsed().as_nanos() as u64, Ordering::Release);
            }
        })
    };
    let before = Counts::now();
    let signaler = task::spawn("bench-signaler", Some(signals_on), async move {
        let mut took = Vec::with_capacity(count);
        for (at, signaler) in signalers.into_iter().enumerate() {
            let waits = || asleep.load(Ordering::Acquire) == at + 1;
            poll(waits).await?;
            // On the same CPU it has gone on already; on another it may be about to sleep.
            clock::spin_for(SETTLED);
            awake.store(0, Ordering::Relaxed);
            let start = base.elapsed().as_nanos() as u64;
            signaler.signal(Ok(()));
            poll(|| awake.load(Ordering::Acquire) != 0).await?;
            took.push(awake.load(Ordering::Relaxed).saturating_sub(start));
        }
        Ok::<_, String>(took)
    });
    let mut took = signaler.await?;
    waiter.await;
    let counts = Counts::now() - before;
    took.sort_unstable();
    crate::machine_line!(
        "bench: wake cpu={place} ns={} ns_most={} signals={count} {counts}",
        took[took.len() / 2],
        took[took.len() - 1],
    );
    Ok(())
}

/// Lets others of this CPU run until something has come to be.
async fn poll(done: impl Fn() -> bool) -> Result<(), String> {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > BATCH_PATIENCE {
            return Err("a task is not woken".to_string());
        }
        hal::task::yield_now().await;
    }
    Ok(())
}

/// Buffers' reservations, and who hands them out.
struct Quarrel {
    manager: Manager,
    list: Vec<Resv>,
    ready: AtomicUsize,
}

/// Allocations of this CPU.
fn allocations() -> isize {
    percpu::current().counter(Event::Allocation as usize)
}

impl Quarrel {
    /// Reserves `set` buffers, which are others `at` each time, publishes `fence`, and signals it once
    /// those before it have been: who signals earlier has a task do it then.
    async fn ticket(&self, set: usize, at: usize, fence: (Signaler, Fence)) -> Result<(), String> {
        let buffers = (0..set).map(|n| &self.list[(at * 5 + n * 7) % BUFFERS]);
        let uses = buffers.map(|resv| (resv, Usage::Write));
        let reserved = self.manager.reserve("bench", uses).await;
        let reserved = reserved.map_err(|error| error.to_string())?;
        let waited = reserved.queue_waits().map_err(|error| error.to_string())?;
        let committed = waited.commit(fence);
        let before = committed.wait().await;
        committed.signal(before);
        before.map_err(|error| error.to_string())
    }
}

/// Tickets for `set` buffers each, on every CPU; what they publish is signalled at once.
async fn reserve(cpus: &[usize], set: usize, tickets: usize) -> Result<(), String> {
    let manager = Manager::new(Options::default());
    let quarrel = Arc::new(Quarrel {
        list: (0..BUFFERS).map(|_| Resv::new(&manager)).collect(),
        manager,
        ready: AtomicUsize::new(0),
    });
    let before = Counts::now();
    let tasks: Vec<_> = cpus
        .iter()
        .map(|&cpu| {
            let (quarrel, all) = (quarrel.clone(), cpus.len());
            // Made before, so that no allocation is counted that is not a reservation's.
            let fences = fences(tickets + 1);
            task::spawn("bench-resv", Some(cpu), async move {
                let mut fences = fences.into_iter().enumerate();
                // The manager makes room for a ticket of each CPU.
                if let Some((at, fence)) = fences.next() {
                    quarrel.ticket(set, at + cpu, fence).await?;
                }
                together(&quarrel.ready, all).await?;
                let before = allocations();
                let start = Instant::now();
                for (at, fence) in fences {
                    quarrel.ticket(set, at + cpu, fence).await?;
                }
                let end = Instant::now();
                Ok::<_, String>((start, end, allocations() - before))
            })
        })
        .collect();
    let mut ended = Vec::new();
    for task in tasks {
        ended.push(task.await?);
    }
    let start = ended.iter().map(|its| its.0).min();
    let end = ended.iter().map(|its| its.1).max();
    let nanos = start
        .zip(end)
        .map_or(0, |(start, end)| (end - start).as_nanos() as u64);
    let all = (tickets * cpus.len()) as u64;
    let statistics = quarrel.manager.statistics();
    if statistics.outstanding > 0 {
        return Err(format!("{} tickets are left", statistics.outstanding));
    }
    crate::machine_line!(
        "bench: resv buffers={set} cpus={} ns_per_ticket={} tickets={all} retries={} allocs_within={} {}",
        cpus.len(),
        Ratio(nanos, all),
        statistics.retries,
        ended.iter().map(|its| its.2).sum::<isize>(),
        Counts::now() - before,
    );
    Ok(())
}

/// Frames that are filled, copied, and copied once more, two of them under way at any time.
async fn frames_by(chan: &DmaChan, frames: usize, size: usize) -> Result<(), String> {
    let text = |error: dma_buf::BufError| error.to_string();
    let tx = AsyncTx::new(registry(), &Client::new("bench"), Some(chan)).await;
    let tx = Arc::new(tx.map_err(|error| error.to_string())?);
    let new = || DmaBuf::new(size).map_err(text);
    let set = || Ok::<_, String>([new()?, new()?, new()?]);
    let sets = [set()?, set()?];
    let (before, start) = (Counts::now(), Instant::now());
    let mut under_way: [Vec<Fence>; 2] = Default::default();
    for frame in 0..frames {
        let (mine, [a, b, c]) = (&mut under_way[frame % 2], &sets[frame % 2]);
        ended(mine).await?;
        let stages = Pipeline::new()
            .then(fill(&tx, a, frame as u8))
            .then(copy(&tx, b, a))
            .then(copy(&tx, c, b));
        *mine = stages.submit().await.map_err(text)?;
    }
    for mine in &mut under_way {
        ended(mine).await?;
    }
    let nanos = start.elapsed().as_nanos() as u64;
    let counts = Counts::now() - before;
    for (index, [.., last]) in sets.iter().enumerate() {
        let Some(frame) = (0..frames).rev().find(|frame| frame % 2 == index) else {
            continue;
        };
        let read = last.begin_cpu_read().await.map_err(text)?;
        let right = |chunk: &[u8]| chunk.iter().all(|&byte| byte == frame as u8);
        if !read.chunks().all(right) {
            return Err(format!("{}: a frame is not what it should be", chan.name()));
        }
    }
    crate::machine_line!(
        "bench: pipeline via={} size={size} fps={} frames={frames} ns={nanos} {counts}",
        chan.name(),
        per_second(frames as u64, nanos),
    );
    let closed = poll_until(BATCH_PATIENCE, Duration::from_millis(1), || {
        Arc::strong_count(&tx) == 1
    });
    closed.await.map_err(|_| "a transfer does not end")?;
    if let Some(tx) = Arc::into_inner(tx) {
        tx.close().await;
    }
    Ok(())
}

async fn ended(fences: &mut Vec<Fence>) -> Result<(), String> {
    for fence in fences.drain(..) {
        let result = timeout(BATCH_PATIENCE, fence.wait()).await;
        let result = result.map_err(|_| "a frame does not end")?;
        result.map_err(|error| format!("a transfer failed: {error}"))?;
    }
    Ok(())
}
