//! Reservations under contention of all CPUs.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use dma_buf::{Manager, Options, Resv, Usage};
use dma_fence::{Fence, next_context};
use hal::time::{Duration, poll_until};
use hal::{cpu, task};

use super::{Suite, TestResult, ensure, tests};
use crate::mm::heap;

pub(super) static SUITE: Suite = Suite {
    name: "resv",
    tests: tests![s4_19_a_thousand_tasks_get_random_sets_of_buffers],
};

const TASKS: u32 = 1000;
const BUFFERS: usize = 64;
const ROUNDS: u32 = 4;
const LIMIT: Duration = Duration::from_secs(120);

struct Shared {
    manager: Manager,
    /// Each with the number of the ticket that has it.
    list: Vec<(Resv, AtomicU64)>,
    most: AtomicU32,
    wrong: AtomicUsize,
    done: AtomicUsize,
}

/// A few of the buffers, in any order.
fn some(random: &mut u64) -> Vec<usize> {
    let mut below = |limit: usize| {
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        (*random % limit as u64) as usize
    };
    let count = 2 + below(15);
    let mut all: Vec<_> = (0..BUFFERS).collect();
    for at in 0..count {
        all.swap(at, at + below(BUFFERS - at));
    }
    all.truncate(count);
    all
}

/// Reserves and lets go; whether it had all of it alone, and began again no more often than it may.
async fn contend(shared: &Shared, random: &mut u64) -> bool {
    let set = some(random);
    let objects = set.iter().map(|&at| (&shared.list[at].0, Usage::Write));
    let Ok(reserved) = shared.manager.reserve("stress", objects).await else {
        return false;
    };
    let me = u64::from(reserved.seq().number()) + 1;
    let mut owners = set.iter().map(|&at| &shared.list[at].1);
    let mut alone = owners.all(|owner| owner.swap(me, Ordering::Relaxed) == 0);
    task::yield_now().await;
    let mut owners = set.iter().map(|&at| &shared.list[at].1);
    alone &= owners.all(|owner| owner.swap(0, Ordering::Relaxed) == me);
    let retries = reserved.retries();
    shared.most.fetch_max(retries, Ordering::Relaxed);
    let bounded = retries <= reserved.older();
    let Ok(waited) = reserved.queue_waits() else {
        return false;
    };
    let committed = waited.commit(Fence::new(next_context(), 1));
    let waited = committed.wait().await;
    committed.signal(Ok(()));
    alone && bounded && waited.is_ok()
}

async fn s4_19_a_thousand_tasks_get_random_sets_of_buffers() -> TestResult {
    let before = heap::fences();
    let manager = Manager::new(Options {
        // In the middle of it the numbers go round.
        first: u32::MAX - TASKS,
        ..Options::default()
    });
    let list = (0..BUFFERS).map(|_| (Resv::new(&manager), AtomicU64::new(0)));
    let shared = Arc::new(Shared {
        list: list.collect(),
        manager,
        most: AtomicU32::new(0),
        wrong: AtomicUsize::new(0),
        done: AtomicUsize::new(0),
    });
    let online: Vec<_> = cpu::online().collect();
    for number in 0..TASKS {
        let shared = shared.clone();
        let cpu = online[number as usize % online.len()];
        task::spawn_on("resv", cpu, async move {
            let mut random = 0x9e37_79b9_7f4a_7c15 ^ u64::from(number + 1) << 20;
            for _ in 0..ROUNDS {
                if !contend(&shared, &mut random).await {
                    shared.wrong.fetch_add(1, Ordering::Relaxed);
                }
            }
            shared.done.fetch_add(1, Ordering::Release);
        });
    }
    let all = || shared.done.load(Ordering::Acquire) == TASKS as usize;
    let ended = poll_until(LIMIT, Duration::from_millis(5), all).await;
    if ended.is_err() {
        for ticket in shared.manager.outstanding().iter().take(20) {
            crate::machine_line!("  # {ticket}");
        }
    }
    ensure!(
        ended.is_ok(),
        "{} tasks of {TASKS}",
        shared.done.load(Ordering::Relaxed)
    );
    let statistics = shared.manager.statistics();
    let most = shared.most.load(Ordering::Relaxed);
    crate::machine_line!(
        "  # resv: tickets={} cpus={} retries={} most={most}",
        statistics.tickets,
        online.len(),
        statistics.retries
    );
    let wrong = shared.wrong.load(Ordering::Relaxed);
    ensure!(wrong == 0, "{wrong} tickets without what they had");
    let outstanding = statistics.outstanding;
    ensure!(outstanding == 0, "{outstanding} tickets left");
    // Each buffer keeps its last fence.
    let list: usize = shared
        .list
        .iter()
        .map(|(resv, _)| resv.fences().len())
        .sum();
    ensure!(list <= BUFFERS, "{list} fences in {BUFFERS} buffers");
    drop(shared);
    let gone = || heap::fences() <= before;
    let settled = poll_until(LIMIT, Duration::from_millis(5), gone).await;
    ensure!(
        settled.is_ok(),
        "fences: {before} before, {} after",
        heap::fences()
    );
    Ok(())
}
