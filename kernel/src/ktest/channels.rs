//! Public channels on this machine's CPUs. Where there is no engine, what can be shown without.

use alloc::format;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};

use dmaengine::{Registry, Transaction, registry};
use hal::time::{self, Duration};
use hal::{cpu, task};

use super::{Suite, TestResult, ensure, tests};
use crate::cpus;

pub(super) static SUITE: Suite = Suite {
    name: "channels",
    tests: tests![
        s1_2_every_cpu_finds_a_channel_while_somebody_is_interested,
        s1_13_nobody_finds_one_without_interest,
        s1_14_a_parked_cpu_leaves_the_tables_and_comes_back,
    ],
};

/// Finds and puts once: the code that the test of the image's instructions looks at.
#[unsafe(no_mangle)]
#[inline(never)]
fn longshore_probe_find_put(registry: &Registry) -> bool {
    registry.find(Transaction::Memcpy).is_some()
}

const LIMIT: Duration = Duration::from_secs(20);

fn online() -> alloc::vec::Vec<usize> {
    (0..cpu::possible())
        .filter(|&cpu| cpu::is_online(cpu))
        .collect()
}

fn has_engines() -> bool {
    !registry().channels().is_empty()
}

async fn s1_2_every_cpu_finds_a_channel_while_somebody_is_interested() -> TestResult {
    let interest = registry().get_interest().await;
    let (found, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let cpus = online();
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

async fn s1_14_a_parked_cpu_leaves_the_tables_and_comes_back() -> TestResult {
    let Some(last) = online().into_iter().rfind(|&cpu| cpu != 0) else {
        return Ok(());
    };
    if !has_engines() {
        return Ok(());
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
