//! Fences on this machine's CPUs: signalled by tasks and out of interrupts, awaited on all CPUs. The
//! first of three groups; reservations and pipelines stand on it, and it needs neither.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::{Future, ready};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use dma_fence::{
    AlreadySignalled, Chain, Fence, FenceError, FenceOps, SeqnoFences, SeqnoWord, Signaler,
    TimedOut, Timeline, next_context,
};
use dmaengine::{Channel, Flags, Memset, Submitted, registry};
use hal::cpu;
use hal::dma::{Destination, Memory};
use hal::irq::IrqEvent;
use hal::time::{Duration, Instant, poll_until, sleep, timeout};
use spin::Mutex;

use super::{Suite, TestResult, Verdict, ensure, tests};
use crate::arch::x86_64::apic;
use crate::irq;
use crate::task;
use crate::time::timers;

pub(super) static SUITE: Suite = Suite {
    name: "fences",
    tests: tests![
        s4_32_of_all_cpus_that_signal_one_does,
        s4_32_an_interrupt_on_any_cpu_signals_once,
        an_owner_that_goes_ends_it_with_an_error,
        s4_29_a_wait_ends_with_its_limit_and_zero_only_asks,
        s4_33_a_wait_on_any_cpu_is_cancelled_without_a_trace,
        arrays_end_with_all_or_any_and_the_first_error,
        points_of_a_chain_are_reached_in_their_order,
        a_timeline_is_moved_on_by_all_cpus,
        s4_36_a_word_wraps_and_arms_for_who_waits,
        s4_34_an_engine_interrupts_for_who_waits_alone,
    ],
};

type Outcome = Result<(), FenceError>;

const LIMIT: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_micros(200);
const ROUNDS: usize = 50;

fn fence() -> (Signaler, Fence) {
    Fence::new(next_context(), 1)
}

/// A task on each CPU, and what each came to. Its argument is a number of its own, from 0 on.
async fn on_all<F>(work: impl Fn(usize) -> F) -> Result<Vec<F::Output>, String>
where
    F: Future<Output: Send> + Send + 'static,
{
    let spawn = |(number, cpu)| task::spawn("fences", Some(cpu), work(number));
    let tasks: Vec<_> = cpu::online().enumerate().map(spawn).collect();
    let mut all = Vec::with_capacity(tasks.len());
    for task in tasks {
        let ended = timeout(LIMIT, task).await;
        all.push(ended.map_err(|_| "a task does not end".to_string())?);
    }
    Ok(all)
}

/// Runs `work` on the CPU that is the `number`-th, and so on round.
async fn on<T: Send + 'static>(
    number: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let cpu = cpu::online().nth(number % cpu::online().count());
    let ended = timeout(LIMIT, task::spawn("fences", cpu, async { work() })).await;
    ended.map_err(|_| "a task does not end".to_string())
}

/// Waits until something has come to be.
async fn until(what: &str, done: impl Fn() -> bool) -> TestResult {
    let come = poll_until(LIMIT, STEP, done).await;
    come.map_err(|_| format!("{what}: never"))
}

fn awaited_by(fence: &Fence, count: usize) -> bool {
    fence.to_string().ends_with(&format!("cbs={count}"))
}

/// Counts the callbacks of a fence.
fn listen(fence: &Fence) -> Result<Arc<AtomicUsize>, String> {
    let (heard, calls) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let tell = heard.clone();
    let listed = fence.add_callback(move |_| {
        tell.fetch_add(1, Ordering::Relaxed);
        drop(calls);
    });
    listed.map_err(|late| late.to_string())?;
    Ok(heard)
}

async fn s4_32_of_all_cpus_that_signal_one_does() -> TestResult {
    for round in 0..ROUNDS {
        let (signaler, fence) = fence();
        let heard = listen(&fence)?;
        let signaler = Arc::new(Mutex::new(signaler));
        let tries = on_all(|_| {
            let (signaler, fence) = (signaler.clone(), fence.clone());
            async move {
                let first = signaler.lock().try_signal(Ok(())).is_ok();
                (first, fence.wait().await)
            }
        });
        let tries = tries.await?;
        let first = tries.iter().filter(|(first, _)| *first).count();
        let heard = heard.load(Ordering::Relaxed);
        ensure!(
            first == 1 && heard == 1,
            "round {round}: {first} signalled, {heard} callbacks"
        );
        let told = tries.iter().all(|(_, result)| *result == Ok(()));
        ensure!(told, "round {round}: {tries:?}");
    }
    Ok(())
}

/// An interrupt wakes the task that signals: fences and their wakers are no business of handlers.
async fn s4_32_an_interrupt_on_any_cpu_signals_once() -> TestResult {
    let mut reached = Vec::new();
    for _ in cpu::online() {
        let event = Arc::new(IrqEvent::default());
        let vector = irq::bind_message("test", event.clone(), None).ok_or("no vector")?;
        let (mut signaler, fence) = fence();
        let heard = listen(&fence)?;
        let raised = event.clone();
        let teller = task::spawn("fences", Some(vector.cpu), async move {
            let mut told = Vec::new();
            for seen in 0..2 {
                raised.beyond(seen).await;
                told.push((cpu::current(), signaler.try_signal(Ok(()))));
            }
            told
        });
        // What a device's message does, twice.
        apic::send(vector.apic_id, vector.vector);
        let waits = on_all(|_| fence.wait()).await;
        apic::send(vector.apic_id, vector.vector);
        let told = timeout(LIMIT, teller).await;
        irq::unbind(&event);
        let (waits, heard) = (waits?, heard.load(Ordering::Relaxed));
        let expected = [
            (vector.cpu, Ok(())),
            (vector.cpu, Err(AlreadySignalled(Ok(())))),
        ];
        let told = told.map_err(|_| format!("CPU {}: no interrupt", vector.cpu))?;
        ensure!(told == expected, "{told:?}");
        ensure!(heard == 1, "CPU {}: {heard} callbacks", vector.cpu);
        ensure!(waits.iter().all(|end| *end == Ok(())), "{waits:?}");
        reached.push(vector.cpu);
    }
    reached.sort_unstable();
    reached.dedup();
    let (reached, cpus) = (reached.len(), cpu::online().count());
    ensure!(reached == cpus, "on {reached} CPUs of {cpus}");
    Ok(())
}

async fn an_owner_that_goes_ends_it_with_an_error() -> TestResult {
    let (signaler, fence) = fence();
    let last = cpu::online().last();
    // It owns the signaler, and will never signal.
    let owner = task::spawn("fences", last, async move {
        core::future::pending::<()>().await;
        drop(signaler);
    });
    let going = fence.clone();
    let (waits, gone) = (on_all(|_| fence.wait()), async move {
        let all = || awaited_by(&going, cpu::online().count());
        let all = poll_until(LIMIT, STEP, all).await;
        drop(owner);
        all
    });
    let gone = task::spawn("fences", None, gone);
    let waits = waits.await?;
    ensure!(gone.await.is_ok(), "not all have waited");
    let abandoned = Err(FenceError::Abandoned);
    ensure!(waits.iter().all(|end| *end == abandoned), "{waits:?}");
    ensure!(fence.result() == Some(abandoned), "{fence}");
    Ok(())
}

/// Hardware that would interrupt, and counts how often it is asked to.
#[derive(Default)]
struct Asked(AtomicUsize);

impl FenceOps for Asked {
    fn enable_signaling(&self, _: &Fence, _: Option<Signaler>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

async fn s4_29_a_wait_ends_with_its_limit_and_zero_only_asks() -> TestResult {
    let asked = Arc::new(Asked::default());
    let (signaler, fence) = Fence::with_ops(next_context(), 1, asked.clone());
    let armed = || asked.0.load(Ordering::Relaxed);
    let none = fence.wait_until(ready(())).await;
    ensure!(none == Err(TimedOut), "a limit of zero: {none:?}");
    ensure!(armed() == 0, "a limit of zero armed it");
    let before = timers::pending();
    let (begin, limit) = (Instant::now(), Duration::from_millis(5));
    let some = fence.wait_until(sleep(limit)).await;
    let took = begin.elapsed();
    ensure!(some == Err(TimedOut) && took >= limit, "{some:?}, {took:?}");
    ensure!(armed() == 1, "{} times armed", armed());
    ensure!(awaited_by(&fence, 0), "{fence}");
    let left = timers::pending();
    ensure!(left <= before, "{left} timers, {before} before");
    signaler.signal(Ok(()));
    let late = fence.wait_until(ready(())).await;
    ensure!(late == Ok(Ok(())), "after the signal: {late:?}");
    Ok(())
}

async fn s4_33_a_wait_on_any_cpu_is_cancelled_without_a_trace() -> TestResult {
    let (signaler, fence) = fence();
    let wait = |cpu| task::spawn("fences", Some(cpu), fence.wait());
    let waits: Vec<_> = cpu::online().map(wait).collect();
    let count = waits.len();
    until("all wait", || awaited_by(&fence, count)).await?;
    drop(waits);
    until("nobody waits", || awaited_by(&fence, 0)).await?;
    let heard = listen(&fence)?;
    signaler.signal(Ok(()));
    let heard = heard.load(Ordering::Relaxed);
    ensure!(heard == 1, "{heard} callbacks after others gave up");
    let late = fence.add_callback(|_| ());
    ensure!(late == Err(AlreadySignalled(Ok(()))), "late: {late:?}");
    Ok(())
}

async fn arrays_end_with_all_or_any_and_the_first_error() -> TestResult {
    let (failed, late) = (Err(FenceError::Device(7)), Err(FenceError::Timeout));
    let (signalers, fences): (Vec<_>, Vec<_>) = (0..4).map(|_| fence()).unzip();
    let all = Fence::all(fences.iter().cloned());
    let any = Fence::any(fences.iter().cloned());
    // They listen from now on: which error is the first is heard, not looked up.
    let (heard_all, heard_any) = (listen(&all)?, listen(&any)?);
    let ends: [Outcome; 4] = [Ok(()), failed, late, Ok(())];
    let mut seen = Vec::new();
    for (at, signaler) in signalers.into_iter().enumerate().rev() {
        let end = ends[at];
        on(at, move || signaler.signal(end)).await?;
        seen.push((any.result(), all.result()));
    }
    // The last in the list ended first, and the timeout before the device's error.
    let some = Some(Ok(()));
    let expected = [(some, None), (some, None), (some, None), (some, Some(late))];
    ensure!(seen == expected, "{seen:?}");
    let heard = [heard_all, heard_any].map(|heard| heard.load(Ordering::Relaxed));
    ensure!(heard == [1, 1], "{heard:?} callbacks");
    let none = (Fence::all([]).result(), Fence::any([]).result());
    let empty = (Some(Ok(())), Some(Err(FenceError::Abandoned)));
    ensure!(none == empty, "of none: {none:?}");
    Ok(())
}

async fn points_of_a_chain_are_reached_in_their_order() -> TestResult {
    let chain = Chain::new();
    let (mut work, mut points) = (Vec::new(), Vec::new());
    for seqno in 1..=4 {
        let (signaler, fence) = fence();
        work.push(Some(signaler));
        let point = chain.add(seqno, fence);
        points.push(point.map_err(|error| error.to_string())?);
    }
    let last = task::spawn("fences", None, points[3].wait());
    let mut reached = Vec::new();
    for at in [2, 0, 3, 1] {
        let signaler = work[at].take().ok_or("signalled twice")?;
        let end = match at {
            2 => Err(FenceError::Device(2)),
            _ => Ok(()),
        };
        on(at, move || signaler.signal(end)).await?;
        reached.push(points.iter().filter(|point| point.is_signalled()).count());
    }
    ensure!(reached == [0, 1, 1, 4], "{reached:?} points");
    let ends: Vec<_> = points.iter().map(Fence::result).collect();
    let failed = Some(Err(FenceError::Device(2)));
    ensure!(
        ends == [Some(Ok(())), Some(Ok(())), failed, Some(Ok(()))],
        "{ends:?}"
    );
    let last = timeout(LIMIT, last).await;
    ensure!(last == Ok(Ok(())), "who waits for the last: {last:?}");
    ensure!(chain.pending() == 0, "{} points kept", chain.pending());
    Ok(())
}

async fn a_timeline_is_moved_on_by_all_cpus() -> TestResult {
    const STEPS: u16 = 100;
    let timeline = Arc::new(Timeline::new(0));
    let end = u64::from(STEPS) * cpu::online().count() as u64;
    let heard = listen(&timeline.fence(end))?;
    let early = timeline.fence(end + 1);
    let waits = on_all(|number| {
        let timeline = timeline.clone();
        async move {
            let mine = timeline.fence(u64::from(STEPS) * (number as u64 + 1));
            for _ in 0..STEPS {
                timeline.advance(1);
            }
            mine.wait().await
        }
    });
    let waits = waits.await?;
    ensure!(waits.iter().all(|end| *end == Ok(())), "{waits:?}");
    ensure!(timeline.value() == end, "{timeline:?}, not {end}");
    let heard = heard.load(Ordering::Relaxed);
    ensure!(heard == 1, "{heard} callbacks");
    ensure!(!early.is_signalled(), "ahead of the timeline: {early}");
    drop(timeline);
    let closed = timeout(LIMIT, early.wait()).await;
    ensure!(closed == Ok(Err(FenceError::Closed)), "{closed:?}");
    Ok(())
}

/// A word that an engine counts up, here a task.
struct Word {
    value: AtomicU32,
    armed: AtomicUsize,
}

impl SeqnoWord for Word {
    fn read(&self) -> u32 {
        self.value.load(Ordering::Acquire)
    }

    fn arm(&self) -> Outcome {
        self.armed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

async fn s4_36_a_word_wraps_and_arms_for_who_waits() -> TestResult {
    let start = u64::from(u32::MAX) - 1;
    let word = Word {
        value: AtomicU32::new(start as u32),
        armed: AtomicUsize::new(0),
    };
    let fences = Arc::new(SeqnoFences::new(word, start));
    let armed = || fences.word().armed.load(Ordering::Relaxed);
    let count = |fences: &SeqnoFences<Word>| fences.word().value.fetch_add(1, Ordering::Release);
    let list: Vec<_> = (0..5).map(|ahead| fences.fence(start + ahead)).collect();
    let mut reached = Vec::new();
    for _ in 0..4 {
        reached.push(list.iter().filter(|fence| fence.is_signalled()).count());
        let fences = fences.clone();
        on(reached.len(), move || count(&fences)).await?;
    }
    ensure!(reached == [1, 2, 3, 4], "{reached:?} around the wrap");
    ensure!(armed() == 0, "{} times armed for who only asks", armed());
    let next = fences.fence(start + 5);
    let wait = task::spawn("fences", None, next.wait());
    until("somebody waits", || awaited_by(&next, 1)).await?;
    ensure!(armed() == 1, "{} times armed for one who waits", armed());
    let told = fences.clone();
    on(1, move || {
        count(&told);
        told.update();
    })
    .await?;
    let wait = timeout(LIMIT, wait).await;
    ensure!(wait == Ok(Ok(())), "{wait:?}");
    Ok(())
}

/// Interrupts of devices so far; the serial port's are people's.
fn interrupts() -> u64 {
    let lines = irq::list().into_iter();
    let devices = lines.filter(|line| line.name != "serial");
    devices.map(|line| line.arrivals).sum()
}

fn fill(channel: &Channel) -> Result<Submitted<Memset>, String> {
    let memory = Memory::new(4096).map_err(|error| error.to_string())?;
    let dst = Destination::new(memory, 0..4096).map_err(|_| "no destination")?;
    let fill = channel.prep_memset(dst, 0x5a, Flags::empty());
    let fill = fill.map_err(|error| error.reason.to_string())?;
    let submitted = channel.submit(fill);
    submitted.map_err(|error| error.reason.to_string())
}

async fn s4_34_an_engine_interrupts_for_who_waits_alone() -> Result<(), Verdict> {
    const FILLS: u64 = 50;
    let cpu = registry().cpu();
    let mut chans = registry().channels().into_iter();
    let chan = chans.find(|chan| chan.name() != cpu.name());
    let chan = chan.ok_or(Verdict::Skipped("there is no engine"))?;
    let channel = chan.share().await.map_err(|error| error.to_string())?;
    let before = interrupts();
    for _ in 0..FILLS {
        let fill = fill(&channel)?;
        channel.issue_pending();
        let ended = channel.poll_for(fill.fence(), LIMIT).await;
        ensure!(ended == Ok(Ok(())), "polled: {ended:?}");
    }
    let polled = interrupts() - before;
    let mut waited = 0;
    for _ in 0..FILLS {
        let fill = fill(&channel)?;
        channel.issue_pending();
        waited += u64::from(!fill.fence().is_signalled());
        let ended = timeout(LIMIT, fill.fence().wait()).await;
        ensure!(ended == Ok(Ok(())), "awaited: {ended:?}");
    }
    let awaited = interrupts() - before - polled;
    channel.release().await;
    crate::machine_line!("  # fences: {polled} interrupts polled, {awaited} for {waited} waits");
    ensure!(polled == 0, "{polled} interrupts, and nobody waits");
    ensure!(
        (1..=FILLS).contains(&awaited),
        "{awaited} interrupts for {FILLS} who wait"
    );
    Ok(())
}
