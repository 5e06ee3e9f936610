//! `bench resv`: reserving some buffers by one ticket and committing a fence to them, on one CPU and
//! on all at once, who all want the same buffers.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use dma_buf::{Manager, Options, Resv, SHARED_FENCES, Usage};
use dma_fence::{Fence, next_context};

use super::counts::Counts;
use super::params::Params;
use super::ratio::Ratio;
use super::{Benchmark, Run};
use crate::arch::x86_64::tsc;
use crate::task;

pub(super) const BENCHMARK: Benchmark = Benchmark {
    name: "resv",
    usage: "buffers=1,4,16 rounds=2000 repeat=1",
    run: |params| -> Run { Box::pin(run(params)) },
};

struct Shared {
    manager: Manager,
    list: Vec<Resv>,
}

async fn run(mut params: Params) -> Result<(), String> {
    let buffers = params.numbers("buffers", &[1, 4, 16], 1, 1024)?;
    let rounds = params.number("rounds", 2000, 1, 100_000)?;
    let repeat = params.number("repeat", 1, 1, 1000)?;
    params.finish()?;
    let online = (0..hal::cpu::possible()).filter(|&cpu| hal::cpu::is_online(cpu));
    let cpus: Vec<usize> = online.collect();
    for _ in 0..repeat {
        for &count in &buffers {
            measure(&cpus[..1], count, rounds).await?;
            if cpus.len() > 1 {
                measure(&cpus, count, rounds).await?;
            }
        }
    }
    Ok(())
}

async fn measure(cpus: &[usize], buffers: usize, rounds: usize) -> Result<(), String> {
    let manager = Manager::new(Options::default());
    let list = (0..buffers).map(|_| Resv::with_room(&manager, SHARED_FENCES));
    let shared = Arc::new(Shared {
        list: list.collect(),
        manager,
    });
    // The first rounds find places for tickets and fences.
    let warm = cpus
        .iter()
        .map(|&cpu| start(cpu, &shared, rounds.div_ceil(10)));
    for task in warm.collect::<Vec<_>>() {
        task.await?;
    }
    let retries = shared.manager.statistics().retries;
    let tasks: Vec<_> = cpus
        .iter()
        .map(|&cpu| start(cpu, &shared, rounds))
        .collect();
    let (mut ticks, mut allocations) = (0, 0);
    for task in tasks {
        let (its, allocated) = task.await?;
        ticks += its;
        allocations += allocated;
    }
    let all = (rounds * cpus.len()) as u64;
    // Others allocate meanwhile where there are others.
    let allocations = if cpus.len() == 1 { allocations } else { 0 };
    crate::machine_line!(
        "bench: resv buffers={buffers} cpus={} tsc_per_op={} ops={all} retries={} allocs={allocations}",
        cpus.len(),
        Ratio(ticks, all),
        shared.manager.statistics().retries - retries,
    );
    Ok(())
}

/// Ticks from the list to the published fence, of all rounds, and blocks that were allocated in
/// them.
fn start(
    cpu: usize,
    shared: &Arc<Shared>,
    rounds: usize,
) -> impl Future<Output = Result<(u64, u64), String>> + use<> {
    let shared = shared.clone();
    task::spawn("bench-resv", Some(cpu), async move {
        let (mut ticks, mut allocations) = (0, 0);
        for _ in 0..rounds {
            let fence = Fence::new(next_context(), 1);
            let counts = Counts::now();
            let begin = tsc();
            let objects = shared.list.iter().map(|resv| (resv, Usage::Write));
            let reserved = shared.manager.reserve("bench", objects).await;
            let waited = reserved.and_then(dma_buf::Reserved::queue_waits);
            let waited = waited.map_err(|error| format!("{error}"))?;
            let committed = waited.commit(fence);
            ticks += tsc().wrapping_sub(begin);
            allocations += (Counts::now() - counts).allocations;
            // Every fence waits for those of the other CPUs.
            let _ = committed.wait().await;
            committed.signal(Ok(()));
        }
        Ok((ticks, allocations))
    })
}
