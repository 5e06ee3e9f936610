//! The clock and timers.

use core::fmt;
use core::future::{Future, poll_fn};
use core::mem;
use core::ops::{Add, Sub};
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};
pub use core::time::Duration;

use crate::machine::{TimerId, machine};

/// A moment of the machine's clock, in nanoseconds since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(u64);

impl Instant {
    /// This moment.
    pub fn now() -> Self {
        Self(machine().now_ns())
    }

    /// Nanoseconds since boot.
    pub fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time that has passed since this moment; zero where it lies ahead.
    pub fn elapsed(self) -> Duration {
        Self::now() - self
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// Saturates at the end of time, 584 years after boot.
    fn add(self, after: Duration) -> Self {
        let nanos = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A limit ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("timed out")
    }
}

/// More than the clocks of two CPUs differ.
const CLOSE: Duration = Duration::from_millis(1);

/// Completes when its deadline has come. Dropping it forgets the timer.
#[derive(Debug)]
pub struct Sleep {
    deadline: Instant,
    /// What was set, and for whom.
    timer: Option<(TimerId, Waker)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let left = self.deadline - Instant::now();
        if left.is_zero() {
            self.forget();
            return Poll::Ready(());
        }
        // Setting one costs much: who is polled often, beside something else, keeps the first. Not
        // close to the deadline, where it may have fired by a clock that is a little ahead.
        let kept = |(_, waker): &(TimerId, Waker)| left > CLOSE && waker.will_wake(cx.waker());
        if !self.timer.as_ref().is_some_and(kept) {
            self.forget();
            let timer = machine().set_timer(self.deadline.0, cx.waker().clone());
            self.timer = Some((timer, cx.waker().clone()));
        }
        Poll::Pending
    }
}

impl Sleep {
    fn forget(&mut self) {
        if let Some((timer, _)) = self.timer.take() {
            machine().cancel_timer(timer);
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.forget();
    }
}

/// Waits until `deadline`.
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep {
        deadline,
        timer: None,
    }
}

/// Waits for at least `duration`.
pub fn sleep(duration: Duration) -> Sleep {
    sleep_until(Instant::now() + duration)
}

/// The same, and lets the other tasks of this CPU run even where that is over at once: for who looks
/// again and again.
pub async fn pause(duration: Duration) {
    let mut sleep = pin!(sleep(duration));
    let mut begins = true;
    poll_fn(|cx| {
        let slept = sleep.as_mut().poll(cx);
        if mem::take(&mut begins) && slept.is_ready() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        slept
    })
    .await;
}

/// Awaits `future`, at most for `limit`.
pub async fn timeout<T>(limit: Duration, future: impl Future<Output = T>) -> Result<T, Elapsed> {
    let mut future = pin!(future);
    let mut sleep = pin!(sleep(limit));
    poll_fn(|cx| {
        if let Poll::Ready(value) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(value));
        }
        sleep.as_mut().poll(cx).map(|()| Err(Elapsed))
    })
    .await
}

/// Asks `done` until it says yes, with a [`pause`] of `step` between the questions, at most for `limit`;
/// it is asked once more when the limit has run out. For hardware that raises no interrupt.
pub async fn poll_until(
    limit: Duration,
    step: Duration,
    mut done: impl FnMut() -> bool,
) -> Result<(), Elapsed> {
    let deadline = Instant::now() + limit;
    loop {
        let last = Instant::now() >= deadline;
        if done() {
            return Ok(());
        }
        if last {
            return Err(Elapsed);
        }
        pause(step).await;
    }
}
