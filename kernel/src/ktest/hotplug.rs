//! Parking CPUs under work.

use alloc::format;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hal::time::{self, Duration};
use hal::{cpu, task};

use super::{Suite, TestResult, ensure, tests};
use crate::cpus;

pub(super) static SUITE: Suite = Suite {
    name: "hotplug",
    tests: tests![
        the_boot_cpu_and_absent_ones_stay_as_they_are,
        tasks_and_timers_move_and_go_on,
        counters_of_a_parked_cpu_stay_counted,
        cpus_go_and_come_while_tasks_wake_each_other,
    ],
};

async fn the_boot_cpu_and_absent_ones_stay_as_they_are() -> TestResult {
    ensure!(cpus::offline(0).await.is_err(), "the boot CPU was parked");
    ensure!(
        cpus::offline(cpu::possible()).await.is_err(),
        "a CPU that is not there"
    );
    ensure!(
        cpus::online(0).await.is_err(),
        "the boot CPU was started twice"
    );
    Ok(())
}

/// The last CPU, where there is more than one.
fn last() -> Option<usize> {
    cpu::online().rfind(|&cpu| cpu > 0)
}

async fn tasks_and_timers_move_and_go_on() -> TestResult {
    let Some(last) = last() else { return Ok(()) };
    let steps = Arc::new(AtomicUsize::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let (counted, stopped) = (steps.clone(), stop.clone());
    task::spawn_on("test", last, async move {
        while !stopped.load(Ordering::Relaxed) {
            time::sleep(Duration::from_millis(2)).await;
            counted.fetch_add(1, Ordering::Relaxed);
        }
        // Only the test and this task hold it: the last step.
        counted.fetch_add(usize::MAX / 2, Ordering::Release);
    });
    let goes_on = async |what: &str| {
        let from = steps.load(Ordering::Relaxed);
        let done = || steps.load(Ordering::Relaxed) >= from + 5;
        let limit = Duration::from_secs(20);
        let waited = time::poll_until(limit, Duration::from_millis(1), done).await;
        waited.map_err(|_| format!("stands still {what}"))
    };
    goes_on("at first").await?;
    cpus::offline(last).await?;
    ensure!(!cpu::is_online(last), "still online");
    goes_on("after its CPU was parked").await?;
    cpus::online(last).await?;
    ensure!(cpu::is_online(last), "not online");
    goes_on("after its CPU came back").await?;
    stop.store(true, Ordering::Relaxed);
    let ended = || steps.load(Ordering::Acquire) > usize::MAX / 2;
    time::poll_until(Duration::from_secs(20), Duration::from_millis(1), ended)
        .await
        .map_err(|e| format!("{e}"))
}

async fn counters_of_a_parked_cpu_stay_counted() -> TestResult {
    const COUNTER: usize = cpu::COUNTERS - 2;
    let Some(last) = last() else { return Ok(()) };
    let done = Arc::new(AtomicBool::new(false));
    let told = done.clone();
    task::spawn_on("test", last, async move {
        cpu::local_add(COUNTER, 5);
        told.store(true, Ordering::Release);
    });
    let counted = || done.load(Ordering::Acquire);
    time::poll_until(Duration::from_secs(20), Duration::from_millis(1), counted)
        .await
        .map_err(|e| format!("{e}"))?;
    cpus::offline(last).await?;
    cpu::barrier().map_err(|e| format!("{e}"))?;
    let sum = cpu::local_sum(COUNTER);
    cpus::online(last).await?;
    cpu::local_add(COUNTER, -5);
    ensure!(sum == 5, "{sum} counted");
    ensure!(
        cpu::local_sum(COUNTER) == 0,
        "{} left",
        cpu::local_sum(COUNTER)
    );
    Ok(())
}

async fn cpus_go_and_come_while_tasks_wake_each_other() -> TestResult {
    let others: alloc::vec::Vec<_> = cpu::online().filter(|&cpu| cpu > 0).collect();
    let rounds = Arc::new(AtomicUsize::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let workers = others.len() * 2;
    for worker in 0..workers {
        let (rounds, stop) = (rounds.clone(), stop.clone());
        task::spawn_on("test", others[worker % others.len()], async move {
            while !stop.load(Ordering::Relaxed) {
                time::sleep(Duration::from_micros(300)).await;
                task::yield_now().await;
            }
            rounds.fetch_add(1, Ordering::Release);
        });
    }
    for round in 0..12 {
        if let Some(&target) = others.get(round % others.len().max(1)) {
            cpus::offline(target).await?;
            time::sleep(Duration::from_millis(3)).await;
            cpus::online(target).await?;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let all = || rounds.load(Ordering::Acquire) == workers;
    time::poll_until(Duration::from_secs(30), Duration::from_millis(1), all)
        .await
        .map_err(|_| {
            format!(
                "{} of {workers} tasks ended",
                rounds.load(Ordering::Relaxed)
            )
        })
}
