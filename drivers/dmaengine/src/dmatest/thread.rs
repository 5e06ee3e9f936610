//! One test thread: a task that tests one channel.

use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use dma_fence::{Fence, FenceError};
use hal::dma::{Destination, Memory, Source};
use hal::time::{Duration, Instant, timeout};

use super::params::{Params, TestType};
use super::pattern::{self, Expected, Mismatch};
use super::random::Random;
use super::run::Output;
use crate::async_tx::{AsyncTx, Sent};
use crate::capability::Flags;
use crate::chan::DmaChan;
use crate::prep::PrepReason;
use crate::submitted::Submitted;
use crate::work::Kind;

/// Differing bytes that are printed, per part of a buffer. Linux prints as many.
const MISMATCHES_SHOWN: usize = 32;
/// How long a terminated operation may take to give its buffers back.
const RECOVERY_LIMIT: Duration = Duration::from_secs(10);

/// What a thread has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) tests: u64,
    pub(super) failures: u64,
    pub(super) bytes: u64,
    /// Spent in operations, without filling and comparing.
    pub(super) time: Duration,
    /// What ended the thread early.
    pub(super) ended_by: i32,
}

pub(super) struct Thread {
    pub(super) name: String,
    /// The channel that it tests, as long as its device stays.
    pub(super) chan: DmaChan,
    pub(super) tx: AsyncTx,
    pub(super) params: Arc<Params>,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) out: Output,
    pub(super) src: Memory,
    pub(super) dst: Memory,
    pub(super) random: Random,
}

/// Where in the buffers one test copies.
#[derive(Clone, Copy)]
struct Place {
    src_off: usize,
    dst_off: usize,
    len: usize,
}

/// How one test failed.
enum Failure {
    /// Counted and reported; the next test may do better.
    Test(&'static str, Option<FenceError>, usize),
    /// There will be no next test, for this errno.
    End(&'static str, i32),
}

/// The buffers after a test, or that they are lost, and how it went.
type Outcome = (Option<(Memory, Memory)>, Result<(), Failure>);

const EIO: i32 = -5;
const ENODEV: i32 = -19;

impl Thread {
    /// Tests until the iterations are done or somebody says stop.
    pub(super) async fn run(self) -> Report {
        let Self {
            name,
            chan,
            tx,
            params,
            stop,
            out,
            src,
            dst,
            mut random,
        } = self;
        let test = Test {
            name: &name,
            chan: &chan,
            tx: &tx,
            params: &params,
            out: &out,
        };
        let mut report = Report::default();
        let mut buffers = Some((src, dst));
        while let Some((src, dst)) = buffers.take() {
            if stop.load(Ordering::Relaxed)
                || (params.iterations > 0 && report.tests == params.iterations)
            {
                break;
            }
            // Where operations complete at once, nothing else lets others run.
            hal::task::yield_now().await;
            report.tests += 1;
            let place = test.place(&mut random);
            let (back, result) = test.once(place, src, dst, &mut report.time).await;
            report.bytes += place.len as u64;
            buffers = back;
            let Err(failure) = result else { continue };
            report.failures += 1;
            let end = match failure {
                Failure::Test(..) if buffers.is_none() => EIO,
                Failure::Test(..) => 0,
                Failure::End(_, errno) => errno,
            };
            test.tell(report.tests, place, &failure);
            if end != 0 {
                report.ended_by = end;
                break;
            }
        }
        tx.close().await;
        report
    }
}

/// What does not change between the tests of a thread.
struct Test<'a> {
    name: &'a str,
    chan: &'a DmaChan,
    tx: &'a AsyncTx,
    params: &'a Params,
    out: &'a Output,
}

impl Test<'_> {
    fn print(&self, args: fmt::Arguments<'_>) {
        (self.out)(args);
    }

    fn tell(&self, number: u64, place: Place, failure: &Failure) {
        let Place {
            src_off,
            dst_off,
            len,
        } = place;
        let (message, error, data) = match *failure {
            Failure::Test(message, error, data) => (message, error, data),
            Failure::End(message, _) => (message, None, 0),
        };
        let why = Why(error);
        let name = self.name;
        self.print(format_args!(
            "dmatest: {name}: result #{number}: '{message}{why}' with src_off={src_off:#x} \
             dst_off={dst_off:#x} len={len:#x} ({data})"
        ));
    }

    fn place(&self, random: &mut Random) -> Place {
        let params = self.params;
        let size = params.test_buf_size;
        let log2 = match params.alignment {
            -1 => u32::from(self.chan.info().copy_align),
            log2 => log2 as u32,
        };
        // The buffers are at least as long as the alignment; checked before the threads start.
        let down = |n: usize| n >> log2 << log2;
        let len = match params.transfer_size {
            0 if params.norandom => size,
            0 => random.below(size) + 1,
            len => len,
        };
        let len = down(len.min(self.chan.info().max_transfer)).max(1 << log2);
        let mut offset = || match params.norandom {
            true => 0,
            false => down(random.below(size - len + 1)),
        };
        Place {
            src_off: offset(),
            dst_off: offset(),
            len,
        }
    }

    /// One test.
    async fn once(
        &self,
        place: Place,
        mut src: Memory,
        mut dst: Memory,
        time: &mut Duration,
    ) -> Outcome {
        let from = place.src_off..place.src_off + place.len;
        let to = place.dst_off..place.dst_off + place.len;
        if !self.params.noverify {
            pattern::fill(
                &mut src,
                from.clone(),
                pattern::SRC,
                pattern::SRC | pattern::COPY,
            );
            pattern::fill(
                &mut dst,
                to.clone(),
                pattern::DST,
                pattern::DST | pattern::OVERWRITE,
            );
        }
        let outcome = match self.params.dmatest {
            TestType::Copy => self.copy(from.clone(), to.clone(), src, dst, time).await,
            TestType::Set => self.set(to.clone(), src, dst, time).await,
        };
        match outcome {
            (Some((src, dst)), Ok(())) if !self.params.noverify => {
                let errors = self.verify(place, &src, &dst);
                let result = match errors {
                    0 => Ok(()),
                    errors => Err(Failure::Test("data error", None, errors)),
                };
                (Some((src, dst)), result)
            }
            other => other,
        }
    }

    async fn copy(
        &self,
        from: core::ops::Range<usize>,
        to: core::ops::Range<usize>,
        src: Memory,
        dst: Memory,
        time: &mut Duration,
    ) -> Outcome {
        // Both ranges lie inside by construction; were they not, the buffers would be lost.
        let Some(source) = Source::new(Arc::new(src), from) else {
            return (None, Err(Failure::End("src range error", EIO)));
        };
        let Ok(destination) = Destination::new(dst, to) else {
            return (None, Err(Failure::End("dst range error", EIO)));
        };
        let start = Instant::now();
        let sent = self.tx.memcpy(destination, source, self.flags()).await;
        let (buffers, result) = match sent {
            Ok(sent) => self.transfer(sent).await,
            Err(error) => (Some(error.buffers), Err(prep_failure(error.reason))),
        };
        *time += start.elapsed();
        let buffers = buffers.and_then(|(destination, source)| {
            let shared = source.memory().clone();
            drop(source);
            Some((Arc::into_inner(shared)?, destination.into_memory()))
        });
        (buffers, result)
    }

    async fn set(
        &self,
        to: core::ops::Range<usize>,
        src: Memory,
        dst: Memory,
        time: &mut Duration,
    ) -> Outcome {
        let Ok(destination) = Destination::new(dst, to) else {
            return (None, Err(Failure::End("dst range error", EIO)));
        };
        let start = Instant::now();
        let sent = self.tx.memset(destination, pattern::SET, self.flags());
        let (buffers, result) = match sent.await {
            Ok(sent) => self.transfer(sent).await,
            Err(error) => (Some(error.buffers), Err(prep_failure(error.reason))),
        };
        *time += start.elapsed();
        (buffers.map(|dst| (src, dst.into_memory())), result)
    }

    fn flags(&self) -> Flags {
        if self.params.polled {
            Flags::empty()
        } else {
            Flags::INTERRUPT
        }
    }

    async fn transfer<K: Kind>(&self, sent: Sent<K>) -> (Option<K::Buffers>, Result<(), Failure>) {
        let Sent { submitted, via } = sent;
        let limit = Duration::from_millis(self.params.timeout);
        let completed = timeout(limit, self.completed(submitted.fence(), &via)).await;
        match completed {
            Ok(Ok(())) => (submitted.finish().await.buffers, Ok(())),
            Ok(Err(error)) => {
                let failure = match error {
                    FenceError::Gone => Failure::End("device gone", ENODEV),
                    _ => Failure::Test("completion error status: ", Some(error), 0),
                };
                (submitted.finish().await.buffers, Err(failure))
            }
            Err(_) => self.give_up(submitted, &via).await,
        }
    }

    async fn completed(&self, fence: &Fence, via: &DmaChan) -> Result<(), FenceError> {
        if !self.params.polled {
            return fence.wait().await;
        }
        loop {
            via.inner.ops.poll();
            if let Some(result) = fence.result() {
                return result;
            }
            hal::task::yield_now().await;
        }
    }

    /// After a timeout: has the channel let go of the buffers, for the next test.
    async fn give_up<K: Kind>(
        &self,
        submitted: Submitted<K>,
        via: &DmaChan,
    ) -> (Option<K::Buffers>, Result<(), Failure>) {
        let failure = Failure::Test("test timed out", None, 0);
        let terminated = via.inner.ops.terminate_all();
        let finished = timeout(RECOVERY_LIMIT, async {
            let finished = submitted.finish().await;
            let _ = terminated.wait().await;
            finished
        });
        let buffers = finished.await.ok().and_then(|finished| finished.buffers);
        (buffers, Err(failure))
    }

    /// Compares both buffers, guards included; the number of bytes that differ.
    fn verify(&self, place: Place, src: &[u8], dst: &[u8]) -> usize {
        let Place {
            src_off,
            dst_off,
            len,
        } = place;
        let copied = match self.params.dmatest {
            TestType::Copy => Expected::Pattern {
                pattern: pattern::SRC | pattern::COPY,
                position: src_off,
            },
            TestType::Set => Expected::Byte(pattern::SET),
        };
        let guard = |pattern, position| Expected::Pattern { pattern, position };
        let (src_end, dst_end) = (src_off + len, dst_off + len);
        let inside = guard(pattern::SRC | pattern::COPY, src_off);
        let size = self.params.test_buf_size;
        [
            (src, 0..src_off, guard(pattern::SRC, 0), "srcbuf", CORRUPTED),
            (src, src_off..src_end, inside, "srcbuf", CORRUPTED),
            (
                src,
                src_end..size,
                guard(pattern::SRC, src_end),
                "srcbuf",
                CORRUPTED,
            ),
            (
                dst,
                0..dst_off,
                guard(pattern::DST, 0),
                "dstbuf",
                OVERWRITTEN,
            ),
            (dst, dst_off..dst_end, copied, "dstbuf", NOT_COPIED),
            (
                dst,
                dst_end..size,
                guard(pattern::DST, dst_end),
                "dstbuf",
                OVERWRITTEN,
            ),
        ]
        .into_iter()
        .map(|(buffer, range, expected, which, what)| {
            let mut shown = 0;
            let errors = pattern::check(buffer, range, expected, |mismatch| {
                shown += 1;
                if shown <= MISMATCHES_SHOWN {
                    self.mismatch(which, what, mismatch);
                }
            });
            if errors > MISMATCHES_SHOWN {
                let more = errors - MISMATCHES_SHOWN;
                let name = self.name;
                self.print(format_args!("dmatest: {name}: {more} errors suppressed"));
            }
            errors
        })
        .sum()
    }

    fn mismatch(&self, which: &str, what: &str, mismatch: Mismatch) {
        let Mismatch { at, expected, got } = mismatch;
        let name = self.name;
        self.print(format_args!(
            "dmatest: {name}: {which}[{at:#x}] {what}! Expected {expected:02x}, got {got:02x}"
        ));
    }
}

const CORRUPTED: &str = "corrupted";
const OVERWRITTEN: &str = "overwritten";
const NOT_COPIED: &str = "not copied";

fn prep_failure(reason: PrepReason) -> Failure {
    match reason {
        PrepReason::Gone => Failure::End("prep error: device gone", ENODEV),
        _ => Failure::Test("prep error", None, 0),
    }
}

/// The reason after a message that has one.
struct Why(Option<FenceError>);

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(error) => error.fmt(f),
            None => Ok(()),
        }
    }
}
