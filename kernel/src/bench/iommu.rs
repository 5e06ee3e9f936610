//! `bench iommu`: what it costs to map memory for a device that is confined and to unmap it again,
//! and copies through it with mappings made for each, and with mappings that are kept.
//!
//! Without an IOMMU there is nothing to map: the copies alone are measured, for comparison.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;

use dmaengine::{Channel, DmaChan, registry};
use hal::dma::{DmaSpace, Memory, Source};
use hal::time::{Duration, Instant};

use super::copy::{Case, Done, Lane, Mode};
use super::params::Params;
use super::ratio::per_second;
use super::{Benchmark, Run};
use crate::iommu::{self, Confined};

pub(super) const BENCHMARK: Benchmark = Benchmark {
    name: "iommu",
    usage: "maps=200 size=65536 ms=200 repeat=1",
    run: |params| -> Run { Box::pin(run(params)) },
};

const SMALL: usize = 4096;
const LARGE: usize = 2 << 20;
const SIZE_LIMIT: usize = 4 << 20;

async fn run(mut params: Params) -> Result<(), String> {
    let maps = params.number("maps", 200, 1, 100_000)?;
    let size = params.number("size", 65536, SMALL, SIZE_LIMIT)?;
    let limit = Duration::from_millis(params.number("ms", 200, 1, 60_000)?);
    let repeat = params.number("repeat", 1, 1, 1000)?;
    params.finish()?;
    let chan = registry().channels().into_iter().next();
    let chan = chan.ok_or("there is no engine")?;
    let device = registry().devices().into_iter().next();
    let provider = device.map_or_else(String::new, |device| device.info().provider.clone());
    let is_its = |confined: &Arc<Confined>| {
        let address = confined.domain().device();
        provider.ends_with(&address.to_string())
    };
    let confined = iommu::all().into_iter().find(is_its);
    let space = confined.map(|its: Arc<Confined>| DmaSpace::new(its));
    let case = Case {
        size,
        batch: 1,
        mode: Mode::Polled,
        limit,
    };
    for _ in 0..repeat {
        if let Some(space) = &space {
            for bytes in [SMALL, LARGE] {
                mapping(space, bytes, maps)?;
            }
        }
        copies(&chan, None, case).await?;
        if space.is_some() {
            copies(&chan, space.as_ref(), case).await?;
        }
    }
    Ok(())
}

/// Maps and unmaps as many bytes, aligned to their number, over and over.
fn mapping(space: &DmaSpace, bytes: usize, maps: u64) -> Result<(), String> {
    let memory = Memory::with(bytes, bytes, u64::MAX).map_err(|error| error.to_string())?;
    let source = Source::new(Arc::new(memory), 0..bytes).ok_or("no source")?;
    let (mut map_ns, mut unmap_ns) = (0, 0);
    for _ in 0..maps {
        let start = Instant::now();
        let mapping = space.map_source(&source);
        let mapping = mapping.map_err(|error| error.to_string())?;
        let mapped = Instant::now();
        drop(mapping);
        map_ns += (mapped - start).as_nanos() as u64;
        unmap_ns += mapped.elapsed().as_nanos() as u64;
    }
    crate::machine_line!(
        "bench: mapping bytes={bytes} map_ns={} unmap_ns={} maps={maps}",
        map_ns / maps,
        unmap_ns / maps
    );
    Ok(())
}

/// Copies, one after the other; with `keep`, while both buffers are mapped there all the time.
async fn copies(chan: &DmaChan, keep: Option<&DmaSpace>, case: Case) -> Result<(), String> {
    let channel = chan.request().await.map_err(|error| error.to_string())?;
    let channel = Arc::new(channel);
    let done = lane(&channel, keep, case).await;
    if let Some(channel) = Arc::into_inner(channel) {
        channel.release().await;
    }
    let done = done?;
    let how = match (iommu::is_on(), keep) {
        (false, _) => "off",
        (true, None) => "on",
        (true, Some(_)) => "kept",
    };
    let (ops, ns) = (done.copies, done.nanos());
    crate::machine_line!(
        "bench: confined iommu={how} size={} iops={} KB/s={} ops={ops} ns={ns}",
        case.size,
        per_second(ops, ns),
        per_second(ops * case.size as u64 / 1024, ns)
    );
    Ok(())
}

async fn lane(channel: &Arc<Channel>, keep: Option<&DmaSpace>, case: Case) -> Result<Done, String> {
    let lane = Lane::new(channel.clone(), case)?;
    let kept = keep.map(|space| lane.map(space)).transpose();
    let kept = kept.map_err(|error| error.to_string())?;
    let (lane, done) = lane.run().await?;
    drop(kept);
    lane.verify()?;
    Ok(done)
}
