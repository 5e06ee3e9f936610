//! Public channels while another CPU comes in between: a probe plays it at the moment of a count or
//! of a barrier. What the machine's own reordering adds is a matter of `tests/drain_check.rs`.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::vec;

use hal::cpu::BarrierTimeout;
use hal::host::{Moment, block_on, probe};

use super::tests::await_that;
use super::*;
use crate::mock::{self, Mock};

const SOON: Duration = Duration::from_millis(40);

struct Rig {
    registry: Registry,
    device: DmaDevice,
    slot: Number,
    _interest: Interest,
}

impl Rig {
    fn new() -> Self {
        let registry = Registry::new();
        let device = registry
            .register(mock::info(), vec![Mock::eager(8)])
            .unwrap();
        let interest = block_on(registry.get_interest());
        let slot = registry.public.slot_of(&device.chans()[0], |_| ()).unwrap();
        Self {
            registry,
            device,
            slot,
            _interest: interest,
        }
    }

    fn find(&self) -> Option<ChanRef> {
        self.registry.find(Transaction::Memcpy)
    }

    fn publish(&self, channels: &[Candidate]) {
        let cpu = |number| Cpu {
            number,
            online: true,
            node: None,
        };
        let cpus: vec::Vec<_> = (0..cpu::possible()).map(cpu).collect();
        self.registry.tables.publish(&cpus, channels);
    }

    fn candidate(&self) -> Candidate {
        Candidate {
            slot: self.slot,
            capabilities: Capabilities::MEMCPY,
            node: None,
        }
    }

    /// Whether the slot takes no duplicates and is in no table any more.
    fn is_withdrawn(tables: &Tables, slot: Number) -> bool {
        let named = |cpu| tables.get(cpu, Transaction::Memcpy) == Some(slot);
        !slot::is_live(slot) && !(0..cpu::possible()).any(named)
    }
}

/// Calls `act` at the first count upwards.
fn at_count(mut act: impl FnMut() + 'static) -> impl FnMut(Moment) -> Result<(), BarrierTimeout> {
    let mut called = false;
    move |moment| {
        if matches!(moment, Moment::Count { delta: 1, .. }) && !called {
            called = true;
            act();
        }
        Ok(())
    }
}

/// Calls `act` at the first barrier. Also says whether there was one.
fn at_barrier(
    mut act: impl FnMut() + 'static,
) -> (
    impl FnMut(Moment) -> Result<(), BarrierTimeout>,
    Rc<Cell<bool>>,
) {
    let called = Rc::new(Cell::new(false));
    let seen = called.clone();
    let probe = move |moment| {
        if moment == Moment::Barrier && !called.replace(true) {
            act();
        }
        Ok(())
    };
    (probe, seen)
}

fn unanswered(moment: Moment) -> Result<(), BarrierTimeout> {
    match moment {
        Moment::Barrier => Err(BarrierTimeout { cpu: 3 }),
        Moment::Counting | Moment::Count { .. } => Ok(()),
    }
}

#[test]
fn s1_15_a_finder_that_is_overtaken_takes_its_count_back() {
    let rig = Rig::new();
    let (tables, cpu) = (rig.registry.tables.clone(), cpu::current());
    let clear = at_count(move || {
        let entry = tables.entry(cpu, Transaction::Memcpy);
        entry.store(0, Ordering::SeqCst);
    });
    assert!(probe(clear, || rig.find()).is_none());
    assert_eq!(count::references(rig.slot), 0);
}

#[test]
fn s1_15_a_finder_whose_table_is_rewritten_finds_the_new_channel() {
    let rig = Rig::new();
    let other = rig
        .registry
        .register(mock::info(), vec![Mock::eager(8)])
        .unwrap();
    block_on(rig.registry.public.balance());
    let new = rig.registry.public.slot_of(&other.chans()[0], |_| ());
    let new = new.unwrap();
    rig.publish(&[rig.candidate()]);
    let (tables, cpu) = (rig.registry.tables.clone(), cpu::current());
    let rewrite = at_count(move || {
        let entry = tables.entry(cpu, Transaction::Memcpy);
        entry.store(new.get(), Ordering::SeqCst);
    });
    let found = probe(rewrite, || rig.find()).unwrap();
    assert_eq!(count::references(rig.slot), 0);
    assert_eq!(count::references(new), 1);
    drop(found);
}

#[test]
fn s1_4_a_duplicate_counts_before_it_asks() {
    let rig = Rig::new();
    let found = rig.find().unwrap();
    let slot = rig.slot;
    let duplicate = probe(at_count(move || slot::drain(slot)), || found.dup());
    assert_eq!(duplicate.unwrap_err(), Draining);
    assert_eq!(count::references(slot), 1);
    slot::revive(slot);
    assert!(found.dup().is_ok());
}

#[test]
fn s1_8_the_drain_waits_for_counts_that_the_barrier_brings_to_light() {
    let rig = Rig::new();
    let (tables, slot) = (rig.registry.tables.clone(), rig.slot);
    let (late, passed) = at_barrier(move || {
        assert!(Rig::is_withdrawn(&tables, slot), "else more may come");
        assert!(slot::chan(slot).is_some(), "who has found it may use it");
        cpu::local_inc(usize::from(slot.get()));
    });
    let removal = probe(late, || {
        block_on(rig.registry.unregister(&rig.device, SOON))
    });
    assert!(passed.get());
    assert_eq!(removal.leaked, 1);
    cpu::local_dec(usize::from(slot.get()));
    assert_eq!(count::references(slot), 0);
}

#[test]
fn a_drain_takes_one_barrier_and_that_of_nothing_none() {
    let barriers = |registry: &Registry, device: &DmaDevice| {
        let seen = Rc::new(Cell::new(0));
        let count = seen.clone();
        let probe_at = move |moment| {
            count.set(count.get() + usize::from(moment == Moment::Barrier));
            Ok(())
        };
        probe(probe_at, || block_on(registry.unregister(device, SOON)));
        seen.get()
    };
    let rig = Rig::new();
    assert_eq!(barriers(&rig.registry, &rig.device), 1);
    let private = crate::DeviceInfo {
        capabilities: Capabilities::MEMCPY | Capabilities::PRIVATE,
        ..mock::info()
    };
    let private = rig.registry.register(private, vec![Mock::new(1)]).unwrap();
    assert_eq!(barriers(&rig.registry, &private), 0);
}

#[test]
fn s1_8_a_barrier_without_an_answer_proves_nothing() {
    let rig = Rig::new();
    let removal = probe(unanswered, || {
        block_on(rig.registry.unregister(&rig.device, SOON))
    });
    assert_eq!(removal.leaked, 0);
    assert!(removal.drained >= SOON / 2, "it waited as long as it might");
    assert!(Slots::now().lost > 0, "the slot is not used again");
    assert_eq!(slot::chan(rig.slot).map(|chan| chan.name.clone()), None);
}

#[test]
fn s1_13_a_request_waits_for_counts_that_the_barrier_brings_to_light() {
    let rig = Rig::new();
    let chan = rig.registry.channels()[0].clone();
    let (tables, slot) = (rig.registry.tables.clone(), rig.slot);
    let (late, passed) = at_barrier(move || {
        assert!(Rig::is_withdrawn(&tables, slot));
        cpu::local_inc(usize::from(slot.get()));
    });
    let request = probe(late, || block_on(chan.request()));
    assert!(passed.get());
    assert_eq!(request.unwrap_err(), RequestError::Busy);
    assert!(slot::is_live(slot), "public as before");
    cpu::local_dec(usize::from(slot.get()));
    let request = probe(unanswered, || block_on(chan.request()));
    assert_eq!(request.unwrap_err(), RequestError::Busy);
    assert!(block_on(chan.request()).is_ok());
}

#[test]
fn s1_8_a_registry_that_goes_gives_its_slots_back_after_a_barrier() {
    let Rig {
        registry,
        device,
        slot,
        _interest,
    } = Rig::new();
    block_on(_interest.put());
    let (check, passed) = at_barrier(move || {
        assert!(!slot::is_live(slot));
        assert!(slot::chan(slot).is_some());
        cpu::local_inc(usize::from(slot.get()));
    });
    // What settles its channels, and the balance of its tables, may hold it a little longer.
    await_that("its last user", || Arc::strong_count(&registry.public) == 1);
    drop(device);
    probe(check, || drop(registry));
    assert!(passed.get());
    assert!(slot::chan(slot).is_none());
    assert!(!slot::is_live(slot));
    cpu::local_dec(usize::from(slot.get()));
}

/// A whole drain between a finder's first look and its count. For Miri, whose CPUs read what is old
/// where the language lets them; elsewhere a counter on the host is too strong an instruction for
/// this to fail.
#[test]
fn s1_15_either_the_drain_sees_the_finder_or_the_finder_the_drain() {
    let rig = Rig::new();
    for _ in 0..mock::times(200) {
        rig.publish(&[rig.candidate()]);
        // Relaxed: they order nothing that the finder and the drain do not.
        let looked = Arc::new(AtomicBool::new(false));
        let drained = Arc::new(AtomicBool::new(false));
        let (has_looked, may_count) = (looked.clone(), drained.clone());
        let between = move |moment| {
            if moment == Moment::Counting && !has_looked.swap(true, Ordering::Relaxed) {
                while !may_count.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
            }
            Ok(())
        };
        let (found, sum) = thread::scope(|scope| {
            let finder = scope.spawn(|| probe(between, || rig.find()));
            while !looked.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            rig.publish(&[]);
            cpu::barrier().unwrap();
            let sum = count::references(rig.slot);
            drained.store(true, Ordering::Relaxed);
            (finder.join().unwrap(), sum)
        });
        assert!(found.is_none() || sum > 0);
    }
}

/// A duplicate at the same time as a drain, for Miri as well.
#[test]
fn s1_4_either_the_drain_sees_the_duplicate_or_the_duplicate_the_drain() {
    let rig = Rig::new();
    let found = rig.find().unwrap();
    for _ in 0..if cfg!(miri) { 10 } else { 200 } {
        let (duplicate, sum) = thread::scope(|scope| {
            let holder = scope.spawn(|| found.dup());
            slot::drain(rig.slot);
            cpu::barrier().unwrap();
            let sum = count::references(rig.slot);
            (holder.join().unwrap(), sum)
        });
        assert!(duplicate.is_err() || sum > 1);
        slot::revive(rig.slot);
    }
}
