//! The channel's task, from start to stop: it alone uses the DMA registers. Whatever a client
//! drops, a transfer under way is waited for, and no longer than its limit.

use alloc::sync::Arc;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::sync::atomic::Ordering;
use core::task::Poll;

use dma_fence::FenceError;
use dmaengine::{StartError, Work};
use hal::dma::Coherent;
use hal::time::{Duration, Instant, poll_until, sleep_until};

use crate::chan::{Chan, Halt, InFlight, Next};
use crate::chunk;
use crate::hardware::{Hardware, Way, command};

/// How often a device without interrupts is looked at.
const POLL: Duration = Duration::from_millis(5);
/// How often one with interrupts is looked at, in case one is lost: a transfer takes 100 ms.
const LOOK: Duration = Duration::from_millis(200);

/// Waits until no transfer is under way; bounded by the limit of one.
pub(crate) async fn idle(hardware: &Hardware) -> Result<(), StartError> {
    let limit = hardware.options.transfer_limit;
    let idle = || hardware.is_running() != Some(true);
    let waited = poll_until(limit, POLL, idle).await;
    if hardware.is_gone() {
        return Err(StartError::Gone);
    }
    waited.map_err(|_| StartError::NotReady {
        status: u64::from(command::START),
        errors: 0,
    })
}

/// The task of `chan`.
pub(crate) async fn run(chan: Arc<Chan>, bounce: Coherent) {
    loop {
        let next = poll_fn(|cx| {
            chan.waker.register(cx.waker());
            chan.next().map_or(Poll::Pending, Poll::Ready)
        });
        match next.await {
            Next::Work(mut entry) => match copy(&chan, &bounce, &mut entry).await {
                Ok(()) => entry.finish(Ok(())),
                Err(Halt::Failed(error)) => entry.finish(Err(error)),
                Err(Halt::NotNow) => chan.put_back(*entry),
            },
            Next::GiveUp(entries, signalers) => {
                for entry in entries {
                    entry.finish(Err(FenceError::Terminated));
                }
                for signaler in signalers {
                    signaler.signal(Ok(()));
                }
            }
            Next::Rest(signalers) => {
                for signaler in signalers {
                    signaler.signal(Ok(()));
                }
            }
            Next::Stop(signaler) => {
                chan.hardware.set_bus_master(false);
                drop(bounce);
                chan.close();
                signaler.signal(Ok(()));
                return;
            }
        }
    }
}

/// Does what is left of one operation, chunk by chunk.
async fn copy(chan: &Chan, bounce: &Coherent, entry: &mut InFlight) -> Result<(), Halt> {
    let InFlight {
        number,
        done,
        operation,
        mapped,
    } = entry;
    let Work::Memcpy { dst, src } = operation.work_mut() else {
        return Err(Halt::Failed(FenceError::Device(0)));
    };
    if *done == 0 {
        chan.bounced.fetch_add(mapped.bounced(), Ordering::Relaxed);
    }
    let len = src.len();
    while *done < len {
        let offset = *done;
        let chunk = mapped.chunk(offset, len);
        if chunk.len == 0 {
            return Err(Halt::Failed(FenceError::Map));
        }
        let part = offset..offset + chunk.len;
        let from = chunk.src.unwrap_or_else(|| {
            chunk::put(bounce, &src.bytes()[part.clone()]);
            bounce.addr().bits()
        });
        transfer(chan, *number, Way::From(from), chunk.len).await?;
        let to = chunk.dst.unwrap_or(bounce.addr().bits());
        transfer(chan, *number, Way::To(to), chunk.len).await?;
        if chunk.dst.is_none() {
            chunk::get(bounce, &mut dst.bytes_mut()[part]);
        }
        *done += chunk.len;
    }
    Ok(())
}

/// One transfer of the operation `number`, from its start to its end or its limit.
async fn transfer(chan: &Chan, number: u64, way: Way, len: usize) -> Result<(), Halt> {
    chan.goes_on(number)?;
    let hardware = &chan.hardware;
    if hardware.is_stalled() {
        // It had its time. What it does now reaches no memory; the next may begin when it ends.
        match hardware.is_running() {
            Some(false) => hardware.resume(),
            Some(true) => return Err(Halt::Failed(FenceError::Timeout)),
            None => return Err(Halt::Failed(FenceError::Gone)),
        }
    }
    let step = if hardware.interrupting { LOOK } else { POLL };
    let deadline = Instant::now() + hardware.options.transfer_limit;
    let mut seen = chan.interrupts.load(Ordering::Acquire);
    hardware.start(way, len);
    chan.transfers.fetch_add(1, Ordering::Relaxed);
    loop {
        let look = deadline.min(Instant::now() + step);
        seen = interrupt_or(chan, seen, look).await;
        let late = Instant::now() >= deadline;
        match hardware.is_running() {
            Some(false) => return Ok(()),
            Some(true) if late => {
                hardware.stall();
                chan.timeouts.fetch_add(1, Ordering::Relaxed);
                // Who is being stopped or paused keeps the operation.
                chan.goes_on(number)?;
                return Err(Halt::Failed(FenceError::Timeout));
            }
            Some(true) => {}
            None => return Err(Halt::Failed(FenceError::Gone)),
        }
    }
}

/// Waits for an interrupt after the first `seen`, or until `deadline`; how many there have been.
async fn interrupt_or(chan: &Chan, seen: u64, deadline: Instant) -> u64 {
    let mut sleep = pin!(sleep_until(deadline));
    poll_fn(|cx| {
        chan.waker.register(cx.waker());
        let count = chan.interrupts.load(Ordering::Acquire);
        if count != seen {
            return Poll::Ready(count);
        }
        sleep.as_mut().poll(cx).map(|()| count)
    })
    .await
}
