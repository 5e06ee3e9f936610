//! Devices that vanish while they are removed in good order.

use std::thread;

use super::*;
use crate::Capabilities;

const LONG: Duration = Duration::from_secs(3600);

#[test]
fn a_removal_that_is_hurried_waits_for_its_holders_no_longer() {
    let registry = Registry::new();
    let device = device(&registry, &[Mock::new(4)]);
    let channel = block_on(registry.request(Capabilities::MEMCPY)).unwrap();
    let submitted = copy(&channel, 64);
    thread::scope(|scope| {
        let removal = scope.spawn(|| block_on(registry.unregister(&device, LONG)));
        block_on(channel.removed());
        device.hurry();
        let removal = removal.join().unwrap();
        assert_eq!((removal.revoked, removal.by_cpu, removal.lost), (1, 1, 0));
    });
    assert_eq!(block_on(submitted.finish()).result, Ok(()));
}

#[cfg(feature = "hotplug")]
#[test]
fn a_removal_that_is_hurried_waits_for_references_no_longer() {
    let registry = Registry::new();
    let device = device(&registry, &[Mock::new(4)]);
    let interest = block_on(registry.get_interest());
    let found = registry.find(crate::Transaction::Memcpy).unwrap();
    thread::scope(|scope| {
        let removal = scope.spawn(|| block_on(registry.unregister(&device, LONG)));
        await_that("the removal", || registry.devices().is_empty());
        device.hurry();
        assert_eq!(removal.join().unwrap().leaked, 1);
    });
    drop(found);
    block_on(interest.put());
}
