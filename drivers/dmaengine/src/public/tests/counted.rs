//! References that are counted: what a removal waits for.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::{PrepReason, SubmitReason};

#[test]
fn s1_2_no_new_reference_while_the_channel_drains() {
    let registry = Registry::new();
    let (device, _mocks) = device(&registry, 1);
    let _interest = block_on(registry.get_interest());
    let found = registry.find(Transaction::Memcpy).unwrap();
    thread::scope(|scope| {
        let removal =
            scope.spawn(|| block_on(registry.unregister(&device, Duration::from_secs(5))));
        await_that("the table without the device", || {
            published(&registry).is_empty()
        });
        assert!(registry.find(Transaction::Memcpy).is_none());
        let opened = found.open().unwrap();
        let submitted = copy_by(&opened, 64);
        opened.issue_pending();
        let finished = block_on(submitted.finish());
        assert_eq!(finished.result, Ok(()), "who has found it may still use it");
        drop(opened);
        drop(found);
        let removal = removal.join().unwrap();
        assert_eq!((removal.leaked, removal.lost, removal.revoked), (0, 0, 0));
        assert!(
            removal.drained < Duration::from_millis(2500),
            "it waited for nothing else"
        );
    });
}

#[test]
fn s1_3_a_put_on_another_cpu_counts() {
    let registry = Registry::new();
    device(&registry, 1);
    let _interest = block_on(registry.get_interest());
    let chan = registry.channels()[0].clone();
    let found: Vec<_> = (0..5)
        .map(|_| registry.find(Transaction::Memcpy).unwrap())
        .collect();
    assert_eq!(registry.references(&chan), 5);
    thread::spawn(move || drop(found)).join().unwrap();
    assert_eq!(registry.references(&chan), 0);
}

#[test]
fn s1_3_a_find_in_vain_leaves_no_count_on_a_channel() {
    let registry = Registry::new();
    device(&registry, 1);
    let _interest = block_on(registry.get_interest());
    let chan = registry.channels()[0].clone();
    for _ in 0..10 {
        assert!(registry.find(Transaction::Pq).is_none());
    }
    assert_eq!(registry.references(&chan), 0);
}

#[test]
fn s1_4_a_duplicate_is_a_reference_of_its_own_until_the_channel_drains() {
    let registry = Registry::new();
    let (device, _mocks) = device(&registry, 1);
    let _interest = block_on(registry.get_interest());
    let chan = registry.channels()[0].clone();
    let found = registry.find(Transaction::Memcpy).unwrap();
    let second = found.dup().unwrap();
    assert_eq!(registry.references(&chan), 2);
    drop(found);
    assert_eq!(registry.references(&chan), 1);
    let slot = registry.public.slot_of(&chan.inner, |_| ()).unwrap();
    thread::scope(|scope| {
        let removal =
            scope.spawn(|| block_on(registry.unregister(&device, Duration::from_secs(5))));
        await_that("the drain", || !slot::is_live(slot));
        assert_eq!(second.dup().unwrap_err(), Draining);
        assert_eq!(
            count::references(slot),
            1,
            "the refused duplicate was taken back"
        );
        assert!(!removal.is_finished());
        drop(second);
        assert_eq!(removal.join().unwrap().leaked, 0);
    });
}

#[test]
fn s1_8_the_drain_is_exact_and_its_deadline_holds() {
    let registry = Registry::new();
    let (device, mocks) = device(&registry, 1);
    let interest = block_on(registry.get_interest());
    let found = registry.find(Transaction::Memcpy).unwrap();
    let leaked = registry.find(Transaction::Memcpy).unwrap();
    let slot = registry.public.slot_of(&device.chans()[0], |_| ()).unwrap();
    drop(found);
    let removal = block_on(registry.unregister(&device, SOON));
    assert_eq!(removal.leaked, 1);
    assert!(removal.drained >= SOON / 2);
    assert_eq!(mocks[0].state.lock().stops, 1, "removed all the same");
    assert_eq!(leaked.open().unwrap_err(), RequestError::Gone);
    assert_eq!(leaked.dup().unwrap_err(), Draining);
    assert_eq!(Draining.to_string(), "the channel is being removed");
    // Its slot is not used again while it lives.
    assert!(!slot::is_free(slot));
    let generation = slot::generation(slot);
    let others: Vec<_> = (0..3).map(|_| self::device(&registry, 1)).collect();
    let taken = |registry: &Registry| -> HashSet<_> {
        let chans = registry.channels();
        chans
            .iter()
            .filter_map(|chan| registry.public.slot_of(&chan.inner, |_| ()))
            .collect()
    };
    await_that("three channels", || published(&registry).len() == 3);
    assert!(!taken(&registry).contains(&slot));
    assert_eq!(count::references(slot), 1);
    drop(leaked);
    assert_eq!(count::references(slot), 0);
    // Another test may have taken it by now.
    assert!(slot::is_free(slot) || slot::generation(slot) != generation);
    drop(interest);
    drop(others);
}

#[test]
fn a_census_has_every_slot_once() {
    let registry = Registry::new();
    device(&registry, 3);
    let _interest = block_on(registry.get_interest());
    let [free, live, draining, tombstones, lost] = slot::census();
    assert!(live >= 3);
    let slots = free + live + draining + tombstones + lost;
    assert_eq!(
        slots,
        255 - cpu::KERNEL_COUNTERS,
        "the dummy is not among them"
    );
    let now = Slots::now();
    assert!(now.live >= 3, "{now:?}");
}

#[test]
#[cfg_attr(miri, ignore = "as many devices as slots take Miri too long")]
fn s1_8_a_drained_slot_serves_the_next_device() {
    let generation = |registry: &Registry| {
        let (device, _mocks) = device(registry, 1);
        await_that("the table", || !published(registry).is_empty());
        let slot = registry.public.slot_of(&device.chans()[0], |_| ()).unwrap();
        let generation = slot::generation(slot);
        assert_eq!(block_on(registry.unregister(&device, SOON)).leaked, 0);
        (slot, generation)
    };
    let registry = Registry::new();
    let _interest = block_on(registry.get_interest());
    // More devices than there are slots: some slot has a second generation.
    let seen: Vec<_> = (0..COUNTERS).map(|_| generation(&registry)).collect();
    assert!(seen.iter().any(|&(_, generation)| generation > 1));
    let slots: HashSet<_> = seen.iter().collect();
    assert_eq!(
        slots.len(),
        seen.len(),
        "a slot and a generation name one channel"
    );
}

#[test]
fn s1_9_traffic_elsewhere_does_not_delay_a_removal() {
    let registry = Registry::new();
    let (idle, _a) = device(&registry, 1);
    let interest = block_on(registry.get_interest());
    let held = {
        // Found on the idle device's own channel alone, and put.
        drop(registry.find(Transaction::Memcpy).unwrap());
        let (_busy, _b) = device(&registry, 1);
        await_that("both", || published(&registry).len() == 2);
        let held: Vec<_> = (0..cpu::possible() * 4)
            .filter_map(|_| {
                thread::scope(|s| {
                    s.spawn(|| registry.find(Transaction::Memcpy))
                        .join()
                        .unwrap()
                })
            })
            .filter(|found| format!("{found:?}") == "ChanRef(dma1chan0)")
            .collect();
        assert!(!held.is_empty());
        held
    };
    let removal = block_on(registry.unregister(&idle, Duration::from_secs(10)));
    assert_eq!(removal.leaked, 0);
    assert!(removal.drained < Duration::from_secs(5));
    drop(held);
    drop(interest);
}

#[test]
fn s1_13_interest_and_requests_rewrite_the_tables() {
    let registry = Registry::new();
    device(&registry, 2);
    let private = DeviceInfo {
        capabilities: Capabilities::MEMCPY | Capabilities::PRIVATE,
        ..mock::info()
    };
    registry.register(private, vec![Mock::new(1)]).unwrap();
    assert!(published(&registry).is_empty());
    let interest = block_on(registry.get_interest());
    assert_eq!(published(&registry), ["dma0chan0", "dma0chan1"]);
    let first = registry.channels()[0].clone();
    let request = block_on(first.request()).unwrap();
    assert_eq!(published(&registry), ["dma0chan1"]);
    assert_eq!(first.clients(), 1, "the one that requested it");
    drop(request);
    await_that("its return", || published(&registry).len() == 2);
    assert_eq!(first.clients(), 1, "the one that is interested");
    drop(interest);
    assert!(published(&registry).is_empty());
}

#[test]
fn s1_13_a_request_waits_for_those_who_have_found_the_channel() {
    let registry = Registry::new();
    device(&registry, 1);
    let _interest = block_on(registry.get_interest());
    let chan = registry.channels()[0].clone();
    let found = registry.find(Transaction::Memcpy).unwrap();
    assert_eq!(block_on(chan.request()).unwrap_err(), RequestError::Busy);
    await_that("its return", || !published(&registry).is_empty());
    assert!(found.dup().is_ok(), "it is public as before");
    thread::scope(|scope| {
        let request = scope.spawn(|| block_on(chan.request()));
        await_that("the drain", || found.dup().is_err());
        drop(found);
        assert!(request.join().unwrap().is_ok());
    });
}

#[test]
fn s1_15_a_storm_of_finds_uses_no_removed_device() {
    let registry = Registry::new();
    let _interest = block_on(registry.get_interest());
    let stop = AtomicBool::new(false);
    /// A failure in the middle ends the storm too.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (late, used) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let Some(found) = registry.find(Transaction::Memcpy) else {
                        thread::yield_now();
                        continue;
                    };
                    let other = found.dup();
                    // Closed or out of its slot: the removal did not wait for this reference.
                    let opened = found.open();
                    match opened {
                        Ok(opened) if !opened.is_gone() => used.fetch_add(1, Ordering::Relaxed),
                        _ => late.fetch_add(1, Ordering::Relaxed),
                    };
                    drop(other);
                }
            });
        }
        let _stop = Stop(&stop);
        let limit = Duration::from_secs(10);
        for _ in 0..mock::times(64) {
            let (device, _mocks) = device(&registry, 2);
            await_that("the table", || published(&registry).len() == 2);
            let removal = block_on(registry.unregister(&device, limit));
            assert_eq!((removal.leaked, removal.lost), (0, 0));
            assert!(removal.drained < limit, "it was told that all were put");
        }
    });
    assert_eq!(late.load(Ordering::Relaxed), 0);
    assert!(used.load(Ordering::Relaxed) > 0);
}

#[test]
fn s0_13_a_reference_to_a_removed_device_meets_errors_only() {
    let registry = Registry::new();
    let (device, _mocks) = device(&registry, 1);
    let _interest = block_on(registry.get_interest());
    let found = registry.find(Transaction::Memcpy).unwrap();
    let opened = found.open().unwrap();
    let descriptor = opened.prep_interrupt(Flags::empty()).unwrap();
    let removal = block_on(registry.unregister(&device, SOON));
    assert_eq!(removal.leaked, 1);
    let error = opened.prep_interrupt(Flags::empty()).unwrap_err();
    assert_eq!(error.reason, PrepReason::Gone);
    let error = opened.submit(descriptor).unwrap_err();
    assert_eq!(error.reason, SubmitReason::Gone);
}

#[test]
fn who_waits_for_the_last_operation_is_not_counted_as_a_leak() {
    let registry = Registry::new();
    let stuck = Mock::new(4);
    stuck.state.lock().stuck = true;
    let device = registry.register(mock::info(), vec![stuck]).unwrap();
    let _interest = block_on(registry.get_interest());
    let found = registry.find(Transaction::Memcpy).unwrap();
    let submitted = copy_by(&found.open().unwrap(), 64);
    let client = thread::spawn(move || {
        let result = block_on(submitted.finish()).result;
        drop(found);
        result
    });
    let removal = block_on(registry.unregister(&device, SOON));
    assert_eq!((removal.by_cpu, removal.lost, removal.leaked), (1, 0, 0));
    assert_eq!(client.join().unwrap(), Ok(()));
}
