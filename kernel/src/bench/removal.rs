//! `bench removal`: how long it takes to take an engine from its driver: an idle one while the others
//! are loaded, and one whose ring is full, beside the time that the engine needs for what is in the
//! ring. What it had is done elsewhere, and counts into the time.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use dmaengine::{Channel, DmaChan, Flags, Memcpy, Removal, SubmitReason, Submitted, registry};
use hal::dma::{Destination, Memory, Source};
use hal::pci::Address;
use hal::time::{Duration, Instant, sleep, timeout};

use super::copy::{BATCH_PATIENCE, Case, Lane, Mode};
use super::params::Params;
use super::{Benchmark, Run};
use crate::drivers::{self, removal};
use crate::task;

pub(super) const BENCHMARK: Benchmark = Benchmark {
    name: "removal",
    usage: "via=dma0chan0 size=65536 repeat=1",
    run: |params| -> Run { alloc::boxed::Box::pin(run(params)) },
};

/// Largest copy: a ring's worth of destinations has to fit into memory.
const SIZE_LIMIT: usize = 256 << 10;
/// The others are loaded for so long before the idle one is taken, and after it.
const LOADED: Duration = Duration::from_millis(10);

async fn run(mut params: Params) -> Result<(), String> {
    let mut vias = params.list("via", "dma0chan0", |name| registry().channel(name))?;
    let size = params.number("size", 65536, 1, SIZE_LIMIT)?;
    let repeat = params.number("repeat", 1, 1, 1000)?;
    params.finish()?;
    let name = match (vias.pop(), vias.is_empty()) {
        (Some(chan), true) => String::from(chan.name()),
        _ => return Err("via: one channel".into()),
    };
    for _ in 0..repeat {
        // A channel that comes back is another one, of the same name.
        let chan = || {
            registry()
                .channel(&name)
                .ok_or_else(|| format!("{name} is gone"))
        };
        idle(&chan()?).await?;
        full(&chan()?, size).await?;
    }
    Ok(())
}

/// Takes an engine away that does nothing, while one channel of each other has work.
async fn idle(chan: &DmaChan) -> Result<(), String> {
    let address = address_of(chan)?;
    let case = Case {
        size: 65536,
        batch: 32,
        mode: Mode::Irq,
        limit: 2 * LOADED,
    };
    let mut lanes = Vec::new();
    for other in drivers::all() {
        let first = other.1.channels().next();
        if let Some(first) = first.filter(|_| other.0 != address) {
            let channel = first.request().await;
            let channel = channel.map_err(|error| format!("{first}: {error}"))?;
            let lane = Lane::new(Arc::new(channel), case)?;
            lanes.push(task::spawn("bench-removal", None, lane.run()));
        }
    }
    sleep(LOADED).await;
    let (removal, took) = take_away(address).await?;
    report("idle", took, Duration::ZERO, &removal);
    for lane in lanes {
        let (lane, _) = lane.await?;
        lane.verify()?;
    }
    removal::bind(address).await
}

/// Takes an engine away with the ring of a channel full, whose holder is not waited for.
async fn full(chan: &DmaChan, size: usize) -> Result<(), String> {
    let address = address_of(chan)?;
    let channel = chan.request().await;
    let channel = channel.map_err(|error| format!("{chan}: {error}"))?;
    let mut memory = Memory::new(size).map_err(|error| format!("{error}"))?;
    for (at, byte) in memory.iter_mut().enumerate() {
        *byte = (at ^ (at >> 8)) as u8 | 1;
    }
    let memory = Arc::new(memory);
    let start = Instant::now();
    let ring = filled(&channel, &memory)?;
    channel.issue_pending();
    let begun = Instant::now();
    finished(ring, &memory).await?;
    let needed = begun.elapsed();
    log::debug!(
        "{chan}: a full ring: {} us to write",
        (begun - start).as_micros()
    );
    let ring = filled(&channel, &memory)?;
    channel.issue_pending();
    let (removal, took) = take_away(address).await?;
    report("full", took, needed, &removal);
    finished(ring, &memory).await?;
    drop(channel);
    removal::bind(address).await
}

/// Copies of all of `memory` until the ring takes no more, not issued.
fn filled(channel: &Channel, memory: &Arc<Memory>) -> Result<Vec<Submitted<Memcpy>>, String> {
    let failed = |what: &dyn core::fmt::Display| format!("{}: {what}", channel.name());
    let len = memory.len();
    let mut ring = Vec::new();
    loop {
        let src = Source::new(memory.clone(), 0..len).ok_or("an empty source")?;
        let dst = Memory::new(len).map_err(|error| failed(&error))?;
        let dst = Destination::new(dst, 0..len).map_err(|_| "an empty destination")?;
        let descriptor = channel.prep_memcpy(dst, src, Flags::INTERRUPT);
        match channel.submit(descriptor.map_err(|error| failed(&error))?) {
            Ok(submitted) => ring.push(submitted),
            Err(error) if error.reason == SubmitReason::Full => return Ok(ring),
            Err(error) => return Err(failed(&error)),
        }
    }
}

/// Waits for all of them, and compares.
async fn finished(ring: Vec<Submitted<Memcpy>>, memory: &Memory) -> Result<(), String> {
    for submitted in ring {
        let finished = timeout(BATCH_PATIENCE, submitted.finish()).await;
        let finished = finished.map_err(|_| "a copy does not end")?;
        finished
            .result
            .map_err(|error| format!("a copy failed: {error}"))?;
        let (dst, _) = finished.buffers.ok_or("a copy's buffers are lost")?;
        if dst.into_memory()[..] != memory[..] {
            return Err("a copy differs from its source".into());
        }
    }
    Ok(())
}

async fn take_away(address: Address) -> Result<(Removal, Duration), String> {
    let start = Instant::now();
    let removal = removal::unbind_within(address, Duration::ZERO).await?;
    Ok((removal, start.elapsed()))
}

fn address_of(chan: &DmaChan) -> Result<Address, String> {
    let has =
        |device: &dmaengine::DmaDevice| device.channels().any(|its| its.name() == chan.name());
    let found = drivers::all().into_iter().find(|(_, device)| has(device));
    Ok(found.ok_or_else(|| format!("{chan}: no engine's"))?.0)
}

fn report(case: &str, took: Duration, needed: Duration, removal: &Removal) {
    let Removal {
        in_flight,
        failed_over,
        by_cpu,
        lost,
        ..
    } = removal;
    crate::machine_line!(
        "bench: removal case={case} us={} ring_us={} inflight={in_flight} \
         failed_over={failed_over} cpu={by_cpu} lost={lost}",
        took.as_micros(),
        needed.as_micros(),
    );
}
