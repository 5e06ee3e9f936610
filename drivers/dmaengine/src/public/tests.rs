//! Public channels, row by row: the numbers in the names are those of the rows they cover.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::vec;

use hal::cpu::{self, COUNTERS};
use hal::dma::{Destination, Memory, Source};
use hal::host::block_on;
use hal::time::{Duration, poll_until};

use super::*;
use crate::mock::{self, Mock};
use crate::{Channel, ChannelOps, DeviceInfo, Flags, PrepReason, StartError, SubmitReason};

const SOON: Duration = Duration::from_millis(40);

/// Repetitions of a race. Miri, a thousand times slower, tries other orders in each.
const fn times(count: usize) -> usize {
    if cfg!(miri) { 2 } else { count }
}

fn device(registry: &Registry, channels: usize) -> (DmaDevice, Vec<Arc<Mock>>) {
    let mocks: Vec<_> = (0..channels).map(|_| Mock::eager(8)).collect();
    let ops = mocks.iter().map(|mock| mock.clone() as Arc<dyn ChannelOps>);
    let device = registry.register(mock::info(), ops.collect()).unwrap();
    (device, mocks)
}

fn entries(registry: &Registry, transaction: Transaction) -> Vec<Option<String>> {
    (0..cpu::possible())
        .map(|cpu| registry.table_entry(cpu, transaction))
        .map(|chan| chan.map(|chan| String::from(chan.name())))
        .collect()
}

/// Names of the channels in the tables for copies.
fn published(registry: &Registry) -> Vec<String> {
    let mut names: Vec<_> = entries(registry, Transaction::Memcpy)
        .into_iter()
        .flatten()
        .collect();
    names.sort();
    names.dedup();
    names
}

fn await_that(what: &str, condition: impl FnMut() -> bool) {
    let waited = poll_until(Duration::from_secs(5), Duration::from_millis(1), condition);
    block_on(waited).unwrap_or_else(|_| panic!("never came: {what}"));
}

fn copy_by(opened: &Channel, len: usize) -> crate::Submitted<crate::Memcpy> {
    let src = Source::new(Arc::new(Memory::new(len).unwrap()), 0..len).unwrap();
    let dst = Destination::new(Memory::new(len).unwrap(), 0..len).unwrap();
    let descriptor = opened.prep_memcpy(dst, src, Flags::empty()).unwrap();
    opened.submit(descriptor).unwrap()
}

#[test]
fn s1_2_find_gives_each_cpu_its_channel() {
    let registry = Registry::new();
    device(&registry, 3);
    assert!(
        registry.find(Transaction::Memcpy).is_none(),
        "nobody is interested"
    );
    let interest = block_on(registry.get_interest());
    assert!(interest.refused().is_empty());
    for (cpu, entry) in entries(&registry, Transaction::Memcpy)
        .into_iter()
        .enumerate()
    {
        assert_eq!(entry, Some(format!("dma0chan{}", cpu % 3)));
    }
    assert!(
        entries(&registry, Transaction::Xor)
            .iter()
            .all(Option::is_none)
    );
    assert!(registry.find(Transaction::Xor).is_none());
    let found = registry.find(Transaction::Memcpy).unwrap();
    let mine = registry
        .table_entry(cpu::current(), Transaction::Memcpy)
        .unwrap();
    assert_eq!(format!("{found:?}"), format!("ChanRef({})", mine.name()));
    let opened = found.open().unwrap();
    let submitted = copy_by(&opened, 64);
    opened.issue_pending();
    assert_eq!(block_on(submitted.finish()).result, Ok(()));
    assert_eq!(mine.counters().copies, 1);
}

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
            slot::references(slot),
            1,
            "the refused duplicate was taken back"
        );
        assert!(!removal.is_finished());
        drop(second);
        assert_eq!(removal.join().unwrap().leaked, 0);
    });
}

#[test]
fn s1_5_has_capability_counts_nothing() {
    let registry = Registry::new();
    device(&registry, 1);
    assert!(!registry.has_capability(Transaction::Memcpy));
    let interest = block_on(registry.get_interest());
    let chan = registry.channels()[0].clone();
    for _ in 0..10 {
        assert!(registry.has_capability(Transaction::Memcpy));
        assert!(!registry.has_capability(Transaction::PqVal));
    }
    assert_eq!(registry.references(&chan), 0);
    drop(interest);
    assert!(!registry.has_capability(Transaction::Memcpy));
}

#[test]
fn s1_6_a_misaligned_request_finds_nothing_and_counts_nothing() {
    let registry = Registry::new();
    let info = DeviceInfo {
        copy_align: 6,
        ..mock::info()
    };
    registry.register(info, vec![Mock::new(1)]).unwrap();
    let _interest = block_on(registry.get_interest());
    let chan = registry.channels()[0].clone();
    let find = |places: &[u64], len| registry.find_aligned(Transaction::Memcpy, places, len);
    let found = find(&[0x1000, 0x40], 128).unwrap();
    assert_eq!(registry.references(&chan), 1);
    assert_eq!(found.copy_align(), 6);
    drop(found);
    assert!(find(&[0x1000, 0x20], 128).is_none());
    assert!(find(&[0x1001, 0x40], 128).is_none());
    assert!(find(&[0x1000, 0x40], 127).is_none());
    assert_eq!(registry.references(&chan), 0);
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
    // Its slot is not used again while it lives.
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
    assert_eq!(slot::references(slot), 1);
    drop(leaked);
    assert_eq!(slot::references(slot), 0);
    drop(interest);
    drop(others);
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
fn s1_14_cpus_go_and_come() {
    // The host's CPUs are all online: the distribution is tested by tables alone
    // (`table::tests`); here, that the kernel's call writes them.
    let registry = Registry::new();
    device(&registry, 1);
    let _interest = block_on(registry.get_interest());
    let before = registry.rebuilds();
    registry.rebalance();
    assert_eq!(registry.rebuilds(), before + 1);
    assert_eq!(published(&registry), ["dma0chan0"]);
}

#[test]
fn s1_15_a_storm_of_finds_uses_no_removed_device() {
    let registry = Registry::new();
    let _interest = block_on(registry.get_interest());
    let stop = AtomicBool::new(false);
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
        for _ in 0..times(100) {
            let (device, _mocks) = device(&registry, 2);
            await_that("the table", || published(&registry).len() == 2);
            let removal = block_on(registry.unregister(&device, Duration::from_secs(20)));
            assert_eq!((removal.leaked, removal.lost), (0, 0));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(late.load(Ordering::Relaxed), 0);
    assert!(used.load(Ordering::Relaxed) > 0);
}

#[test]
fn s0_1_interest_refuses_an_unload_but_not_a_removal() {
    let registry = Registry::new();
    let (device, _mocks) = device(&registry, 2);
    let first = block_on(registry.get_interest());
    let second = block_on(registry.get_interest());
    assert_eq!(registry.interest(), 2);
    let unload = || block_on(registry.unload(&device, SOON));
    assert_eq!(unload().unwrap_err().clients, 2);
    assert_eq!(registry.devices().len(), 1);
    assert_eq!(published(&registry).len(), 2, "as before");
    drop(first);
    assert_eq!(unload().unwrap_err().clients, 1);
    block_on(second.put());
    assert!(unload().is_ok());
    assert!(registry.devices().is_empty());

    let (device, mocks) = self::device(&registry, 1);
    let _interest = block_on(registry.get_interest());
    let removal = block_on(registry.unregister(&device, SOON));
    assert_eq!((removal.revoked, removal.leaked), (0, 0));
    assert_eq!(mocks[0].state.lock().stops, 1);
}

#[test]
fn s0_1_a_client_of_its_own_refuses_an_unload_too() {
    let registry = Registry::new();
    let (device, _mocks) = device(&registry, 1);
    let channel = block_on(registry.request(Capabilities::MEMCPY)).unwrap();
    assert_eq!(
        block_on(registry.unload(&device, SOON))
            .unwrap_err()
            .clients,
        1
    );
    drop(channel);
    assert!(block_on(registry.unload(&device, SOON)).is_ok());
}

#[test]
fn s0_2_unload_and_interest_race_to_one_of_two_ends() {
    for _ in 0..times(50) {
        let registry = Registry::new();
        let (device, mocks) = device(&registry, 1);
        let interest = thread::scope(|scope| {
            let unload = scope.spawn(|| block_on(registry.unload(&device, SOON)));
            let interest = block_on(registry.get_interest());
            match unload.join().unwrap() {
                Ok(_) => assert!(registry.find(Transaction::Memcpy).is_none()),
                Err(in_use) => {
                    assert_eq!(in_use.clients, 1);
                    assert!(registry.find(Transaction::Memcpy).is_some());
                }
            }
            interest
        });
        block_on(interest.put());
        let state = mocks[0].state.lock();
        assert_eq!(state.starts, state.stops);
    }
}

#[test]
fn s0_3_a_channel_that_does_not_start_has_no_client_and_is_not_found() {
    let registry = Registry::new();
    let (_device, mocks) = device(&registry, 1);
    let refusal = StartError::NotReady {
        status: 3,
        errors: 1,
    };
    mocks[0].state.lock().refuse_start = Some(refusal.clone());
    let chan = registry.channels()[0].clone();
    let interest = block_on(registry.get_interest());
    let expected = (String::from("dma0chan0"), RequestError::Start(refusal));
    assert_eq!(interest.refused(), [expected]);
    assert_eq!(chan.clients(), 0);
    assert!(registry.find(Transaction::Memcpy).is_none());
    mocks[0].state.lock().refuse_start = None;
    let second = block_on(registry.get_interest());
    assert!(second.refused().is_empty());
    assert_eq!(chan.clients(), 2);
    assert!(registry.find(Transaction::Memcpy).is_some());
}

#[test]
fn s0_4_the_last_put_frees_once() {
    let registry = Registry::new();
    let (_device, mocks) = device(&registry, 2);
    let first = block_on(registry.get_interest());
    let second = block_on(registry.get_interest());
    block_on(first.put());
    assert!(
        registry
            .channels()
            .iter()
            .all(|chan| chan.is_running() && chan.clients() == 1)
    );
    block_on(second.put());
    for (mock, chan) in mocks.iter().zip(registry.channels()) {
        let state = mock.state.lock();
        assert_eq!((state.starts, state.stops), (1, 1));
        assert_eq!(chan.clients(), 0);
    }
    assert_eq!(registry.interest(), 0);
}

#[test]
fn s0_5_a_late_channel_catches_up() {
    let registry = Registry::new();
    let users: Vec<_> = (0..3).map(|_| block_on(registry.get_interest())).collect();
    device(&registry, 1);
    let chan = registry.channels()[0].clone();
    await_that("it", || published(&registry).len() == 1);
    assert_eq!(chan.clients(), 3);
    drop(users);
    await_that("its end", || !chan.is_running());
    assert_eq!(chan.clients(), 0);
}

#[test]
fn s0_6_one_faulty_device_does_not_block_the_others() {
    let registry = Registry::new();
    let devices: Vec<_> = (0..3).map(|_| device(&registry, 1)).collect();
    devices[1].1[0].state.lock().refuse_start = Some(StartError::Gone);
    let interest = block_on(registry.get_interest());
    assert_eq!(interest.refused().len(), 1);
    assert_eq!(published(&registry), ["dma0chan0", "dma2chan0"]);
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
