//! Public channels, row by row: the numbers in the names are those of the rows they cover. Here what
//! holds in every build; below, what depends on whether references are counted.

#[cfg(feature = "hotplug")]
mod counted;
#[cfg(not(feature = "hotplug"))]
mod uncounted;

use std::collections::HashSet;
use std::string::ToString;
use std::thread;
use std::vec;

use hal::cpu::{self, COUNTERS};
use hal::dma::{Destination, Memory, Source};
use hal::host::block_on;
use hal::time::{Duration, poll_until};

use super::*;
use crate::mock::{self, Mock};
use crate::{Channel, ChannelOps, DeviceInfo, Flags, StartError};

const SOON: Duration = Duration::from_millis(40);

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

pub(super) fn await_that(what: &str, condition: impl FnMut() -> bool) {
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
fn a_transaction_is_named_by_the_capability_that_it_needs() {
    for transaction in Transaction::ALL {
        let capability = transaction.capability();
        assert_eq!(Transaction::of(capability), Some(transaction));
        assert_eq!(transaction.to_string(), capability.to_string());
    }
    assert_eq!(Transaction::PqVal.to_string(), "pq_val");
    assert_eq!(Transaction::of(Capabilities::PRIVATE), None);
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
    let counted = usize::from(cfg!(feature = "hotplug"));
    assert_eq!(registry.references(&chan), counted);
    assert_eq!(found.copy_align(), 6);
    drop(found);
    assert!(find(&[0x1000, 0x20], 128).is_none());
    assert!(find(&[0x1001, 0x40], 128).is_none());
    assert!(find(&[0x1020, 0x60], 128).is_none(), "both are misaligned");
    assert!(find(&[0x1000, 0x40], 127).is_none());
    assert_eq!(registry.references(&chan), 0);
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
    for _ in 0..mock::times(50) {
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
