//! Tasks: futures that the machine polls, each on one CPU at a time.

use alloc::boxed::Box;
use core::future::{Future, poll_fn};
use core::task::Poll;

use crate::machine;

/// Runs `task` on the caller's CPU.
pub fn spawn(name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
    machine().spawn(name, None, Box::pin(task));
}

/// Runs `task` on CPU `cpu`, or on another where that one is not online.
pub fn spawn_on(name: &'static str, cpu: usize, task: impl Future<Output = ()> + Send + 'static) {
    machine().spawn(name, Some(cpu), Box::pin(task));
}

/// Lets every other task that is ready on this CPU run once.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
