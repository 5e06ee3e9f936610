//! CPU-local counters and the barrier.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};

use hal::time::{self, Duration};
use hal::{cpu, task};

use super::{Suite, TestResult, ensure, tests};
use crate::arch::x86_64::percpu;

pub(super) static SUITE: Suite = Suite {
    name: "cpus",
    tests: tests![
        counters_of_all_cpus_add_up,
        the_barrier_reaches_every_cpu,
        blocks_of_cpus_share_no_cache_line,
    ],
};

/// A counter that nothing else uses.
const COUNTER: usize = cpu::COUNTERS - 1;

async fn counters_of_all_cpus_add_up() -> TestResult {
    const EACH: isize = 1000;
    let before = cpu::local_sum(COUNTER);
    let done = Arc::new(AtomicUsize::new(0));
    let cpus: alloc::vec::Vec<_> = cpu::online().collect();
    for &target in &cpus {
        let done = done.clone();
        task::spawn_on("test", target, async move {
            for step in 0..2 * EACH {
                cpu::local_add(COUNTER, if step % 2 == 0 { 2 } else { -1 });
            }
            done.fetch_add(1, Ordering::Release);
        });
    }
    let all = || done.load(Ordering::Acquire) == cpus.len();
    time::poll_until(Duration::from_secs(20), Duration::from_millis(1), all)
        .await
        .map_err(|e| alloc::format!("{e}"))?;
    cpu::barrier().map_err(|e| alloc::format!("{e}"))?;
    let added = cpu::local_sum(COUNTER) - before;
    cpu::local_add(COUNTER, -added);
    ensure!(
        added == EACH * cpus.len() as isize,
        "{added} by {} CPUs",
        cpus.len()
    );
    Ok(())
}

async fn the_barrier_reaches_every_cpu() -> TestResult {
    let seen = || -> alloc::vec::Vec<u64> {
        percpu::all()
            .map(|cpu| cpu.barrier_seen.load(Ordering::Acquire))
            .collect()
    };
    let before = seen();
    for _ in 0..20 {
        cpu::barrier().map_err(|e| alloc::format!("{e}"))?;
        task::yield_now().await;
    }
    for (cpu, (before, after)) in before.into_iter().zip(seen()).enumerate() {
        ensure!(after >= before + 20, "CPU {cpu} saw {before}, then {after}");
    }
    Ok(())
}

async fn blocks_of_cpus_share_no_cache_line() -> TestResult {
    let mut ranges: alloc::vec::Vec<_> = percpu::all()
        .map(|block| {
            let start = block as *const percpu::PerCpu as usize;
            (start, start + size_of::<percpu::PerCpu>())
        })
        .collect();
    ranges.sort_unstable();
    for (start, end) in &ranges {
        ensure!(
            start % 64 == 0 && end % 64 == 0,
            "{start:#x}-{end:#x} is not whole lines"
        );
    }
    ensure!(
        ranges.windows(2).all(|w| w[0].1 <= w[1].0),
        "blocks overlap: {ranges:x?}"
    );
    Ok(())
}
