//! One test thread: a task that tests one channel.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

use dma_fence::FenceError;
use hal::dma::{Destination, Memory, Source};
use hal::time::{Duration, Instant, timeout};
use smallvec::SmallVec;

use super::params::{Params, TestType};
use super::pattern::{self, Expected, Mismatch};
use super::random::Random;
use super::run::Output;
use crate::async_tx::{AsyncTx, Sent};
use crate::capability::Flags;
use crate::chan::DmaChan;
use crate::prep::{PrepError, PrepReason};
use crate::raid::{Pq, Sources, Xor};
use crate::submitted::Submitted;
use crate::work::{Kind, Memcpy};

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
    pub(super) buffers: Buffers,
    pub(super) random: Random,
}

/// A thread's buffers: all equally long.
pub(super) struct Buffers {
    pub(super) srcs: Vec<Memory>,
    pub(super) dsts: Vec<Memory>,
}

/// The same, in operations.
type Blocks = (Destinations, Sources);
type Destinations = SmallVec<[Destination; 2]>;

/// Where in the buffers one test copies.
#[derive(Clone, Copy)]
struct Place {
    src_off: usize,
    dst_off: usize,
    len: usize,
}

impl Place {
    /// What is read of each source.
    fn from(self) -> Range<usize> {
        self.src_off..self.src_off + self.len
    }

    /// What is written of each destination.
    fn to(self) -> Range<usize> {
        self.dst_off..self.dst_off + self.len
    }
}

/// How one test failed.
enum Failure {
    /// Counted and reported; the next test may do better.
    Test(&'static str, Option<FenceError>, usize),
    /// There will be no next test, for this errno.
    End(&'static str, i32),
}

/// The buffers after a test, or that they are lost, and how it went.
type Outcome<T> = (Option<T>, Result<(), Failure>);

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
            buffers,
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
        let mut left = Some(buffers);
        while let Some(buffers) = left.take() {
            if stop.load(Ordering::Relaxed)
                || (params.iterations > 0 && report.tests == params.iterations)
            {
                break;
            }
            // Where operations complete at once, nothing else lets others run.
            hal::task::yield_now().await;
            report.tests += 1;
            let place = test.place(&mut random);
            let (back, result) = test.once(place, buffers, &mut report.time).await;
            report.bytes += (place.len * test.params.chain) as u64;
            left = back;
            let Err(failure) = result else { continue };
            report.failures += 1;
            let end = match failure {
                Failure::Test(..) if left.is_none() => EIO,
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
        mut buffers: Buffers,
        time: &mut Duration,
    ) -> Outcome<Buffers> {
        let (from, to) = (place.from(), place.to());
        if !self.params.noverify {
            for src in &mut buffers.srcs {
                let inside = pattern::SRC | pattern::COPY;
                pattern::fill(src, from.clone(), pattern::SRC, inside);
            }
            for dst in &mut buffers.dsts {
                let inside = pattern::DST | pattern::OVERWRITE;
                pattern::fill(dst, to.clone(), pattern::DST, inside);
            }
        }
        let Buffers { srcs, dsts } = buffers;
        // Both ranges lie inside by construction; were they not, the buffers would be lost.
        let srcs = srcs.into_iter().map(Arc::new);
        let srcs = srcs.map(|src| Source::new(src, from.clone()));
        let dsts = dsts.into_iter();
        let dsts = dsts.map(|dst| Destination::new(dst, to.clone()).ok());
        let (Some(srcs), Some(dsts)) = (srcs.collect(), dsts.collect()) else {
            return (None, Err(Failure::End("range error", EIO)));
        };
        let start = Instant::now();
        let (back, result) = self.operation(dsts, srcs).await;
        *time += start.elapsed();
        let buffers = back.and_then(|(dsts, srcs)| {
            let src = |src: Source| {
                let shared = src.memory().clone();
                drop(src);
                Arc::into_inner(shared)
            };
            Some(Buffers {
                srcs: srcs.into_iter().map(src).collect::<Option<_>>()?,
                dsts: dsts.into_iter().map(Destination::into_memory).collect(),
            })
        });
        match (buffers, result) {
            (Some(buffers), Ok(())) if !self.params.noverify => {
                let result = match self.verify(place, &buffers) {
                    0 => Ok(()),
                    errors => Err(Failure::Test("data error", None, errors)),
                };
                (Some(buffers), result)
            }
            other => other,
        }
    }

    /// One operation on `dsts` and `srcs`, as many as [`Params::blocks`] says.
    async fn operation(&self, mut dsts: Destinations, srcs: Sources) -> Outcome<Blocks> {
        let flags = self.flags();
        let Some(dst) = dsts.pop() else {
            return (None, Err(Failure::End("no buffers", EIO)));
        };
        match self.params.dmatest {
            TestType::Copy => {
                dsts.push(dst);
                self.chain(dsts, srcs).await
            }
            TestType::Set => {
                let sent = self.tx.memset(dst, pattern::SET, flags).await;
                let (back, result) = self.transfer(sent).await;
                (
                    back.map(|dst| (Destinations::from_iter([dst]), srcs)),
                    result,
                )
            }
            TestType::Xor => {
                let sent = self.tx.xor(Xor { dst, srcs }, flags).await;
                let (back, result) = self.transfer(sent).await;
                let blocks = |xor: Box<Xor>| (Destinations::from_iter([xor.dst]), xor.srcs);
                (back.map(blocks), result)
            }
            TestType::Pq => {
                // With coefficients of 1, as Linux has them here, Q is P.
                let pq = Pq {
                    p: Some(dst),
                    q: dsts.pop(),
                    srcs: srcs.into_iter().map(|src| (src, 1)).collect(),
                };
                let (back, result) = self.transfer(self.tx.pq(pq, flags).await).await;
                let blocks = |pq: Box<Pq>| {
                    let Pq { p, q, srcs } = *pq;
                    let srcs = srcs.into_iter().map(|(src, _)| src);
                    (p.into_iter().chain(q).collect(), srcs.collect())
                };
                (back.map(blocks), result)
            }
        }
    }

    /// Copies each source to its destination, after the one before.
    async fn chain(&self, dsts: Destinations, srcs: Sources) -> Outcome<Blocks> {
        let (mut dsts, mut srcs) = (dsts.into_iter(), srcs.into_iter());
        let mut chain: Vec<Sent<Memcpy>> = Vec::with_capacity(dsts.len());
        let mut result = Ok(());
        let mut back = (Destinations::new(), Sources::new());
        let mut lost = false;
        while let (Some(dst), Some(src)) = (dsts.next(), srcs.next()) {
            let mut flags = self.flags();
            // Those behind it in the same ring need not wait outside.
            flags.set(Flags::FENCE, dsts.len() > 0);
            let sent = match chain.last() {
                Some(last) => {
                    self.tx
                        .memcpy_after(dst, src, flags, last.submitted.fence())
                        .await
                }
                None => self.tx.memcpy(dst, src, flags).await,
            };
            match sent {
                Ok(sent) => chain.push(sent),
                Err(error) => {
                    back.0.push(error.buffers.0);
                    back.1.push(error.buffers.1);
                    result = Err(prep_failure(error.reason));
                    break;
                }
            }
        }
        back.0.extend(dsts);
        back.1.extend(srcs);
        // The last one first: then all must have ended.
        let mut ended = false;
        while let Some(sent) = chain.pop() {
            if ended && !sent.submitted.fence().is_signalled() {
                result = result.and(Err(Failure::Test(
                    "ended before what it comes after",
                    None,
                    0,
                )));
            }
            ended = true;
            let (buffers, its) = self.transfer(Ok(sent)).await;
            result = result.and(its);
            match buffers {
                Some((dst, src)) => {
                    back.0.push(dst);
                    back.1.push(src);
                }
                None => lost = true,
            }
        }
        ((!lost).then_some(back), result)
    }

    fn flags(&self) -> Flags {
        if self.params.polled {
            Flags::empty()
        } else {
            Flags::INTERRUPT
        }
    }

    async fn transfer<K: Kind>(&self, sent: Result<Sent<K>, PrepError<K>>) -> Outcome<K::Buffers> {
        let Sent { submitted, via } = match sent {
            Ok(sent) => sent,
            Err(error) => return (Some(error.buffers), Err(prep_failure(error.reason))),
        };
        let limit = Duration::from_millis(self.params.timeout);
        let fence = submitted.fence();
        let completed = match self.params.polled {
            true => via.poll_for(fence, limit).await,
            false => timeout(limit, fence.wait()).await,
        };
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

    /// Compares all buffers, guards included; the number of bytes that differ.
    fn verify(&self, place: Place, buffers: &Buffers) -> usize {
        let read = Expected::Pattern {
            pattern: pattern::SRC | pattern::COPY,
            position: place.src_off,
        };
        let written = match self.params.dmatest {
            TestType::Set => Expected::Byte(pattern::SET),
            // The exclusive or of an odd number of equal sources is the source.
            TestType::Copy | TestType::Xor | TestType::Pq => read,
        };
        let guard = |pattern, range: Range<usize>| {
            let position = range.start;
            (range, Expected::Pattern { pattern, position })
        };
        let size = self.params.test_buf_size;
        let mut errors = 0;
        for src in &buffers.srcs {
            let range = place.from();
            for (range, expected) in [
                guard(pattern::SRC, 0..range.start),
                (range.clone(), read),
                guard(pattern::SRC, range.end..size),
            ] {
                errors += self.compare(src, range, expected, "srcbuf", CORRUPTED);
            }
        }
        for dst in &buffers.dsts {
            let range = place.to();
            for ((range, expected), what) in [
                (guard(pattern::DST, 0..range.start), OVERWRITTEN),
                ((range.clone(), written), NOT_COPIED),
                (guard(pattern::DST, range.end..size), OVERWRITTEN),
            ] {
                errors += self.compare(dst, range, expected, "dstbuf", what);
            }
        }
        errors
    }

    fn compare(
        &self,
        buffer: &[u8],
        range: Range<usize>,
        expected: Expected,
        which: &str,
        what: &str,
    ) -> usize {
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
