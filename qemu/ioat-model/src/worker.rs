//! The thread of a channel: takes descriptors as DMACOUNT announces them, one after the other.
//!
//! It sleeps while there is nothing to do. No descriptor is looked at before it is announced, and
//! the link to the next is read anew each time: FreeBSD ioat(4) rewrites links of descriptors that
//! are already done.

use std::sync::MutexGuard;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ioat_spec::descriptor::offset;
use ioat_spec::{ChanErr, Control, Descriptor, State, channel};

use crate::channel::{Channel, Inner, Stuck};
use crate::engine::Shared;
use crate::execute::{Outcome, execute, fetch, moves_data};
use crate::statistics::add;

/// What became of one announced descriptor.
enum Step {
    Ended {
        at: u64,
        descriptor: Descriptor,
        outcome: Outcome,
        /// Which data descriptor of the engine it was.
        number: Option<u64>,
    },
    /// It could not be fetched.
    Lost(ChanErr),
    /// By order: see [`crate::Fault::Hang`].
    Hung,
    /// By order: see [`crate::Fault::Freeze`].
    Frozen,
}

/// Runs `channel` until the engine ends.
pub(crate) fn run(shared: &Shared, channel: &Channel) {
    let mut inner = channel.lock();
    while let Some(mut ready) = await_work(shared, channel, inner) {
        ready.busy = true;
        // Whoever has the engine go sets both, in the other order.
        channel.stop.store(false, Ordering::SeqCst);
        if shared.is_gone() {
            channel.stop.store(true, Ordering::Relaxed);
        }
        let link = match ready.last {
            Some(last) => Link::After(last),
            None => Link::Start(ready.get(channel::CHAINADDR, 8)),
        };
        drop(ready);
        let step = step(shared, channel, link);
        inner = finish(shared, channel, channel.lock(), step);
        inner.busy = false;
        if inner.waiting > 0 {
            channel.changed.notify_all();
        }
    }
}

/// Where the next descriptor's address is.
enum Link {
    Start(u64),
    After(u64),
}

/// Waits until a descriptor may be begun; `None` once the engine ends. On the way, changes of
/// state that wait for a channel without a descriptor under way, and interrupts whose delay is
/// over, come true.
fn await_work<'a>(
    shared: &Shared,
    channel: &'a Channel,
    mut inner: MutexGuard<'a, Inner>,
) -> Option<MutexGuard<'a, Inner>> {
    loop {
        if shared.is_ending() {
            return None;
        }
        if inner.interrupt_at.is_some_and(|at| at <= Instant::now()) && !shared.is_gone() {
            channel.interrupt(&mut inner, shared);
        }
        if inner.state == State::Idle && std::mem::take(&mut inner.suspend) {
            inner.set_state(State::Suspended);
        }
        if inner.state == State::Active && inner.waiting == 0 && !shared.is_gone() {
            if inner.suspend && inner.stuck != Stuck::UntilReset {
                inner.suspend = false;
                inner.stuck = Stuck::No;
                inner.set_state(State::Suspended);
            } else if inner.stuck == Stuck::No {
                if !inner.has_work() {
                    inner.set_state(State::Idle);
                } else if shared.dma_allowed() {
                    return Some(inner);
                }
            }
        }
        let deadline = inner.interrupt_at.filter(|_| !shared.is_gone());
        inner = channel.wait(inner, deadline);
    }
}

fn step(shared: &Shared, channel: &Channel, link: Link) -> Step {
    let memory = &*shared.memory;
    let at = match link {
        Link::Start(at) => Ok(at),
        Link::After(last) => memory
            .load64(last + offset::NEXT as u64)
            .map_err(|_| ChanErr::DESCRIPTOR),
    };
    let fetched = at.and_then(|at| Ok((at, fetch(memory, at)?)));
    let (at, descriptor) = match fetched {
        Ok(fetched) => fetched,
        Err(error) => return Step::Lost(error),
    };
    let plan = &shared.plan;
    if plan.hang == Some(0) && !shared.hung.swap(true, Ordering::Relaxed) {
        return Step::Hung;
    }
    let number =
        moves_data(&descriptor).then(|| shared.data_seen.fetch_add(1, Ordering::Relaxed) + 1);
    if let (Some(n), Some(strays)) = (number, &shared.strays) {
        strays.met(n);
    }
    let outcome = match number {
        Some(n) if plan.hang == Some(n) && !shared.hung.swap(true, Ordering::Relaxed) => {
            return Step::Hung;
        }
        Some(n) if plan.freeze == Some(n) => {
            move_half(shared, &descriptor);
            return Step::Frozen;
        }
        Some(_) if plan.all_ones == Some(0) => Outcome::Stopped,
        Some(n) if plan.error.is_some_and(|(at, _)| at == n) => {
            Outcome::Failed(plan.error.map_or(ChanErr::READ_DATA, |(_, bit)| bit))
        }
        Some(_) if plan.slow.is_some_and(|time| stopped_within(channel, time)) => {
            if shared.is_frozen() {
                move_half(shared, &descriptor);
            }
            Outcome::Stopped
        }
        _ => execute(&descriptor, &shared.limits, memory, &channel.stop),
    };
    Step::Ended {
        at,
        descriptor,
        outcome,
        number,
    }
}

/// Moves the first half of what `descriptor` is to move.
fn move_half(shared: &Shared, descriptor: &Descriptor) {
    let size = u64::from(descriptor.size());
    let mut half = *descriptor;
    half.0[0] -= size - size / 2;
    // Whatever comes of it, nobody is told.
    let _ = execute(
        &half,
        &shared.limits,
        &*shared.memory,
        &AtomicBool::new(false),
    );
}

/// Takes `time`, unless the channel is stopped before: whether it was.
fn stopped_within(channel: &Channel, time: Duration) -> bool {
    const SLICE: Duration = Duration::from_millis(1);
    let end = Instant::now() + time;
    loop {
        if channel.stop.load(Ordering::Relaxed) {
            return true;
        }
        match end.checked_duration_since(Instant::now()) {
            None => return false,
            Some(left) => thread::sleep(left.min(SLICE)),
        }
    }
}

/// What became of the descriptor is known. The lock is dropped while its completion is written.
fn finish<'a>(
    shared: &Shared,
    channel: &'a Channel,
    mut inner: MutexGuard<'a, Inner>,
    step: Step,
) -> MutexGuard<'a, Inner> {
    let counters = &shared.counters;
    match step {
        Step::Hung => {
            add(&counters.faults, 1);
            inner.stuck = Stuck::UntilReset;
        }
        Step::Frozen => {
            add(&counters.faults, 1);
            shared.freeze();
        }
        Step::Lost(error) => {
            channel.fail(&mut inner, shared, error);
            if inner.state == State::Active {
                // Masked. But what could not be fetched cannot be stepped over.
                inner.stuck = Stuck::UntilSuspend;
            }
        }
        Step::Ended {
            at,
            descriptor,
            outcome,
            number,
        } => {
            // Bus mastering may have gone while the lock was not held: then it is done again.
            let stopped = outcome == Outcome::Stopped || !shared.dma_allowed();
            if stopped {
                if number.is_some() {
                    shared.data_seen.fetch_sub(1, Ordering::Relaxed);
                }
            } else {
                let mut bytes = 0;
                match outcome {
                    Outcome::Done(written) => bytes = written,
                    Outcome::Failed(error) => {
                        channel.fail(&mut inner, shared, error);
                        if inner.state == State::Halted {
                            return inner;
                        }
                    }
                    Outcome::Stopped => return inner,
                }
                add(&counters.descriptors, 1);
                add(&counters.bytes, bytes);
                let control = descriptor.control();
                inner = channel.complete(
                    inner,
                    shared,
                    at,
                    control.contains(Control::COMPLETION),
                    control.contains(Control::INT_EN),
                );
                if let Some(strays) = shared.strays.as_ref().filter(|_| bytes > 0) {
                    let start = descriptor.word(offset::DST);
                    strays.learn(|targets| targets.complete(start..start.saturating_add(bytes)));
                }
            }
            let vanish = shared.plan.all_ones;
            if number.is_some() && vanish.is_some_and(|n| n == 0 || number == Some(n) && !stopped) {
                add(&counters.faults, 1);
                shared.vanish();
            }
        }
    }
    inner
}
