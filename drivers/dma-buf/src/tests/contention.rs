//! Many tickets over few reservations.

use core::task::Poll;
use std::boxed::Box;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use std::vec::Vec;
use std::{println, thread};

use dma_fence::FenceError;
use proptest::prelude::*;

use super::{fence, manager, resvs};
use crate::{Manager, Options, Resv, Usage};

/// Numbers without a pattern; the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    /// `count` of the numbers below `limit`, in any order.
    fn some(&mut self, count: usize, limit: usize) -> Vec<usize> {
        let mut all: Vec<_> = (0..limit).collect();
        for at in 0..count {
            let other = at + self.below(limit - at);
            all.swap(at, other);
        }
        all.truncate(count);
        all
    }
}

/// Lets others run in between, a few times.
async fn dawdle(times: usize) {
    for _ in 0..times {
        hal::task::yield_now().await;
    }
}

/// Buffers, and beside each who has it: a ticket's number.
struct Shared {
    manager: Manager,
    list: Vec<(Resv, AtomicU64)>,
    most: AtomicU32,
    reserved: AtomicUsize,
}

/// Threads that run tasks of their own, as CPUs do: none preempts another on its thread.
fn on_threads(threads: usize, tasks: Vec<impl Future<Output = ()> + Send + 'static>) {
    let mut lots: Vec<Vec<_>> = (0..threads).map(|_| Vec::new()).collect();
    for (at, task) in tasks.into_iter().enumerate() {
        lots[at % threads].push(Box::pin(task));
    }
    let workers = lots.into_iter().map(|lot| {
        thread::spawn(move || {
            let (sender, ready) = mpsc::channel();
            let mut tasks: Vec<_> = lot.into_iter().map(Some).collect();
            (0..tasks.len()).for_each(|at| sender.send(at).unwrap());
            let mut left = tasks.len();
            while left > 0 {
                let at: usize = ready
                    .recv_timeout(Duration::from_secs(60))
                    .expect("nobody waits for ever");
                let waker = Arc::new(Ready(at, sender.clone())).into();
                let mut cx = core::task::Context::from_waker(&waker);
                if let Some(task) = &mut tasks[at]
                    && task.as_mut().poll(&mut cx).is_ready()
                {
                    tasks[at] = None;
                    left -= 1;
                }
            }
        })
    });
    let workers: Vec<_> = workers.collect();
    workers
        .into_iter()
        .for_each(|worker| worker.join().unwrap());
}

struct Ready(usize, mpsc::Sender<usize>);

impl std::task::Wake for Ready {
    fn wake(self: Arc<Self>) {
        // Who has ended needs no waking.
        let _ = self.1.send(self.0);
    }
}

/// The tasks and buffers of the promise; Miri, a thousand times slower, has less of both.
const TASKS: usize = if cfg!(miri) { 10 } else { 1000 };
const ROUNDS: usize = if cfg!(miri) { 1 } else { 4 };

#[test]
fn s4_19_a_thousand_tasks_get_random_sets_of_buffers() {
    let manager = Manager::new(Options {
        // In the middle of it the numbers go round.
        first: u32::MAX - TASKS as u32,
        ..Options::default()
    });
    let list = resvs(&manager, 64);
    let shared = Arc::new(Shared {
        list: list
            .into_iter()
            .map(|resv| (resv, AtomicU64::new(0)))
            .collect(),
        manager,
        most: AtomicU32::new(0),
        reserved: AtomicUsize::new(0),
    });
    let task = |number: usize| {
        let shared = shared.clone();
        async move {
            let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (number as u64 + 1) << 20);
            for _ in 0..ROUNDS {
                let count = 2 + random.below(15);
                let set = random.some(count, 64);
                let mut ticket = shared.manager.ticket("stress").await;
                let me = u64::from(ticket.seq().number()) + 1;
                for &at in &set {
                    ticket.add(&shared.list[at].0, Usage::Write);
                }
                let reserved = ticket.reserve().await.unwrap();
                for &at in &set {
                    assert_eq!(shared.list[at].1.swap(me, Ordering::Relaxed), 0);
                }
                dawdle(random.below(3)).await;
                for &at in &set {
                    assert_eq!(shared.list[at].1.swap(0, Ordering::Relaxed), me);
                }
                assert!(reserved.retries() <= reserved.older());
                shared.most.fetch_max(reserved.retries(), Ordering::Relaxed);
                shared.reserved.fetch_add(1, Ordering::Relaxed);
                if random.below(2) == 0 {
                    let committed = reserved.queue_waits().unwrap().commit(fence());
                    let _ = committed.wait().await;
                    committed.signal(Ok(()));
                }
            }
        }
    };
    on_threads(4, (0..TASKS).map(task).collect());
    assert_eq!(shared.reserved.load(Ordering::Relaxed), TASKS * ROUNDS);
    let statistics = shared.manager.statistics();
    let most = shared.most.load(Ordering::Relaxed);
    assert_eq!((statistics.outstanding, statistics.most_retries), (0, most));
    println!(
        "resv: {} tickets over 64 buffers, {} retries, the most of one ticket {most}",
        statistics.tickets, statistics.retries
    );
}

/// A task of the property: which buffers, how it uses each, how it ends.
#[derive(Clone, Debug)]
struct Job {
    uses: Vec<(usize, bool)>,
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Done,
    BacksOff,
    /// After it has published its fence.
    Cancelled,
}

const BUFFERS: usize = 4;

fn job() -> impl Strategy<Value = Job> {
    let uses = proptest::collection::vec(any::<bool>(), BUFFERS);
    let set = proptest::sample::subsequence((0..BUFFERS).collect::<Vec<_>>(), 1..=BUFFERS);
    let ends = prop_oneof![
        6 => Just(End::Done),
        1 => Just(End::BacksOff),
        1 => Just(End::Cancelled),
    ];
    (set.prop_shuffle(), uses, ends).prop_map(|(set, uses, end)| Job {
        uses: set.into_iter().map(|at| (at, uses[at])).collect(),
        end,
    })
}

const CELLS: usize = 4;

/// A buffer of cells, which a writer writes one by one with its number.
struct Buffer {
    resv: Resv,
    cells: [AtomicU64; CELLS],
}

async fn run(manager: Arc<Manager>, buffers: Arc<Vec<Buffer>>, number: u64, job: Job) {
    let usage = |write| if write { Usage::Write } else { Usage::Read };
    let objects = job
        .uses
        .iter()
        .map(|&(at, write)| (&buffers[at].resv, usage(write)));
    let reserved = manager.reserve("job", objects).await.unwrap();
    if job.end == End::BacksOff {
        return reserved.back_off();
    }
    let committed = reserved.queue_waits().unwrap().commit(fence());
    if job.end == End::Cancelled {
        return;
    }
    // Who reads what a cancelled job was to write is told so.
    let read = committed.wait().await;
    assert!(matches!(read, Ok(()) | Err(FenceError::Abandoned)));
    let mut seen = Vec::new();
    for cell in 0..CELLS {
        for &(at, write) in &job.uses {
            let cell = &buffers[at].cells[cell];
            if write {
                cell.store(number, Ordering::Relaxed);
            } else {
                seen.push((at, cell.load(Ordering::Relaxed)));
            }
        }
        hal::task::yield_now().await;
    }
    for &(at, write) in &job.uses {
        let of_this = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let cells = buffers[at].cells.iter().map(of_this);
        if write {
            assert!(cells.into_iter().all(|cell| cell == number), "half written");
        } else {
            let mut seen = seen
                .iter()
                .filter(|(of, _)| *of == at)
                .map(|(_, value)| value);
            let first = seen.next();
            assert!(seen.all(|value| Some(value) == first), "of two writers");
        }
    }
    committed.signal(Ok(()));
}

/// Polls tasks in the order that `schedule` tells, then all in turn until they have ended. A fence
/// of a cancelled one is signalled by another thread.
fn interleaved(tasks: Vec<impl Future<Output = ()>>, schedule: &[usize]) -> bool {
    let mut tasks: Vec<_> = tasks.into_iter().map(|task| Some(Box::pin(task))).collect();
    let mut cx = core::task::Context::from_waker(core::task::Waker::noop());
    let deadline = Instant::now() + Duration::from_secs(60);
    let count = tasks.len();
    for at in schedule.iter().copied().chain(0..) {
        if let Some(task) = &mut tasks[at % count]
            && let Poll::Ready(()) = task.as_mut().poll(&mut cx)
        {
            tasks[at % count] = None;
        }
        if tasks.iter().all(Option::is_none) {
            return true;
        }
        if at % count == 0 && Instant::now() > deadline {
            return false;
        }
    }
    false
}

/// Jobs, and steps whose order is chosen.
const JOBS: usize = if cfg!(miri) { 4 } else { 8 };
const STEPS: usize = if cfg!(miri) { 24 } else { 200 };

proptest! {
    #[test]
    fn in_any_order_readers_see_one_writer(
        jobs in proptest::collection::vec(job(), 2..JOBS),
        schedule in proptest::collection::vec(0..JOBS, 0..STEPS),
    ) {
        let manager = Arc::new(manager());
        let buffers = (0..BUFFERS).map(|_| Buffer {
            resv: Resv::new(&manager),
            cells: Default::default(),
        });
        let buffers = Arc::new(buffers.collect::<Vec<_>>());
        let tasks = jobs.into_iter().enumerate().map(|(number, job)| {
            run(manager.clone(), buffers.clone(), number as u64 + 1, job)
        });
        prop_assert!(interleaved(tasks.collect(), &schedule), "somebody waits for ever");
        prop_assert!(manager.outstanding().is_empty());
        prop_assert!(!buffers.iter().any(|buffer| buffer.resv.is_reserved()));
    }
}
