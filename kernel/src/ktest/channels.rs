//! Public channels on this machine's CPUs. Where there is no engine, what can be shown without.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use dmaengine::{ChanRef, Flags, Registry, Transaction, registry};
use hal::dma::{Destination, Memory, Source};
use hal::pci::Address;
use hal::time::{self, Duration};
use hal::{cpu, task};

use super::{Suite, TestResult, Verdict, ensure, tests};
use crate::arch::x86_64::percpu;
use crate::drivers::{self, removal};
use crate::pci::bus;
use crate::{cpus, machine_line};

pub(super) static SUITE: Suite = Suite {
    name: "channels",
    tests: tests![
        s1_2_every_cpu_finds_a_channel_while_somebody_is_interested,
        s1_3_tables_and_counters_share_no_cache_line,
        s1_4_a_duplicate_is_a_reference_of_its_own,
        s1_13_nobody_finds_one_without_interest,
        s1_14_a_parked_cpu_leaves_the_tables_and_comes_back,
        s1_15_a_storm_of_finds_uses_no_removed_engine,
    ],
};

/// Finds and puts once: the code that the test of the image's instructions looks at.
#[unsafe(no_mangle)]
#[inline(never)]
fn longshore_probe_find_put(registry: &Registry) -> bool {
    registry.find(Transaction::Memcpy).is_some()
}

/// Duplicates and puts once.
#[unsafe(no_mangle)]
#[inline(never)]
fn longshore_probe_dup_put(found: &ChanRef) -> bool {
    found.dup().is_ok()
}

const NO_ENGINE: Verdict = Verdict::Skipped("there is no engine");
const LIMIT: Duration = Duration::from_secs(20);

fn has_engines() -> bool {
    !registry().channels().is_empty()
}

async fn s1_2_every_cpu_finds_a_channel_while_somebody_is_interested() -> TestResult {
    let interest = registry().get_interest().await;
    let (found, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let cpus: Vec<_> = cpu::online().collect();
    for &target in &cpus {
        let (found, asked) = (found.clone(), asked.clone());
        task::spawn_on("test", target, async move {
            for _ in 0..1000 {
                let channel = registry().find(Transaction::Memcpy);
                found.fetch_add(usize::from(channel.is_some()), Ordering::Relaxed);
            }
            asked.fetch_add(1, Ordering::Release);
        });
    }
    let all = || asked.load(Ordering::Acquire) == cpus.len();
    let waited = time::poll_until(LIMIT, Duration::from_millis(1), all).await;
    waited.map_err(|e| format!("{e}"))?;
    let left: usize = registry()
        .channels()
        .iter()
        .map(|channel| registry().references(channel))
        .sum();
    interest.put().await;
    let expected = if has_engines() { 1000 * cpus.len() } else { 0 };
    let found = found.load(Ordering::Relaxed);
    ensure!(found == expected, "{found} found of {expected}");
    ensure!(left == 0, "{left} references left");
    Ok(())
}

async fn s1_3_tables_and_counters_share_no_cache_line() -> TestResult {
    fn lines<T>(what: Range<*const T>) -> Range<usize> {
        what.start.addr() / 64..what.end.addr().div_ceil(64)
    }
    let mut taken: Vec<_> = percpu::all()
        .flat_map(|block| {
            let table = registry().table_place(block.index());
            [
                (block.index(), lines(table)),
                (block.index(), lines(block.counters())),
            ]
        })
        .collect();
    ensure!(taken.len() == 2 * cpu::possible(), "{} places", taken.len());
    taken.sort_by_key(|(_, lines)| lines.start);
    for pair in taken.windows(2) {
        ensure!(
            pair[0].1.end <= pair[1].1.start,
            "a line is shared: {pair:x?}"
        );
    }
    Ok(())
}

async fn s1_4_a_duplicate_is_a_reference_of_its_own() -> Result<(), Verdict> {
    let interest = registry().get_interest().await;
    let found = registry().find(Transaction::Memcpy);
    let second = found.as_ref().map(ChanRef::dup);
    let again = found.as_ref().map(longshore_probe_dup_put);
    drop(found);
    let opened = second.map(|second| second.is_ok_and(|second| second.open().is_ok()));
    interest.put().await;
    if !has_engines() {
        return Err(NO_ENGINE);
    }
    ensure!(opened == Some(true), "the duplicate opens: {opened:?}");
    ensure!(again == Some(true), "a second duplicate: {again:?}");
    Ok(())
}

async fn s1_13_nobody_finds_one_without_interest() -> TestResult {
    ensure!(
        registry().interest() == 0,
        "{} interested",
        registry().interest()
    );
    ensure!(
        !longshore_probe_find_put(registry()),
        "found without interest"
    );
    let interest = registry().get_interest().await;
    let found = registry().find(Transaction::Memcpy).is_some();
    interest.put().await;
    ensure!(found == has_engines(), "found with interest: {found}");
    ensure!(
        registry().find(Transaction::Memcpy).is_none(),
        "found when interest was gone"
    );
    Ok(())
}

async fn s1_14_a_parked_cpu_leaves_the_tables_and_comes_back() -> Result<(), Verdict> {
    let Some(last) = cpu::online().rfind(|&cpu| cpu != 0) else {
        return Err(Verdict::Skipped("there is one CPU"));
    };
    if !has_engines() {
        return Err(NO_ENGINE);
    }
    let interest = registry().get_interest().await;
    let entry = || registry().table_entry(last, Transaction::Memcpy).is_some();
    let before = entry();
    cpus::offline(last).await?;
    let parked = entry();
    cpus::online(last).await?;
    let after = entry();
    interest.put().await;
    ensure!(
        before && !parked && after,
        "before {before}, parked {parked}, after {after}"
    );
    Ok(())
}

#[derive(Default)]
struct Storm {
    stop: AtomicBool,
    ended: AtomicUsize,
    copies: AtomicUsize,
    /// References to a channel that was removed without waiting for them.
    late: AtomicUsize,
    failed: AtomicUsize,
}

impl Storm {
    /// Finds, duplicates, copies and puts, until told to stop.
    async fn rage(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let Some(found) = registry().find(Transaction::Memcpy) else {
                task::yield_now().await;
                continue;
            };
            let second = found.dup();
            let counter = match copy_by(&found).await {
                Some(true) => &self.copies,
                Some(false) => &self.failed,
                None => &self.late,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            drop(second);
        }
        self.ended.fetch_add(1, Ordering::Release);
    }
}

/// Whether a copy by a channel that was found succeeds. `None` where the channel is gone.
async fn copy_by(found: &ChanRef) -> Option<bool> {
    const LEN: usize = 64;
    let opened = found.open().ok()?;
    let (Ok(from), Ok(to)) = (Memory::new(LEN), Memory::new(LEN)) else {
        return Some(false);
    };
    let (Some(src), Ok(dst)) = (
        Source::new(Arc::new(from), 0..LEN),
        Destination::new(to, 0..LEN),
    ) else {
        return Some(false);
    };
    let submitted = match opened.prep_memcpy(dst, src, Flags::INTERRUPT) {
        Ok(descriptor) => opened.submit_wait(descriptor).await.ok(),
        Err(_) => None,
    };
    if opened.is_gone() {
        return None;
    }
    let submitted = submitted?;
    opened.issue_pending();
    Some(submitted.finish().await.result.is_ok())
}

/// Takes each engine away several times, while copies go on between.
async fn leave_and_come_back(engines: &[Address], copies: &AtomicUsize) -> TestResult {
    for _ in 0..5 {
        for &engine in engines {
            let before = copies.load(Ordering::Relaxed);
            let more = || copies.load(Ordering::Relaxed) > before;
            let waited = time::poll_until(LIMIT, Duration::from_millis(1), more).await;
            waited.map_err(|_| format!("no copies before {engine} leaves"))?;
            removal::unbind(engine).await?;
            removal::bind(engine).await?;
        }
    }
    Ok(())
}

async fn s1_15_a_storm_of_finds_uses_no_removed_engine() -> Result<(), Verdict> {
    if !cfg!(feature = "hotplug") {
        return Err(Verdict::Skipped("this build counts no references"));
    }
    let mut engines: Vec<_> = bus::devices()
        .iter()
        .map(|device| device.found.address)
        .collect();
    engines.retain(|&address| drivers::describe(address).is_some());
    if engines.is_empty() {
        return Err(NO_ENGINE);
    }
    let interest = registry().get_interest().await;
    let storm = Arc::new(Storm::default());
    let cpus: Vec<_> = cpu::online().collect();
    for &cpu in cpus.iter().chain(&cpus) {
        let storm = storm.clone();
        task::spawn_on("test", cpu, async move { storm.rage().await });
    }
    let removed = leave_and_come_back(&engines, &storm.copies).await;
    storm.stop.store(true, Ordering::Relaxed);
    let all = || storm.ended.load(Ordering::Acquire) == 2 * cpus.len();
    let waited = time::poll_until(LIMIT, Duration::from_millis(1), all).await;
    interest.put().await;
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    let (copies, failed) = (count(&storm.copies), count(&storm.failed));
    let late = count(&storm.late);
    machine_line!("  # storm: copies={copies} failed={failed} late_use={late}");
    removed?;
    waited.map_err(|error| format!("finders: {error}"))?;
    ensure!(late == 0, "{late} references to what was removed");
    ensure!(failed == 0, "{failed} copies failed");
    Ok(())
}
