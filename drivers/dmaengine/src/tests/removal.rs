//! Devices that leave while they are used.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant as Clock;
use std::vec;

use super::*;
use crate::{Capabilities, Client, Offers, RequestError, StartError, SubmitReason, Transaction};

const LONG: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(40);
/// What a removal may take beyond its limit on a loaded machine.
const SLACK: std::time::Duration = std::time::Duration::from_secs(5);

#[test]
fn s0_6_a_device_that_is_gone_is_delisted_and_the_walk_goes_on() {
    let registry = Registry::new();
    let gone = Mock::new(2);
    gone.state.lock().refuse_start = Some(StartError::Gone);
    let faulty = Mock::new(2);
    faulty.state.lock().refuse_start = Some(StartError::NotReady {
        status: 1,
        errors: 1,
    });
    device(&registry, &[gone]);
    device(&registry, &[faulty]);
    device(&registry, &[Mock::new(2)]);
    let interest = block_on(registry.get_interest());
    assert_eq!(interest.refused().len(), 2);
    let numbers: Vec<_> = registry.devices().iter().map(DmaDevice::number).collect();
    assert_eq!(numbers, [1, 2], "only the one that is gone is off the list");
    let found = registry.find(Transaction::Memcpy).unwrap();
    assert_eq!(found.open().unwrap().name(), "dma2chan0");
}

#[test]
fn s0_7_an_interest_is_given_up_once() {
    let registry = Registry::new();
    device(&registry, &[Mock::new(2)]);
    let first = block_on(registry.get_interest());
    let second = block_on(registry.get_interest());
    block_on(first.put());
    assert_eq!(registry.interest(), 1);
    block_on(second.put());
    assert_eq!(registry.interest(), 0);
    // The type has no second put; were there one, it would be refused.
    assert!(registry.public.leave().is_empty());
    assert_eq!(registry.interest(), 0);
    assert!(registry.find(Transaction::Memcpy).is_none());
}

#[test]
fn s0_8_a_new_device_gets_the_references_of_waiting_clients_or_is_not_listed() {
    let registry = Registry::new();
    let interests: Vec<_> = (0..3).map(|_| block_on(registry.get_interest())).collect();
    let leaving = Mock::new(2);
    leaving.state.lock().refuse_start = Some(StartError::Gone);
    device(&registry, &[leaving]);
    await_that("the end of the one that leaves", || {
        registry.devices().is_empty()
    });
    let chan = device(&registry, &[Mock::new(2)])
        .channels()
        .next()
        .unwrap();
    await_that("the references", || {
        chan.clients() == 3 && chan.is_running()
    });
    drop(interests);
}

#[test]
fn s0_9_channels_are_offered_once_each_until_the_client_has_enough() {
    let registry = Registry::new();
    device(&registry, &[Mock::new(2), Mock::new(2)]);
    let interest = block_on(registry.get_interest());
    let next = |offers: &mut Offers<'_>, limit| {
        let offer = block_on(hal::time::timeout(limit, offers.next()));
        offer.ok().map(|chan| chan.name().to_owned())
    };
    let mut offers = interest.offers(Capabilities::MEMCPY).unwrap();
    assert_eq!(next(&mut offers, LONG).unwrap(), "dma0chan0");
    offers.nak();
    let mut offers = interest.offers(Capabilities::MEMCPY).unwrap();
    assert_eq!(next(&mut offers, LONG).unwrap(), "dma0chan0");
    assert_eq!(next(&mut offers, LONG).unwrap(), "dma0chan1");
    assert_eq!(next(&mut offers, SHORT), None, "there are no more");
    thread::scope(|scope| {
        let late = scope.spawn(|| next(&mut offers, LONG));
        device(&registry, &[Mock::new(2)]);
        assert_eq!(late.join().unwrap().unwrap(), "dma1chan0");
    });
    let gone = registry.devices().pop().unwrap();
    block_on(registry.unregister(&gone, SHORT));
    drop(gone);
    await_that("its memory", || {
        assert_eq!(next(&mut offers, Duration::ZERO), None);
        format!("{offers:?}") == "Offers(memcpy offered=2)"
    });
    let mut offers = interest.offers(Capabilities::XOR).unwrap();
    assert_eq!(next(&mut offers, SHORT), None, "nothing that matches");
}

#[test]
fn s0_10_s1_16_holders_are_told_with_a_deadline_and_revoked_at_it() {
    let registry = Registry::new();
    let mut info = mock::info();
    // Other tests warn of theirs.
    info.provider = "told".into();
    let device = registry.register(info, vec![Mock::new(4)]).unwrap();
    let warnings = crate::mock::warnings();
    let channel = block_on(registry.request(Capabilities::MEMCPY)).unwrap();
    let begin = hal::time::Instant::now();
    let told = (*channel).clone();
    let removal = thread::scope(|scope| {
        let told = scope.spawn(|| block_on(told.removed()));
        let removal = scope.spawn(|| block_on(registry.unregister(&device, SHORT)));
        let deadline = told.join().unwrap();
        assert!(
            deadline - begin >= SHORT,
            "counted from the beginning of the removal"
        );
        removal.join().unwrap()
    });
    assert_eq!(removal.revoked, 1);
    assert_eq!(warnings.about("told caps="), 1, "once");
    assert!(channel.is_leaving() && channel.is_gone());
    let refused = channel.prep_interrupt(Flags::empty());
    assert!(refused.is_err());
}

#[test]
fn s1_16_who_holds_a_channel_may_use_it_until_the_deadline() {
    let registry = Registry::new();
    let device = device(&registry, &[Mock::eager(4)]);
    let channel = block_on(registry.request(Capabilities::MEMCPY)).unwrap();
    thread::scope(|scope| {
        let removal = scope.spawn(|| block_on(registry.unregister(&device, LONG)));
        block_on(channel.removed());
        let submitted = copy(&channel, 64);
        channel.issue_pending();
        assert_eq!(block_on(submitted.finish()).result, Ok(()));
        let other = block_on((*channel).share()).unwrap_err();
        assert_eq!(other, RequestError::Gone, "nobody comes any more");
        block_on(channel.release());
        let removal = removal.join().unwrap();
        assert_eq!(
            (removal.revoked, removal.in_flight, removal.lost),
            (0, 0, 0)
        );
    });
}

#[test]
fn s1_12_a_release_lets_the_removal_go_on() {
    let registry = Registry::new();
    let device = device(&registry, &[Mock::new(4)]);
    let channel = block_on(registry.request(Capabilities::MEMCPY)).unwrap();
    let begin = Clock::now();
    thread::scope(|scope| {
        let removal = scope.spawn(|| block_on(registry.unregister(&device, LONG)));
        block_on(channel.removed());
        drop(channel);
        assert_eq!(removal.join().unwrap().revoked, 0);
    });
    assert!(begin.elapsed() < SLACK, "it did not wait for the deadline");
}

#[test]
fn s1_12_what_is_in_flight_when_a_holder_lets_go_of_a_leaving_device_is_not_terminated() {
    let registry = Registry::new();
    let device = device(&registry, &[Mock::new(4)]);
    let channel = block_on(registry.request(Capabilities::MEMCPY)).unwrap();
    let submitted = copy(&channel, 64);
    thread::scope(|scope| {
        let removal = scope.spawn(|| block_on(registry.unregister(&device, LONG)));
        block_on(channel.removed());
        block_on(channel.release());
        let removal = removal.join().unwrap();
        assert_eq!((removal.by_cpu, removal.lost), (1, 0));
    });
    assert_eq!(block_on(submitted.finish()).result, Ok(()));
}

#[cfg(feature = "hotplug")]
#[test]
fn s1_10_references_are_awaited_before_anything_is_freed() {
    let registry = Registry::new();
    let mock = Mock::eager(4);
    let device = device(&registry, core::slice::from_ref(&mock));
    let interest = block_on(registry.get_interest());
    let found = registry.find(Transaction::Memcpy).unwrap();
    thread::scope(|scope| {
        let removal = scope.spawn(|| block_on(registry.unregister(&device, LONG)));
        await_that("the table without it", || {
            registry.find(Transaction::Memcpy).is_none()
        });
        let submitted = copy(&found.open().unwrap(), 64);
        found.open().unwrap().issue_pending();
        assert_eq!(block_on(submitted.finish()).result, Ok(()));
        assert_eq!(mock.state.lock().stops, 0, "nothing is freed meanwhile");
        drop(found);
        removal.join().unwrap();
    });
    let trace = mock.state.lock().trace.clone();
    assert_eq!(
        trace,
        [
            "alloc public",
            "set public",
            "submit",
            "release public",
            "free"
        ]
    );
    drop(interest);
}

#[test]
fn s1_11_issuing_everything_during_removals_does_no_harm() {
    let registry = Registry::new();
    let interest = block_on(registry.get_interest());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                registry.issue_pending_all();
            }
        });
        let mut removals = (0..mock::times(20)).map(|_| {
            let device = device(&registry, &[Mock::eager(4), Mock::eager(4)]);
            // Where references are not counted, all of it is waited for.
            block_on(registry.unregister(&device, SHORT))
        });
        let harm = removals.find(|removal| (removal.lost, removal.leaked) != (0, 0));
        // Before anything is asserted: a failure ends the storm too.
        stop.store(true, Ordering::Relaxed);
        assert_eq!(harm, None);
    });
    drop(interest);
}

#[test]
fn s1_11_issuing_everything_starts_what_was_submitted() {
    let registry = Registry::new();
    let mock = Mock::new(4);
    device(&registry, core::slice::from_ref(&mock));
    let channel = block_on(registry.channels()[0].share()).unwrap();
    drop(copy(&channel, 64));
    assert_eq!(mock.state.lock().issued, 0);
    registry.issue_pending_all();
    assert_eq!(mock.state.lock().issued, 1);
}

#[cfg(feature = "hotplug")]
#[test]
fn s1_17_s1_18_a_holder_that_leaks_everything_keeps_no_resource_and_delays_to_the_deadline() {
    let registry = Registry::new();
    let mocks = [Mock::new(4), Mock::new(4)];
    let device = device(&registry, &mocks);
    let interest = block_on(registry.get_interest());
    let found = registry.find(Transaction::Memcpy).unwrap();
    let leaked = found.open().unwrap().name().to_owned();
    core::mem::forget(found);
    let channels = registry.channels();
    let other = channels.iter().find(|chan| chan.name() != leaked).unwrap();
    core::mem::forget(block_on(other.request()).unwrap());
    let begin = Clock::now();
    let removal = block_on(registry.unregister(&device, SHORT));
    assert!(begin.elapsed() < SLACK, "bounded by the deadline");
    assert_eq!(removal.leaked, 1);
    assert_eq!(removal.revoked, 1);
    for mock in &mocks {
        let state = mock.state.lock();
        assert_eq!(state.stops, 1, "the remover frees, not the last put");
    }
    drop(interest);
}

#[test]
fn an_operation_that_a_provider_drops_is_counted_as_lost() {
    let registry = Registry::new();
    let mock = Mock::new(4);
    mock.state.lock().forgetful = true;
    let device = device(&registry, core::slice::from_ref(&mock));
    let channel = block_on(registry.request(Capabilities::MEMCPY)).unwrap();
    let submitted: Vec<_> = (0..3).map(|_| copy(&channel, 64)).collect();
    channel.issue_pending();
    let removal = block_on(registry.unregister(&device, SHORT));
    assert_eq!((removal.in_flight, removal.lost), (3, 1));
    let ended: Vec<_> = submitted
        .into_iter()
        .map(|submitted| block_on(submitted.finish()).result.is_ok())
        .collect();
    assert_eq!(ended, [false, true, true]);
}

#[test]
fn what_a_client_terminates_is_not_lost() {
    let registry = Registry::new();
    let device = device(&registry, &[Mock::new(4)]);
    let channel = block_on(registry.request(Capabilities::MEMCPY)).unwrap();
    drop(copy(&channel, 64));
    thread::scope(|scope| {
        let removal = scope.spawn(|| block_on(registry.unregister(&device, LONG)));
        block_on(channel.removed());
        block_on(channel.terminate_all().wait()).unwrap();
        block_on(channel.release());
        assert_eq!(removal.join().unwrap().lost, 0);
    });
}

/// Failures are compared while operations end on other CPUs.
#[test]
fn what_a_client_terminates_is_no_failure_at_any_moment() {
    let registry = Registry::new();
    let _device = device(&registry, &[Mock::new(4)]);
    let channel = block_on(registry.request(Capabilities::MEMCPY)).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let looks = scope.spawn(|| {
            let mut worst = 0;
            while !over.load(Ordering::Relaxed) {
                worst = worst.max(channel.chan().failures());
            }
            worst
        });
        for _ in 0..mock::times(20_000) {
            drop(copy(&channel, 64));
            channel.terminate_all();
        }
        over.store(true, Ordering::Relaxed);
        assert_eq!(looks.join().unwrap(), 0);
    });
}

#[test]
fn an_unload_keeps_out_who_comes_late() {
    for _ in 0..mock::times(50) {
        let registry = Registry::new();
        let device = device(&registry, &[Mock::eager(4)]);
        let chan = device.channels().next().unwrap();
        thread::scope(|scope| {
            let request = scope.spawn(|| block_on(chan.share_for(&Client::new("late"))));
            let unload = block_on(registry.unload(&device, SHORT));
            match (request.join().unwrap(), unload) {
                (Err(RequestError::Gone), Ok(removal)) => assert_eq!(removal.revoked, 0),
                (Ok(channel), Err(in_use)) => {
                    assert_eq!(in_use.clients, 1);
                    assert!(block_on(chan.share()).is_ok(), "it stays for others too");
                    drop(channel);
                }
                other => panic!("{other:?}"),
            }
        });
    }
}

#[test]
fn a_revoked_client_meets_gone() {
    let registry = Registry::new();
    let device = device(&registry, &[Mock::new(4)]);
    let channel = block_on(registry.request(Capabilities::MEMCPY)).unwrap();
    let late = channel.prep_interrupt(Flags::empty()).unwrap();
    block_on(registry.unregister(&device, SHORT));
    assert_eq!(channel.submit(late).unwrap_err().reason, SubmitReason::Gone);
}
