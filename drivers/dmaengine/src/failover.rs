//! Finishing elsewhere what a removed device has left.
//!
//! An operation owns its buffers: nobody has written its source since it was submitted, and nobody
//! reads its destination before its fence. So it runs again, whole, whatever the device had done
//! of it. Operations run one after the other, in the order of their submission: what depended on
//! its predecessor in the ring still does.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use hal::time::{Duration, timeout};

use crate::capability::Capabilities;
use crate::chan::Chan;
use crate::device::DeviceInfo;
use crate::life::Hold;
use crate::operation::Operation;
use crate::registry::Registry;

/// How long another engine may take for one operation; then the client's own timeout decides.
const LIMIT: Duration = Duration::from_secs(10);

/// What became of the operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Done by another device.
    pub(crate) failed_over: usize,
    /// Done by the CPU.
    pub(crate) by_cpu: usize,
    /// Ended with an error.
    pub(crate) lost: usize,
}

/// Runs `operations` on other devices of `registry`, or on the CPU.
pub(crate) async fn run(registry: &Registry, operations: Vec<Operation>) -> Outcome {
    let mut outcome = Outcome::default();
    let mut other: Option<Hold> = None;
    for operation in operations {
        let Some(fence) = operation.fence() else {
            continue;
        };
        let Err(mut operation) = elsewhere(registry, &mut other, Box::new(operation)).await else {
            match timeout(LIMIT, fence.wait()).await {
                Ok(Ok(())) => outcome.failed_over += 1,
                _ => outcome.lost += 1,
            }
            continue;
        };
        operation.work_mut().run_by_cpu();
        operation.move_to(&registry.cpu().inner);
        operation.complete(Ok(()));
        outcome.by_cpu += 1;
    }
    if let Some(hold) = other {
        hold.release().await;
    }
    outcome
}

/// Gives `operation` to the channel that took the last one, or to another that can and will.
async fn elsewhere(
    registry: &Registry,
    other: &mut Option<Hold>,
    mut operation: Box<Operation>,
) -> Result<(), Box<Operation>> {
    let capability = operation.work().capability();
    let (len, places) = (operation.work().len(), operation.work().places());
    let fits = |chan: &Arc<Chan>| {
        let DeviceInfo {
            capabilities,
            max_transfer,
            copy_align,
            ..
        } = *chan.info;
        capabilities.contains(capability)
            && !capabilities.contains(Capabilities::PRIVATE)
            && len <= max_transfer
            && places & ((1 << copy_align) - 1) == 0
    };
    if let Some(hold) = other.take_if(|hold| fits(&hold.chan)) {
        match hand_over(&hold.chan, operation) {
            Ok(()) => {
                *other = Some(hold);
                return Ok(());
            }
            Err(back) => operation = back,
        }
    }
    for chan in registry.channels() {
        if !fits(&chan.inner) {
            continue;
        }
        let Ok(hold) = Hold::take(&chan.inner, false).await else {
            continue;
        };
        match hand_over(&hold.chan, operation) {
            Ok(()) => {
                *other = Some(hold);
                return Ok(());
            }
            Err(back) => operation = back,
        }
    }
    Err(operation)
}

fn hand_over(chan: &Arc<Chan>, operation: Box<Operation>) -> Result<(), Box<Operation>> {
    chan.adopt(operation)?;
    chan.ops.issue_pending();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Flags;
    use crate::mock::{self, Mock};
    use hal::dma::{Destination, Memory, Source};
    use hal::host::block_on;
    use std::vec;

    #[test]
    fn private_channels_take_over_nothing() {
        let registry = Registry::new();
        let device = registry.register(mock::info(), vec![Mock::new(4)]).unwrap();
        let mut info = mock::info();
        info.capabilities |= Capabilities::PRIVATE;
        let private = registry.register(info, vec![Mock::eager(4)]).unwrap();
        let channel = block_on(device.channels().next().unwrap().request()).unwrap();
        let src = Source::new(Arc::new(Memory::new(64).unwrap()), 0..64).unwrap();
        let dst = Destination::new(Memory::new(64).unwrap(), 0..64).unwrap();
        let descriptor = channel.prep_memcpy(dst, src, Flags::empty()).unwrap();
        let submitted = channel.submit(descriptor).unwrap();
        let removal = block_on(registry.unregister(&device, Duration::from_millis(5)));
        assert_eq!((removal.failed_over, removal.by_cpu), (0, 1));
        assert_eq!(block_on(submitted.finish()).result, Ok(()));
        assert_eq!(private.channels().next().unwrap().counters().copies, 0);
    }
}
