//! Tasks and timers.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};

use hal::time::{self, Duration, Instant};
use hal::{cpu, task};

use super::{Suite, TestResult, ensure, tests};
use crate::time::timers;

pub(super) static SUITE: Suite = Suite {
    name: "tasks",
    tests: tests![
        tasks_run_on_the_cpu_they_were_sent_to,
        wakes_cross_cpus_and_none_is_lost,
        sleeping_takes_as_long_as_asked,
        a_timeout_ends_a_wait_and_leaves_no_timer,
        a_dropped_task_is_gone,
    ],
};

const LIMIT: Duration = Duration::from_secs(20);

/// Waits until `count` reaches `wanted`.
async fn reaches(count: &AtomicUsize, wanted: usize) -> TestResult {
    let step = Duration::from_millis(1);
    let done = || count.load(Ordering::Acquire) >= wanted;
    time::poll_until(LIMIT, step, done)
        .await
        .map_err(|_| alloc::format!("{} of {wanted}", count.load(Ordering::Relaxed)))
}

async fn tasks_run_on_the_cpu_they_were_sent_to() -> TestResult {
    let (right, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for target in cpu::online() {
        let (right, done) = (right.clone(), done.clone());
        task::spawn_on("test", target, async move {
            for _ in 0..10 {
                right.fetch_add(usize::from(cpu::current() == target), Ordering::Relaxed);
                task::yield_now().await;
            }
            done.fetch_add(1, Ordering::Release);
        });
    }
    let count = cpu::online().count();
    reaches(&done, count).await?;
    let right = right.load(Ordering::Relaxed);
    ensure!(
        right == 10 * count,
        "{right} of {} steps on their CPU",
        10 * count
    );
    Ok(())
}

/// A token goes round all CPUs by wake-ups alone.
async fn wakes_cross_cpus_and_none_is_lost() -> TestResult {
    const ROUNDS: usize = 200;
    let cpus: alloc::vec::Vec<_> = cpu::online().collect();
    let turn = Arc::new(AtomicUsize::new(0));
    let events: Arc<[hal::irq::IrqEvent]> =
        cpus.iter().map(|_| hal::irq::IrqEvent::default()).collect();
    for (place, &target) in cpus.iter().enumerate() {
        let (turn, events, count) = (turn.clone(), events.clone(), cpus.len());
        task::spawn_on("test", target, async move {
            for round in 0..ROUNDS {
                let mine = round * count + place;
                events[place].beyond(round as u64).await;
                while turn.load(Ordering::Acquire) != mine {
                    task::yield_now().await;
                }
                turn.store(mine + 1, Ordering::Release);
                let next = &events[(place + 1) % count];
                next.raise();
                next.wake();
            }
        });
    }
    events[0].raise();
    events[0].wake();
    reaches(&turn, ROUNDS * cpus.len()).await
}

async fn sleeping_takes_as_long_as_asked() -> TestResult {
    for millis in [1, 20] {
        let start = Instant::now();
        time::sleep(Duration::from_millis(millis)).await;
        let took = start.elapsed();
        ensure!(
            took >= Duration::from_millis(millis),
            "{millis} ms took {took:?}"
        );
        ensure!(took < LIMIT, "{millis} ms took {took:?}");
    }
    Ok(())
}

async fn a_timeout_ends_a_wait_and_leaves_no_timer() -> TestResult {
    let before = timers::pending();
    let forever = core::future::pending::<()>();
    let ended = time::timeout(Duration::from_millis(5), forever).await;
    ensure!(ended.is_err(), "a wait without end ended");
    let ended = time::timeout(LIMIT, async { 7 }).await;
    ensure!(ended == Ok(7), "{ended:?}");
    ensure!(
        timers::pending() <= before,
        "{} timers, {before} before",
        timers::pending()
    );
    Ok(())
}

async fn a_dropped_task_is_gone() -> TestResult {
    let name = "test: to be dropped";
    let count = || {
        crate::task::list()
            .iter()
            .filter(|task| task.name == name)
            .count()
    };
    let handle = crate::task::spawn(name, None, core::future::pending::<()>());
    ensure!(count() == 1, "{} such tasks", count());
    drop(handle);
    time::poll_until(LIMIT, Duration::from_millis(1), || count() == 0)
        .await
        .map_err(|_| "still listed".into())
}
