//! `bench pipeline`: frames through three stages (drawn, copied to the screen, copied away), by
//! engines and by the CPU. All are queued at once; fences keep their order.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use dma_buf::{BufError, DmaBuf, copy, fill};
use dmaengine::{AsyncTx, Client, Registry, registry};
use hal::time::Instant;

use super::params::Params;
use super::ratio::per_second;
use super::{Benchmark, Run};

pub(super) const BENCHMARK: Benchmark = Benchmark {
    name: "pipeline",
    usage: "sizes=4096,65536 frames=200 by=dma,cpu repeat=1",
    run: |params| -> Run { Box::pin(run(params)) },
};

fn by(word: &str) -> Option<bool> {
    match word {
        "dma" => Some(true),
        "cpu" => Some(false),
        _ => None,
    }
}

async fn run(mut params: Params) -> Result<(), String> {
    let sizes = params.numbers("sizes", &[4096, 65536], 1, 1 << 24)?;
    let frames = params.number("frames", 200, 1, 10_000)?;
    let bys = params.list("by", "dma,cpu", by)?;
    let repeat = params.number("repeat", 1, 1, 1000)?;
    params.finish()?;
    let client = Client::new("bench");
    for _ in 0..repeat {
        for &size in &sizes {
            for &engines in &bys {
                // A registry of its own has the CPU alone.
                let alone = Registry::new();
                let registry = if engines { registry() } else { &alone };
                let tx = AsyncTx::new(registry, &client, None).await;
                let tx = Arc::new(tx.map_err(|error| format!("{error}"))?);
                let nanos = measure(&tx, size, frames).await;
                let nanos = nanos.map_err(|error| format!("{error}"))?;
                crate::machine_line!(
                    "bench: pipeline size={size} via={} frames={frames} fps={} nanos={nanos}",
                    if engines { "dma" } else { "cpu" },
                    per_second(frames as u64, nanos),
                );
                // Its last task may still hold it: then it is given up with that.
                if let Some(tx) = Arc::into_inner(tx) {
                    tx.close().await;
                }
            }
        }
    }
    Ok(())
}

async fn measure(tx: &Arc<AsyncTx>, size: usize, frames: usize) -> Result<u64, BufError> {
    let buf = || DmaBuf::new(size);
    let (drawn, shown, kept) = ([buf()?, buf()?], [buf()?, buf()?], [buf()?, buf()?]);
    let begin = Instant::now();
    let mut last = [None, None];
    for frame in 0..frames {
        let at = frame % 2;
        fill(tx, &drawn[at], frame as u8).submit().await?;
        copy(tx, &shown[at], &drawn[at]).submit().await?;
        last[at] = Some(copy(tx, &kept[at], &shown[at]).submit().await?);
    }
    for fence in last.into_iter().flatten() {
        fence.wait().await?;
    }
    Ok(begin.elapsed().as_nanos() as u64)
}
