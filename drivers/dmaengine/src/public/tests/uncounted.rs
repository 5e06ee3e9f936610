//! References that are not counted: only what nobody is interested in goes.

use super::*;

fn slot_of(registry: &Registry, device: &DmaDevice) -> Number {
    registry
        .public
        .slot_of(&device.chans()[0], |_| ())
        .expect("it was in a table")
}

#[test]
fn s1_1_nothing_is_counted() {
    let registry = Registry::new();
    let (device, _mocks) = device(&registry, 1);
    let _interest = block_on(registry.get_interest());
    let slot = slot_of(&registry, &device);
    let found = registry.find(Transaction::Memcpy).unwrap();
    let other = found.dup().unwrap();
    assert!(registry.find(Transaction::Pq).is_none());
    for counter in [0, usize::from(slot.get())] {
        assert_eq!(cpu::local_sum(counter), 0, "counter {counter}");
    }
    assert_eq!(registry.references(&registry.channels()[0]), 0);
    assert!(other.open().is_ok());
}

#[test]
fn s1_1_idle_devices_come_and_go_by_the_same_slots() {
    let registry = Registry::new();
    let seen: Vec<_> = (0..COUNTERS)
        .map(|_| {
            let (device, _mocks) = device(&registry, 1);
            let interest = block_on(registry.get_interest());
            let slot = slot_of(&registry, &device);
            let generation = slot::generation(slot);
            block_on(interest.put());
            let removal = block_on(registry.unload(&device, SOON)).unwrap();
            assert!(removal.drained < SOON, "there was nothing to wait for");
            (slot, generation)
        })
        .collect();
    assert!(seen.iter().any(|&(_, generation)| generation > 1));
    let slots: HashSet<_> = seen.iter().collect();
    assert_eq!(slots.len(), seen.len());
}

#[test]
fn s1_1_a_slot_that_may_be_referred_to_is_not_used_again() {
    let registry = Registry::new();
    let (device, _mocks) = device(&registry, 1);
    let interest = block_on(registry.get_interest());
    let found = registry.find(Transaction::Memcpy).unwrap();
    let slot = slot_of(&registry, &device);
    // Its hardware has vanished: there is nothing to refuse.
    block_on(registry.unregister(&device, SOON));
    assert!(registry.find(Transaction::Memcpy).is_none());
    assert_eq!(found.open().unwrap_err(), RequestError::Gone);
    assert_eq!(found.dup().unwrap_err(), Draining);
    block_on(interest.put());
    for _ in 0..COUNTERS {
        let (device, _mocks) = self::device(&registry, 1);
        let interest = block_on(registry.get_interest());
        assert_ne!(slot_of(&registry, &device), slot);
        block_on(interest.put());
        assert!(block_on(registry.unload(&device, SOON)).is_ok());
    }
}

#[test]
fn s1_13_a_request_is_refused_while_somebody_is_interested() {
    let registry = Registry::new();
    device(&registry, 2);
    let chan = registry.channels()[0].clone();
    let interest = block_on(registry.get_interest());
    assert_eq!(block_on(chan.request()).unwrap_err(), RequestError::Busy);
    await_that("its return", || published(&registry).len() == 2);
    block_on(interest.put());
    let request = block_on(chan.request()).unwrap();
    let interest = block_on(registry.get_interest());
    assert_eq!(published(&registry), ["dma0chan1"]);
    drop(request);
    await_that("its return", || published(&registry).len() == 2);
    drop(interest);
}
