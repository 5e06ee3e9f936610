//! `bench copy`: copies through channels, one batch after the other on each.
//!
//! A lane is a task with one channel and the buffers of one batch. It submits the batch, rings
//! once, waits for all of it, polling or by the interrupt of its last copy, and starts over with
//! the buffers that came back, until its time is up. Every case compares its last batch with its
//! source.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use dma_fence::{Fence, FenceError};
use dmaengine::{Channel, DmaChan, Finished, Flags, Memcpy, Submitted, registry};
use hal::dma::{Destination, DmaSpace, MapError, Mapping, Memory, Source};
use hal::time::{Duration, Instant, timeout};

use super::counts::Counts;
use super::params::Params;
use super::ratio::{Ratio, per_second};
use super::{Benchmark, Run, claim};
use crate::arch::x86_64::tsc;
use crate::stepping::{self, Executed};
use crate::task;
use crate::time::clock;

const NAME: &str = "copy";
pub(super) const BENCHMARK: Benchmark = Benchmark {
    name: NAME,
    usage: "sizes=4096,65536 batches=1,32 modes=polled,irq via=dma0chan0,cpu channels=1 ms=200 \
            repeat=1",
    run: |params| -> Run { Box::pin(run(params)) },
};

/// Longest batch. Rings have more slots.
const BATCH_LIMIT: usize = 512;
/// Largest copy.
const SIZE_LIMIT: usize = 4 << 20;
/// Looks at the completion word between two chances for other tasks.
const SPINS: usize = 1000;
/// How often a batch is counted; the one with the fewest instructions has waited least.
const COUNTED: usize = 3;
/// An engine has done a batch by then, so that nothing is counted that only waits for it.
const SETTLED: Duration = Duration::from_millis(2);
/// How long one batch may take.
pub(super) const BATCH_PATIENCE: Duration = Duration::from_secs(10);

/// How completions are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Polled,
    Irq,
}

impl Mode {
    fn read(word: &str) -> Option<Self> {
        match word {
            "polled" => Some(Self::Polled),
            "irq" => Some(Self::Irq),
            _ => None,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Polled => "polled",
            Self::Irq => "irq",
        })
    }
}

/// What one line measures.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) size: usize,
    pub(super) batch: usize,
    pub(super) mode: Mode,
    pub(super) limit: Duration,
}

/// Channels that work side by side.
struct Route {
    channels: Vec<Arc<Channel>>,
    /// Copies that they have done in all.
    copies: u64,
    /// The modes and batches whose instructions were counted.
    counted: Vec<(Mode, usize)>,
}

impl Route {
    /// As `via=` names it: the first channel alone, the others follow it.
    fn name(&self) -> &str {
        self.channels.first().map_or("", |channel| channel.name())
    }
}

impl Route {
    /// Whether a case's instructions are to be counted: the size makes no difference to them.
    fn is_new(&mut self, case: Case) -> bool {
        let key = (case.mode, case.batch);
        let new = !self.counted.contains(&key);
        if new {
            self.counted.push(key);
        }
        new
    }
}

/// What a lane, or several side by side, have done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    pub(super) copies: u64,
    batches: u64,
    start: Instant,
    end: Instant,
}

impl Done {
    pub(super) fn nanos(self) -> u64 {
        (self.end - self.start).as_nanos() as u64
    }

    fn beside(self, other: Self) -> Self {
        Self {
            copies: self.copies + other.copies,
            batches: self.batches + other.batches,
            start: self.start.min(other.start),
            end: self.end.max(other.end),
        }
    }
}

async fn run(mut params: Params) -> Result<(), String> {
    let sizes = params.numbers("sizes", &[4096, 65536], 1, SIZE_LIMIT)?;
    let batches = params.numbers("batches", &[1, 32], 1, BATCH_LIMIT)?;
    let modes = params.list("modes", "polled,irq", Mode::read)?;
    let count = params.number("channels", 1, 1, 64)?;
    let vias = params.list("via", "dma0chan0,cpu", |name| {
        let found = registry().channel(name);
        found.or_else(|| (name == "cpu").then(|| registry().cpu()))
    })?;
    let limit = Duration::from_millis(params.number("ms", 200, 1, 60_000)?);
    let repeat = params.number("repeat", 1, 1, 1000)?;
    params.finish()?;

    let mut routes = Vec::new();
    for via in vias {
        routes.push(open(&via, count).await?);
    }
    let mut result = Ok(());
    // Repetitions outside: what else happens on the host meets all cases alike.
    'all: for _ in 0..repeat {
        for &mode in &modes {
            for &size in &sizes {
                for &batch in &batches {
                    for route in &mut routes {
                        let case = Case {
                            size,
                            batch,
                            mode,
                            limit,
                        };
                        // The CPU has no interrupt to wait for.
                        if route.name() == "cpu" && mode == Mode::Irq {
                            continue;
                        }
                        result = measure(route, case).await;
                        if result.is_err() {
                            break 'all;
                        }
                    }
                }
            }
        }
    }
    for route in routes {
        for (index, channel) in route.channels.iter().enumerate() {
            let copies = if index == 0 { route.copies } else { 0 };
            claim(NAME, channel, copies);
        }
        for channel in route.channels {
            // The lanes have ended and so dropped theirs.
            if let Some(channel) = Arc::into_inner(channel) {
                channel.release().await;
            }
        }
    }
    result
}

/// Requests `first` and the channels of its device after it, `count` in all.
async fn open(first: &DmaChan, count: usize) -> Result<Route, String> {
    let cpu = registry().cpu();
    let chans: Vec<DmaChan> = if first.name() == cpu.name() {
        // It has one queue, which all may share.
        alloc::vec![cpu.clone(); count]
    } else {
        let all = registry().channels().into_iter();
        let from = all.skip_while(|chan| chan.name() != first.name());
        from.take(count).collect()
    };
    if chans.len() < count {
        return Err(format!("channels={count}: {} from {first}", chans.len()));
    }
    let mut channels = Vec::new();
    for chan in chans {
        let channel = if chan.name() == cpu.name() {
            chan.share().await
        } else {
            chan.request().await
        };
        let channel = channel.map_err(|error| format!("{}: {error}", chan.name()))?;
        channels.push(Arc::new(channel));
    }
    Ok(Route {
        channels,
        copies: 0,
        counted: Vec::new(),
    })
}

async fn measure(route: &mut Route, case: Case) -> Result<(), String> {
    let mut lanes = Vec::new();
    for channel in &route.channels {
        lanes.push(Lane::new(channel.clone(), case)?);
    }
    let (before, start) = (Counts::now(), tsc());
    let tasks: Vec<_> = lanes
        .into_iter()
        .enumerate()
        .map(|(index, lane)| {
            let cpu = index % hal::cpu::possible();
            task::spawn("bench-copy", Some(cpu), lane.run())
        })
        .collect();
    let mut done: Option<Done> = None;
    let mut lanes = Vec::new();
    for task in tasks {
        let (lane, its) = task.await?;
        lanes.push(lane);
        done = Some(done.map_or(its, |done| done.beside(its)));
    }
    let (ticks, counts) = (tsc().wrapping_sub(start), Counts::now() - before);
    if route.is_new(case)
        && let [lane] = &mut lanes[..]
    {
        let executed = lane.count().await?;
        route.copies += (COUNTED * case.batch) as u64;
        report_steps(route, case, executed);
    }
    for lane in lanes {
        lane.verify()?;
    }
    let Some(done) = done else {
        return Err("no lane".to_string());
    };
    route.copies += done.copies;
    report(route, case, done, ticks, counts);
    Ok(())
}

fn report(route: &Route, case: Case, done: Done, ticks: u64, counts: Counts) {
    let Case {
        size, batch, mode, ..
    } = case;
    let nanos = done.nanos();
    let Done {
        copies, batches, ..
    } = done;
    crate::machine_line!(
        "bench: copy size={size} batch={batch} channels={} via={} mode={mode} iops={} KB/s={} \
         tsc_per_op={} mmio_per_op={} irq_per_op={} allocs_per_op={} ops={copies} \
         batches={batches} ns={nanos} {counts}",
        route.channels.len(),
        route.name(),
        per_second(copies, nanos),
        per_second(copies * size as u64 / 1024, nanos),
        ticks / copies.max(1),
        Ratio(counts.mmio_reads + counts.mmio_writes, copies),
        Ratio(counts.interrupts, copies),
        Ratio(counts.allocations, copies),
    );
}

fn report_steps(route: &Route, case: Case, executed: Executed) {
    let batch = case.batch as u64;
    crate::machine_line!(
        "bench: steps via={} mode={} batch={batch} insns_per_op={} locked_per_op={}",
        route.name(),
        case.mode,
        Ratio(executed.instructions, batch),
        Ratio(executed.locked, batch),
    );
}

/// A channel and the buffers of one batch.
pub(super) struct Lane {
    channel: Arc<Channel>,
    case: Case,
    idle: Vec<(Destination, Source)>,
    flying: VecDeque<Submitted<Memcpy>>,
}

impl Lane {
    pub(super) fn new(channel: Arc<Channel>, case: Case) -> Result<Self, String> {
        let mut idle = Vec::with_capacity(case.batch);
        for index in 0..case.batch {
            idle.push(buffers(case.size, index).ok_or("out of memory")?);
        }
        Ok(Self {
            channel,
            case,
            idle,
            flying: VecDeque::with_capacity(case.batch),
        })
    }

    /// Maps its buffers as its copies do.
    pub(super) fn map(&self, space: &DmaSpace) -> Result<Vec<Mapping>, MapError> {
        let pair = |(dst, src)| [space.map_destination(dst), space.map_source(src)];
        self.idle
            .iter()
            .map(|(dst, src)| (dst, src))
            .flat_map(pair)
            .collect()
    }

    pub(super) async fn run(mut self) -> Result<(Self, Done), String> {
        let (mut copies, mut batches) = (0, 0);
        let start = Instant::now();
        let deadline = start + self.case.limit;
        loop {
            self.submit()?;
            self.complete().await?;
            (copies, batches) = (copies + self.case.batch as u64, batches + 1);
            let end = Instant::now();
            if end >= deadline {
                let done = Done {
                    copies,
                    batches,
                    start,
                    end,
                };
                return Ok((self, done));
            }
        }
    }

    /// What this CPU executes for one batch.
    async fn count(&mut self) -> Result<Executed, String> {
        let start = || stepping::start().ok_or("another CPU is counting");
        let mut least = None;
        for _ in 0..COUNTED {
            let mut counting = start()?;
            self.submit()?;
            let mut executed = Executed::default();
            if self.case.mode == Mode::Polled {
                executed = counting.stop();
                // No other task of this CPU may complete it meanwhile, uncounted.
                clock::spin_for(SETTLED);
                counting = start()?;
            }
            self.complete().await?;
            executed = executed + counting.stop();
            let fewer = |least: &Executed| executed.instructions < least.instructions;
            if least.as_ref().is_none_or(fewer) {
                least = Some(executed);
            }
        }
        Ok(least.unwrap_or_default())
    }

    fn submit(&mut self) -> Result<(), String> {
        while let Some((dst, src)) = self.idle.pop() {
            let flags = if self.case.mode == Mode::Irq && self.idle.is_empty() {
                Flags::INTERRUPT
            } else {
                Flags::empty()
            };
            let prepared = self.channel.prep_memcpy(dst, src, flags);
            let descriptor = prepared.map_err(|error| self.failed(&error))?;
            let submitted = self.channel.submit(descriptor);
            let submitted = submitted.map_err(|error| self.failed(&error))?;
            self.flying.push_back(submitted);
        }
        self.channel.issue_pending();
        Ok(())
    }

    async fn complete(&mut self) -> Result<(), String> {
        // The last one first: completions come in the order of submission.
        if let Some(last) = self.flying.back() {
            let fence = last.fence();
            match self.case.mode {
                Mode::Polled => polled(&self.channel, fence).await,
                Mode::Irq => timeout(BATCH_PATIENCE, fence.wait())
                    .await
                    .unwrap_or(Err(FenceError::Timeout)),
            }
            .map_err(|error| self.failed(&error))?;
        }
        while let Some(submitted) = self.flying.pop_front() {
            match submitted.try_finish() {
                Ok(Finished {
                    result: Ok(()),
                    buffers: Some(buffers),
                }) => self.idle.push(buffers),
                Ok(Finished { result, .. }) => {
                    let error = result.err();
                    return Err(error.map_or_else(|| self.failed(&"lost"), |e| self.failed(&e)));
                }
                Err(_) => return Err(self.failed(&"out of order")),
            }
        }
        Ok(())
    }

    fn failed(&self, error: &dyn fmt::Display) -> String {
        format!("{}: {error}", self.channel.name())
    }

    /// Whether every destination holds what its source does.
    pub(super) fn verify(self) -> Result<(), String> {
        let name = self.channel.name().to_string();
        let right = self
            .idle
            .into_iter()
            .all(|(dst, src)| dst.into_memory()[..] == *src.bytes());
        if right {
            Ok(())
        } else {
            Err(format!("{name}: a copy differs from its source"))
        }
    }
}

/// A cleared destination, and a source that differs from others'.
fn buffers(size: usize, index: usize) -> Option<(Destination, Source)> {
    let mut memory = Memory::new(size).ok()?;
    for (at, byte) in memory.iter_mut().enumerate() {
        *byte = (at ^ (at >> 8) ^ index) as u8 | 1;
    }
    let src = Source::new(Arc::new(memory), 0..size)?;
    let dst = Destination::new(Memory::new(size).ok()?, 0..size).ok()?;
    Some((dst, src))
}

/// Looks until `fence` is signalled, from time to time letting other tasks run.
async fn polled(channel: &Channel, fence: &Fence) -> Result<(), FenceError> {
    let mut start = None;
    loop {
        for _ in 0..SPINS {
            channel.poll();
            if let Some(result) = fence.result() {
                return result;
            }
        }
        let start = *start.get_or_insert_with(Instant::now);
        if start.elapsed() > BATCH_PATIENCE {
            return Err(FenceError::Timeout);
        }
        hal::task::yield_now().await;
    }
}
