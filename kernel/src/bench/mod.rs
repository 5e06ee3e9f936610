//! Benchmarks, behind the console command `bench`.
//!
//! Each is a file here and a line of [`BENCHMARKS`]. What it measures it prints as lines
//! `bench: NAME KEY=VALUE…` for machines, raw counts among them, so that whoever reads them need
//! not trust a rounded quotient. Interleaving and statistics are the launcher's (qemu/src/bench).

#[cfg(target_os = "none")]
mod buffers;
#[cfg(target_os = "none")]
mod copy;
#[cfg(target_os = "none")]
mod counts;
#[cfg(target_os = "none")]
mod find;
#[cfg(target_os = "none")]
mod iommu;
pub mod params;
pub mod ratio;
#[cfg(target_os = "none")]
mod removal;

use alloc::boxed::Box;
use alloc::string::String;
use core::future::Future;
use core::pin::Pin;

use params::Params;

/// A benchmark on its way. Dropping it stops it.
pub type Run = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// A benchmark.
pub struct Benchmark {
    /// What to type after `bench`.
    pub name: &'static str,
    /// Its parameters.
    pub usage: &'static str,
    /// Runs it. The error is one line.
    pub run: fn(Params) -> Run,
}

/// Says what a benchmark has had an engine do, for whoever compares with the engine's own count:
/// operations, and one start of the channel.
#[cfg(target_os = "none")]
fn claim(by: &str, chan: &dmaengine::DmaChan, ops: u64) {
    let starts = u8::from(chan.name() != "cpu");
    crate::machine_line!(
        "bench: claimed by={by} via={} ops={ops} starts={starts}",
        chan.name()
    );
}

/// All benchmarks.
#[cfg(target_os = "none")]
pub static BENCHMARKS: &[Benchmark] = &[
    copy::BENCHMARK,
    find::BENCHMARK,
    removal::BENCHMARK,
    buffers::BENCHMARK,
    iommu::BENCHMARK,
    counts::TOTALS,
];
