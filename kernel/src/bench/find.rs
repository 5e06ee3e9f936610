//! `bench find`: finding and putting a public channel, on 1 to all CPUs at once.
//!
//! Beside it, for comparison, the same number of references taken and put by one count that all
//! CPUs share, as an `Arc` has it.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::hint::black_box;
use core::sync::atomic::{AtomicUsize, Ordering};

use dmaengine::{Transaction, registry};
use hal::time::{Duration, Instant};

use super::counts::Counts;
use super::params::Params;
use super::ratio::Ratio;
use super::{Benchmark, Run, claim};
use crate::arch::x86_64::tsc;
use crate::stepping::{self, Executed};
use crate::task;

const NAME: &str = "find";
pub(super) const BENCHMARK: Benchmark = Benchmark {
    name: NAME,
    usage: "pairs=200000 by=table,arc repeat=1",
    run: |params| -> Run { Box::pin(run(params)) },
};

/// Pairs whose instructions are counted.
const COUNTED: u64 = 100;
/// How long the CPUs wait for each other.
const PATIENCE: Duration = Duration::from_secs(10);

/// What keeps count of references.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// The per-CPU tables of public channels.
    Table,
    /// One atomic count.
    Arc,
}

impl By {
    fn read(word: &str) -> Option<Self> {
        match word {
            "table" => Some(Self::Table),
            "arc" => Some(Self::Arc),
            _ => None,
        }
    }
}

impl By {
    /// Takes and puts so many references; how often there was one.
    fn run(self, shared: &Arc<()>, pairs: u64) -> u64 {
        match self {
            Self::Table => find(pairs),
            Self::Arc => count(shared, pairs),
        }
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Table => "table",
            Self::Arc => "arc",
        })
    }
}

async fn run(mut params: Params) -> Result<(), String> {
    let pairs = params.number("pairs", 200_000, 1, 1_000_000_000)?;
    let bys = params.list("by", "table,arc", By::read)?;
    let repeat = params.number("repeat", 1, 1, 1000)?;
    params.finish()?;

    let interest = registry().get_interest().await;
    // Where somebody is interested, every public channel runs.
    for chan in registry().channels() {
        if chan.is_running() {
            claim(NAME, &chan, 0);
        }
    }
    let result = all(pairs, &bys, repeat).await;
    interest.put().await;
    result
}

async fn all(pairs: u64, bys: &[By], repeat: usize) -> Result<(), String> {
    let cpus: Vec<usize> = hal::cpu::online().collect();
    for _ in 0..repeat {
        let mut count = 1;
        loop {
            for &by in bys {
                measure(&cpus[..count], by, pairs).await?;
            }
            if count == cpus.len() {
                break;
            }
            count = (2 * count).min(cpus.len());
        }
    }
    Ok(())
}

async fn measure(cpus: &[usize], by: By, pairs: u64) -> Result<(), String> {
    let shared = Arc::new(());
    let ready = Arc::new(AtomicUsize::new(0));
    let before = Counts::now();
    let tasks: Vec<_> = cpus
        .iter()
        .map(|&cpu| {
            let (shared, ready, all) = (shared.clone(), ready.clone(), cpus.len());
            task::spawn("bench-find", Some(cpu), async move {
                together(&ready, all).await?;
                let start = tsc();
                let found = by.run(&shared, pairs);
                Ok::<_, String>((tsc().wrapping_sub(start), found))
            })
        })
        .collect();
    let (mut ticks, mut slowest, mut found) = (0, 0, 0);
    for task in tasks {
        let (its, hits) = task.await?;
        ticks += its;
        slowest = slowest.max(its);
        found += hits;
    }
    let counts = Counts::now() - before;
    let executed = executed(by, &shared)?;
    let all = pairs * cpus.len() as u64;
    crate::machine_line!(
        "bench: find by={by} cpus={} tsc_per_pair={} tsc_per_pair_max={} insns_per_pair={} \
         locked_per_pair={} pairs={all} found={found} {counts}",
        cpus.len(),
        Ratio(ticks, all),
        Ratio(slowest, pairs),
        Ratio(executed.instructions, COUNTED),
        Ratio(executed.locked, COUNTED),
    );
    Ok(())
}

/// What this CPU executes for [`COUNTED`] pairs, with the loop around them.
fn executed(by: By, shared: &Arc<()>) -> Result<Executed, String> {
    let counting = stepping::start().ok_or("another CPU is counting")?;
    by.run(shared, COUNTED);
    Ok(counting.stop())
}

/// Waits until all are here.
pub(super) async fn together(ready: &AtomicUsize, all: usize) -> Result<(), String> {
    let start = Instant::now();
    ready.fetch_add(1, Ordering::AcqRel);
    while ready.load(Ordering::Acquire) < all {
        if start.elapsed() > PATIENCE {
            return Err(format!("{all} CPUs did not start together"));
        }
        hal::task::yield_now().await;
    }
    Ok(())
}

/// Finds and puts; how often there was a channel.
#[inline(never)]
fn find(pairs: u64) -> u64 {
    let registry = registry();
    let mut found = 0;
    for _ in 0..pairs {
        found += u64::from(registry.find(Transaction::Memcpy).is_some());
    }
    found
}

/// Takes and puts a reference to what all share.
#[inline(never)]
fn count(shared: &Arc<()>, pairs: u64) -> u64 {
    for _ in 0..pairs {
        drop(black_box(shared.clone()));
    }
    pairs
}
