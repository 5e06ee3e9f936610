//! A run of the test client: channels, threads, summaries.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use dma_fence::{Context, Fence, Signaler};
use hal::dma::{Memory, OutOfMemory};
use hal::time::{Duration, Instant};
use spin::Mutex;

use super::params::{ParamError, Params, TestType};
use super::random::Random;
use super::thread::{Buffers, Report, Thread};
use crate::async_tx::AsyncTx;
use crate::capability::Capabilities;
use crate::chan::DmaChan;
use crate::client::Client;
use crate::life::RequestError;
use crate::registry::{Registry, names};

/// Where the lines go, one call a line, without its end.
pub type Output = Arc<dyn Fn(fmt::Arguments<'_>) + Send + Sync>;

/// What all threads together did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Threads.
    pub threads: usize,
    /// Tests of all threads.
    pub tests: u64,
    /// Tests that failed.
    pub failures: u64,
    /// Bytes that operations moved.
    pub bytes: u64,
}

/// Why there was no run: one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunError {
    /// A parameter is wrong.
    Param(ParamError),
    /// A channel could not be had.
    Request(String, RequestError),
    /// There is no memory for the buffers.
    Memory {
        /// Bytes of each.
        test_buf_size: usize,
        /// How many.
        buffers: usize,
    },
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Param(error) => error.fmt(f),
            Self::Request(name, error) => write!(f, "{name}: {error}"),
            Self::Memory {
                test_buf_size,
                buffers,
            } => write!(
                f,
                "test_buf_size={test_buf_size}: larger than memory, {buffers} buffers of it"
            ),
        }
    }
}

impl From<ParamError> for RunError {
    fn from(error: ParamError) -> Self {
        Self::Param(error)
    }
}

/// Stops the threads when the run ends, finished or dropped.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A thread that was started.
struct Started {
    name: String,
    done: Fence,
    report: Arc<Mutex<Option<Report>>>,
}

/// Runs the test that `words` describe, on the devices of `registry`, to its end.
pub async fn run<'a>(
    registry: &Registry,
    words: impl IntoIterator<Item = &'a str>,
    out: &Output,
) -> Result<Summary, RunError> {
    let params = Arc::new(Params::parse(words)?);
    let chans = choose(registry, &params, out)?;
    for chan in &chans {
        check(chan, &params)?;
    }
    let mut buffers = buffers(&params, &chans)?.into_iter();
    let client = Client::new("dmatest");
    let mut ways = Vec::new();
    for chan in &chans {
        for _ in 0..params.threads_per_chan {
            let way = AsyncTx::new(registry, &client, Some(chan)).await;
            ways.push(way.map_err(|error| RunError::Request(chan.name().to_string(), error))?);
        }
    }
    let mut ways = ways.into_iter();
    let stop = Stop(Arc::default());
    let mut threads = Vec::new();
    for chan in &chans {
        let count = params.threads_per_chan;
        out(format_args!(
            "dmatest: Started {count} threads using {}",
            chan.name()
        ));
        for index in 0..count {
            let (Some(buffers), Some(tx)) = (buffers.next(), ways.next()) else {
                break;
            };
            threads.push(spawn(Thread {
                name: thread_name(chan, params.dmatest, index),
                chan: chan.clone(),
                tx,
                params: params.clone(),
                stop: stop.0.clone(),
                out: out.clone(),
                buffers,
                random: Random::new(Instant::now().as_nanos() ^ (threads.len() as u64) << 56),
            }));
        }
    }
    let mut summary = Summary::default();
    for thread in threads {
        // An abandoned thread is one without a report, which is a failure.
        let _ = thread.done.wait().await;
        let abandoned = Report {
            failures: 1,
            ..Report::default()
        };
        let report = thread.report.lock().take();
        let report = report.unwrap_or_else(|| {
            summarize(&thread.name, &abandoned, out);
            abandoned
        });
        summary.threads += 1;
        summary.tests += report.tests;
        summary.failures += report.failures;
        summary.bytes += report.bytes;
    }
    drop(stop);
    Ok(summary)
}

/// The channels to test.
fn choose(registry: &Registry, params: &Params, out: &Output) -> Result<Vec<DmaChan>, ParamError> {
    let capability = params.dmatest.capability();
    if let Some(name) = &params.channel {
        let Some(chan) = registry.channel(name) else {
            let names = names(registry);
            return Err(ParamError(format!(
                "channel={name}: no such channel (there are: {names})"
            )));
        };
        if !chan.info().capabilities.contains(capability) {
            return Err(ParamError(format!("channel={name}: cannot {capability}")));
        }
        return Ok(Vec::from([chan]));
    }
    let mut chans = registry.channels();
    // Private channels are had by name only.
    chans.retain(|chan| {
        let capabilities = chan.info().capabilities;
        capabilities.contains(capability) && !capabilities.contains(Capabilities::PRIVATE)
    });
    if params.max_channels > 0 {
        chans.truncate(params.max_channels);
    }
    if chans.is_empty() {
        out(format_args!(
            "dmatest: no engine found that can {capability}, the CPU does it"
        ));
        chans.push(registry.cpu());
    }
    Ok(chans)
}

/// Whether the parameters fit the channel.
fn check(chan: &DmaChan, params: &Params) -> Result<(), ParamError> {
    let info = chan.info();
    let (name, transfer, limit) = (chan.name(), params.transfer_size, info.max_transfer);
    if transfer > limit {
        return Err(ParamError(format!(
            "transfer_size={transfer}: {name} moves at most {limit} bytes at once"
        )));
    }
    if params.test_buf_size >> info.copy_align == 0 {
        return Err(ParamError(format!(
            "test_buf_size={}: {name} needs an alignment of {} bytes",
            params.test_buf_size,
            1u64 << info.copy_align
        )));
    }
    Ok(())
}

/// The buffers of each thread, in the order of the threads.
fn buffers(params: &Params, chans: &[DmaChan]) -> Result<Vec<Buffers>, RunError> {
    let size = params.test_buf_size;
    let blocks = || {
        let of_each = chans.iter().map(|chan| params.blocks(chan.info()));
        of_each.flat_map(|blocks| core::iter::repeat_n(blocks, params.threads_per_chan))
    };
    let several = |count| {
        let buffers = (0..count).map(|_| Memory::new(size));
        buffers.collect::<Result<_, OutOfMemory>>()
    };
    blocks()
        .map(|(srcs, dsts)| {
            Ok(Buffers {
                srcs: several(srcs)?,
                dsts: several(dsts)?,
            })
        })
        .collect::<Result<_, OutOfMemory>>()
        .map_err(|_| RunError::Memory {
            test_buf_size: size,
            buffers: blocks().map(|(srcs, dsts)| srcs + dsts).sum(),
        })
}

fn spawn(thread: Thread) -> Started {
    static NEXT: core::sync::atomic::AtomicUsize = core::sync::atomic::AtomicUsize::new(0);
    let (signaler, done): (Signaler, Fence) = Context::new().fence();
    let report = Arc::new(Mutex::new(None));
    let started = Started {
        name: thread.name.clone(),
        done,
        report: report.clone(),
    };
    let cpu = NEXT.fetch_add(1, Ordering::Relaxed) % hal::cpu::possible().max(1);
    hal::task::spawn_on("dmatest", cpu, async move {
        let (name, out) = (thread.name.clone(), thread.out.clone());
        let found = thread.run().await;
        // Here, so that a run that was stopped tells as well.
        summarize(&name, &found, &out);
        drop(out);
        *report.lock() = Some(found);
        signaler.signal(Ok(()));
    });
    started
}

fn thread_name(chan: &DmaChan, test: TestType, index: usize) -> String {
    format!("{}-{}{index}", chan.name(), test.name())
}

fn summarize(name: &str, report: &Report, out: &Output) {
    let Report {
        tests,
        failures,
        bytes,
        time,
        ended_by,
    } = *report;
    let iops = per_second(u128::from(tests) * 100, time);
    let kilobytes = per_second(u128::from(bytes) / 1024, time);
    out(format_args!(
        "dmatest: {name}: summary {tests} tests, {failures} failures {}.{:02} iops {kilobytes} KB/s \
         ({ended_by})",
        iops / 100,
        iops % 100,
    ));
}

fn per_second(count: u128, time: Duration) -> u128 {
    (count * 1_000_000_000)
        .checked_div(time.as_nanos())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::{self, Mock};
    use dma_fence::FenceError;
    use hal::host::block_on;
    use hal::time::{poll_until, timeout};
    use std::vec;

    type Lines = Arc<Mutex<Vec<String>>>;

    fn output() -> (Output, Lines) {
        let lines = Lines::default();
        let sink = lines.clone();
        (
            Arc::new(move |line| sink.lock().push(line.to_string())),
            lines,
        )
    }

    fn run_line(registry: &Registry, line: &str) -> (Result<Summary, RunError>, Vec<String>) {
        let (out, lines) = output();
        // Every byte is looked at, which takes Miri long. What comes later counts.
        let small = cfg!(miri).then_some("test_buf_size=128");
        let words = small.into_iter().chain(line.split_whitespace());
        let result = block_on(run(registry, words, &out));
        let lines = lines.lock().clone();
        (result, lines)
    }

    fn with(mock: &Arc<Mock>) -> Registry {
        let registry = Registry::new();
        registry.register(mock::info(), vec![mock.clone()]).unwrap();
        registry
    }

    #[test]
    fn without_engines_the_cpu_is_tested_and_said_so() {
        let (result, lines) = run_line(&Registry::new(), "iterations=50");
        let summary = result.unwrap();
        assert_eq!((summary.tests, summary.failures), (50, 0));
        assert_eq!(
            lines[0],
            "dmatest: no engine found that can memcpy, the CPU does it"
        );
        assert_eq!(lines[1], "dmatest: Started 1 threads using cpu");
        let last = &lines[2];
        assert!(
            last.starts_with("dmatest: cpu-copy0: summary 50 tests, 0 failures "),
            "{last}"
        );
        assert!(last.ends_with(" KB/s (0)"), "{last}");
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn threads_report_one_line_each_and_let_go() {
        let mock = Mock::eager(8);
        let registry = with(&mock);
        let (result, lines) = run_line(&registry, "iterations=20 threads_per_chan=4");
        let summary = result.unwrap();
        assert_eq!(
            (summary.threads, summary.tests, summary.failures),
            (4, 80, 0)
        );
        for index in 0..4 {
            let start =
                std::format!("dmatest: dma0chan0-copy{index}: summary 20 tests, 0 failures ");
            assert!(
                lines.iter().any(|line| line.starts_with(&start)),
                "{lines:?}"
            );
        }
        let chan = registry.channel("dma0chan0").unwrap();
        assert_eq!((chan.clients(), chan.is_running()), (0, false));
        assert_eq!(chan.counters().copies, 80);
    }

    #[test]
    fn private_channels_are_tested_by_name_only() {
        let registry = with(&Mock::eager(8));
        let mut info = mock::info();
        info.capabilities |= Capabilities::PRIVATE;
        registry.register(info, vec![Mock::eager(8)]).unwrap();
        let (result, lines) = run_line(&registry, "iterations=5");
        assert_eq!(result.unwrap().threads, 1);
        assert!(lines[1].contains(" dma0chan0-copy0: "), "{lines:?}");
        let (result, lines) = run_line(&registry, "iterations=5 channel=dma1chan0");
        assert_eq!(result.unwrap().tests, 5);
        assert!(lines[1].contains(" dma1chan0-copy0: "), "{lines:?}");
    }

    #[test]
    fn copies_in_a_chain_end_one_after_the_other() {
        let registry = with(&Mock::eager(8));
        // More than the ring holds.
        let tests = mock::times(5) as u64;
        let line = format!("chain=20 iterations={tests} test_buf_size=64");
        let (result, lines) = run_line(&registry, &line);
        let summary = result.unwrap();
        assert_eq!((summary.tests, summary.failures), (tests, 0), "{lines:?}");
        assert_eq!(registry.channels()[0].counters().copies, 20 * tests);
    }

    #[test]
    fn fills_are_tested_too() {
        let registry = with(&Mock::eager(8));
        let (result, lines) = run_line(&registry, "dmatest=1 iterations=30 polled=1");
        assert_eq!(result.unwrap().failures, 0);
        assert!(lines[1].starts_with("dmatest: dma0chan0-set0: summary 30 tests, 0 failures"));
    }

    #[test]
    fn the_cpu_does_what_no_engine_can() {
        let tests = mock::times(30);
        for (test, kind) in [("2", "xor"), ("3", "pq")] {
            let registry = with(&Mock::eager(8));
            let line = format!("dmatest={test} iterations={tests} {kind}_sources=4");
            let (result, lines) = run_line(&registry, &line);
            let summary = result.unwrap();
            assert_eq!((summary.tests, summary.failures), (tests as u64, 0));
            let says = format!("dmatest: no engine found that can {kind}, the CPU does it");
            assert_eq!(lines[0], says);
            let start = format!("dmatest: cpu-{kind}0: summary {tests} tests, 0 failures ");
            assert!(lines[2].starts_with(&start), "{lines:?}");
            assert_eq!(registry.cpu().counters().parities, tests as u64);
        }
    }

    fn with_parities(max: u8) -> (Registry, Arc<Mock>) {
        let registry = Registry::new();
        let mock = Mock::eager(8);
        let info = crate::DeviceInfo {
            capabilities: Capabilities::XOR | Capabilities::PQ,
            max_xor: max,
            max_pq: max,
            ..mock::info()
        };
        registry.register(info, vec![mock.clone()]).unwrap();
        (registry, mock)
    }

    #[test]
    fn parities_are_tested_with_as_many_sources_as_an_engine_takes() {
        let tests = mock::times(5) as u64;
        for test in ["2", "3"] {
            for (max, by_engine) in [(2, 0), (3, tests), (4, tests), (8, tests)] {
                let (registry, _mock) = with_parities(max);
                let line = format!("dmatest={test} iterations={tests} xor_sources=8 pq_sources=8");
                let (result, lines) = run_line(&registry, &line);
                assert_eq!(result.unwrap().failures, 0, "{lines:?}");
                let chan = registry.channel("dma0chan0").unwrap();
                assert_eq!(chan.counters().parities, by_engine, "{max} sources");
            }
        }
    }

    #[test]
    fn a_wrong_parity_is_found() {
        for (test, message) in [
            (
                "2",
                "dmatest: dma0chan0-xor0: dstbuf[0x0] not copied! Expected df, got de",
            ),
            (
                "3",
                "dmatest: dma0chan0-pq0: dstbuf[0x0] not copied! Expected df, got de",
            ),
        ] {
            let (registry, mock) = with_parities(3);
            mock.state.lock().corrupt = true;
            let line = format!("dmatest={test} iterations=1 norandom=1 test_buf_size=256");
            let (result, lines) = run_line(&registry, &line);
            assert_eq!(result.unwrap().failures, 1);
            assert_eq!(lines[1], message);
            assert!(lines[2].ends_with("len=0x100 (1)"), "one byte: {lines:?}");
        }
    }

    #[test]
    fn a_wrong_byte_is_found() {
        let mock = Mock::eager(8);
        mock.state.lock().corrupt = true;
        let (result, lines) = run_line(&with(&mock), "iterations=3 norandom=1 test_buf_size=256");
        assert_eq!(result.unwrap().failures, 3);
        assert_eq!(
            lines[1],
            "dmatest: dma0chan0-copy0: dstbuf[0x0] not copied! Expected df, got de"
        );
        assert_eq!(
            lines[2],
            "dmatest: dma0chan0-copy0: result #1: 'data error' with src_off=0x0 dst_off=0x0 \
             len=0x100 (1)"
        );
        assert!(
            lines[7].contains("summary 3 tests, 3 failures "),
            "{lines:?}"
        );
        let (result, _) = run_line(&with(&mock), "iterations=3 noverify=1");
        assert_eq!(result.unwrap().failures, 0, "nobody looks");
    }

    #[test]
    fn an_operation_that_never_completes_times_out_and_the_next_is_tried() {
        let (result, lines) = run_line(&with(&Mock::new(8)), "iterations=2 timeout=10");
        assert_eq!(result.unwrap().failures, 2);
        assert!(
            lines[1].contains("result #1: 'test timed out' with src_off="),
            "{lines:?}"
        );
        assert!(
            lines[2].contains("result #2: 'test timed out'"),
            "{lines:?}"
        );
    }

    #[test]
    fn an_operation_that_fails_is_counted() {
        let mock = Mock::new(8);
        let registry = with(&mock);
        let thread = std::thread::spawn(move || {
            for result in [
                Err(FenceError::Device(0x400)),
                Ok(()),
                Err(FenceError::Gone),
            ] {
                while !mock.finish(result) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        let (result, lines) = run_line(&registry, "iterations=100");
        thread.join().unwrap();
        let summary = result.unwrap();
        assert_eq!(
            (summary.tests, summary.failures),
            (3, 2),
            "it ends when the device is gone"
        );
        assert!(
            lines[1].contains("'completion error status: device error 0x400'"),
            "{lines:?}"
        );
        assert!(lines[2].contains("result #3: 'device gone'"), "{lines:?}");
        assert!(lines[3].ends_with("(-19)"), "{lines:?}");
    }

    #[test]
    fn a_dropped_run_stops_its_threads() {
        let mock = Mock::eager(8);
        let registry = with(&mock);
        let (out, _) = output();
        let limit = Duration::from_millis(20);
        let endless = run(&registry, ["iterations=0"], &out);
        assert!(block_on(timeout(limit, endless)).is_err());
        let chan = registry.channel("dma0chan0").unwrap();
        // A thread tells how it was after it has let go of its channel.
        let ended = || chan.clients() == 0 && !chan.is_running() && Arc::strong_count(&out) == 1;
        let step = Duration::from_millis(1);
        block_on(poll_until(Duration::from_secs(60), step, ended)).unwrap();
    }

    #[test]
    fn wrong_parameters_run_nothing() {
        let registry = with(&Mock::eager(8));
        for (line, part) in [
            (
                "channel=dma9chan9",
                "channel=dma9chan9: no such channel (there are: dma0chan0 cpu)",
            ),
            ("test_buf_size=1000000000000", "larger than memory"),
            (
                "transfer_size=2000000 test_buf_size=2000000",
                "moves at most 1048576 bytes",
            ),
            ("threads_per_chan=0", "expected 1 to 256"),
            ("what=1", "unknown parameter"),
        ] {
            let (result, lines) = run_line(&registry, line);
            let error = result.unwrap_err().to_string();
            assert!(error.contains(part), "{line}: {error}");
            assert!(lines.is_empty(), "{lines:?}");
        }
        let chan = registry.channel("dma0chan0").unwrap();
        let held = block_on(chan.request()).unwrap();
        let (result, _) = run_line(&registry, "channel=dma0chan0 iterations=1");
        assert_eq!(
            result.unwrap_err().to_string(),
            "dma0chan0: the channel is busy"
        );
        drop(held);
    }
}
