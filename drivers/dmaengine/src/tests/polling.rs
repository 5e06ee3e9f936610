//! Polling for the end of an operation, and giving up.

use core::future::{Future, poll_fn};
use core::pin::pin;

use super::*;

/// A machine that stands still gives the engine no time either.
#[test]
fn time_that_nobody_had_does_not_count() {
    let mock = Mock::new(4);
    let device = device(&Registry::new(), core::slice::from_ref(&mock));
    let channel = block_on(device.channels().next().unwrap().request()).unwrap();
    let (first, second) = (copy(&channel, 64), copy(&channel, 64));
    channel.issue_pending();
    let limit = Duration::from_millis(200);
    let mut polled = pin!(channel.poll_for(first.fence(), limit));
    let mut round = 0;
    let ended = block_on(poll_fn(|cx| {
        round += 1;
        match round {
            2 => std::thread::sleep(2 * limit),
            5 => assert!(mock.finish(Ok(()))),
            _ => {}
        }
        polled.as_mut().poll(cx)
    }));
    assert_eq!(ended, Ok(Ok(())));
    let given_up = block_on(channel.poll_for(second.fence(), limit / 10));
    assert!(given_up.is_err());
}
