//! The driver on a unit that is played.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use hal::dma::{Buffer, DmaOps, DmaSpace, MapError, RawMapping};
use hal::pci::Address;
use hal::time::{Duration, Instant};
use proptest::prelude::*;
use vcm::{Mmu, Vcm};

use crate::fake::{
    CAP, CAP_CACHING, CAP_LARGE, CAP_MASK, CAP_SELECTIVE, CAP_WRITE_BUFFER, ECAP, ECAP_COHERENT,
    ECAP_QUEUE, FakeUnit, Outcome, levels,
};
use crate::fault::{Access, Reporter, Telling};
use crate::unit::source_id;
use crate::{Domain, Error, Message, Permissions, Target, Unit, Window};

const PAGE: u64 = 4096;
const LARGE: u64 = 2 << 20;
const HUGE: u64 = 1 << 30;
/// Somewhere in memory: nobody reads it.
const PHYS: u64 = 0x40_0000_0000;

fn device(function: u8) -> Address {
    Address {
        segment: 0,
        bus: 3,
        device: 4,
        function,
    }
}

fn source(function: u8) -> u16 {
    source_id(device(function))
}

fn unit(cap: u64, ecap: u64) -> (Arc<FakeUnit>, Arc<Unit>) {
    let fake = FakeUnit::new(cap, ecap);
    let unit = Unit::new(0, fake.region(), FakeUnit::space()).unwrap();
    unit.enable().unwrap();
    (fake, unit)
}

fn domain(unit: &Arc<Unit>, function: u8) -> Arc<Domain> {
    let domain = Domain::new(unit, device(function)).unwrap();
    domain.attach().unwrap();
    domain
}

/// Units of every kind: widths, with and without queue, caching what is not there or not, with a
/// write buffer, without pages that can be forgotten alone, without large pages.
fn kinds() -> Vec<(u64, u64)> {
    let plain = CAP | levels(4);
    vec![
        (plain, ECAP),
        (plain | CAP_CACHING, ECAP),
        (plain | CAP_CACHING, ECAP & !ECAP_QUEUE),
        (plain, ECAP & !(ECAP_QUEUE | ECAP_COHERENT)),
        (plain | CAP_WRITE_BUFFER, ECAP & !ECAP_COHERENT),
        (CAP | levels(3), ECAP),
        ((CAP | levels(5)) & !CAP_MASK, ECAP),
        (plain & !CAP_SELECTIVE, ECAP),
        (plain & !CAP_SELECTIVE, ECAP & !ECAP_QUEUE),
        (plain & !CAP_LARGE | CAP_CACHING, ECAP),
    ]
}

#[test]
fn nobody_reaches_anything_without_a_domain() {
    for (cap, ecap) in kinds() {
        let (fake, unit) = unit(cap, ecap);
        assert!(unit.is_enabled());
        for iova in [0, PHYS, 0xfee0_0000] {
            assert_eq!(fake.access(source(0), iova, true), Outcome::Blocked(2));
        }
    }
}

#[test]
fn a_device_reaches_what_is_mapped_for_it_alone() {
    for (cap, ecap) in kinds() {
        let (fake, unit) = unit(cap, ecap);
        let (one, other) = (domain(&unit, 0), domain(&unit, 1));
        assert_ne!(one.id(), other.id());
        // What was looked for too early is remembered by some.
        assert_eq!(fake.access(source(0), 0x5123, false), Outcome::Blocked(6));
        one.map(0x5000, PHYS, PAGE, Permissions::READ).unwrap();
        one.flush().unwrap();
        let reached = fake.access(source(0), 0x5123, false);
        assert_eq!(
            reached,
            Outcome::Reaches(PHYS + 0x123),
            "{cap:#x} {ecap:#x}"
        );
        assert_eq!(fake.access(source(0), 0x5123, true), Outcome::Blocked(5));
        assert_eq!(fake.access(source(0), 0x6000, false), Outcome::Blocked(6));
        assert_eq!(fake.access(source(0), 0x4fff, false), Outcome::Blocked(6));
        assert_eq!(fake.access(source(1), 0x5123, false), Outcome::Blocked(6));
        assert_eq!(one.unmap(0x5000, PAGE), Ok(PAGE));
        one.flush().unwrap();
        assert_eq!(fake.access(source(0), 0x5123, false), Outcome::Blocked(6));
        assert_eq!(
            (one.pages(), one.tables()),
            ([0; 3], 1),
            "only the root is left"
        );
    }
}

/// The unit remembers until it is told: what makes a test of flushing one.
#[test]
fn what_is_unmapped_is_reached_until_the_flush_and_no_longer() {
    let (fake, unit) = unit(CAP | levels(4), ECAP);
    let domain = domain(&unit, 0);
    domain.map(0, PHYS, 3 * PAGE, Permissions::all()).unwrap();
    domain.flush().unwrap();
    assert_eq!(
        fake.access(source(0), PAGE, true),
        Outcome::Reaches(PHYS + PAGE)
    );
    domain.unmap(0, 3 * PAGE).unwrap();
    assert_eq!(
        fake.access(source(0), PAGE, true),
        Outcome::Reaches(PHYS + PAGE),
        "stale"
    );
    assert!(domain.tables() > 1, "tables wait for the flush");
    let waits = fake.waits.load(Ordering::Relaxed);
    domain.flush().unwrap();
    domain.flush().unwrap();
    assert_eq!(
        fake.waits.load(Ordering::Relaxed),
        waits + 1,
        "nothing to tell twice"
    );
    assert_eq!(fake.access(source(0), PAGE, true), Outcome::Blocked(5));
    assert_eq!(domain.tables(), 1);
}

#[test]
fn a_revoked_device_reaches_nothing_and_a_fresh_domain_begins_empty() {
    for (cap, ecap) in kinds() {
        let (fake, unit) = unit(cap, ecap);
        let first = domain(&unit, 0);
        first.map(0x5000, PHYS, PAGE, Permissions::all()).unwrap();
        first.flush().unwrap();
        assert_eq!(fake.access(source(0), 0x5000, true), Outcome::Reaches(PHYS));
        first.revoke().unwrap();
        assert_eq!(
            fake.access(source(0), 0x5000, true),
            Outcome::Blocked(2),
            "{cap:#x}"
        );
        assert_eq!(
            first.map(0, PHYS, PAGE, Permissions::all()),
            Err(Error::Revoked)
        );
        assert_eq!(first.attach(), Err(Error::Revoked));
        assert_eq!((first.pages(), first.translate(0x5000)), ([0; 3], None));
        let second = domain(&unit, 0);
        assert_ne!(first.id(), second.id());
        assert_eq!(fake.access(source(0), 0x5000, true), Outcome::Blocked(5));
        // What the old one is asked does nothing to the new one.
        second.map(0x9000, PHYS, PAGE, Permissions::all()).unwrap();
        second.flush().unwrap();
        first.unmap(0x5000, PAGE).unwrap();
        first.flush().unwrap();
        first.revoke().unwrap();
        drop(first);
        assert_eq!(fake.access(source(0), 0x9000, true), Outcome::Reaches(PHYS));
        assert_eq!(unit.domains(), 1);
        drop(second);
        assert_eq!(fake.access(source(0), 0x9000, true), Outcome::Blocked(2));
        assert_eq!(unit.domains(), 0);
    }
}

#[test]
fn a_device_has_one_domain() {
    let (fake, unit) = unit(CAP | levels(4), ECAP);
    let first = domain(&unit, 0);
    first.map(0, PHYS, PAGE, Permissions::READ).unwrap();
    let second = Domain::new(&unit, device(0)).unwrap();
    assert_eq!(second.attach(), Err(Error::Attached));
    drop(second);
    let reached = fake.access(source(0), 0, false);
    assert_eq!(reached, Outcome::Reaches(PHYS), "untouched");
    unit.detach(device(0), first.id() + 1).unwrap();
    fake.forget_everything();
    let reached = fake.access(source(0), 0, false);
    assert_eq!(reached, Outcome::Reaches(PHYS), "another's domain");
}

#[test]
fn identifiers_come_again_late_and_run_out() {
    let (_, unit) = unit(CAP | levels(4), ECAP);
    let all: Vec<_> = (1..256)
        .map(|n| {
            Domain::new(
                &unit,
                Address {
                    bus: n as u8,
                    ..device(0)
                },
            )
            .unwrap()
        })
        .collect();
    let ids: Vec<_> = all.iter().map(|domain| domain.id()).collect();
    assert_eq!(ids, (1..256).collect::<Vec<_>>(), "0 is what is not there");
    assert_eq!(Domain::new(&unit, device(7)).unwrap_err(), Error::Exhausted);
    drop(all);
    assert_eq!(Domain::new(&unit, device(7)).unwrap().id(), 1);
    assert_eq!(Domain::new(&unit, device(7)).unwrap().id(), 2);
}

#[test]
fn large_pages_are_used_and_split_where_a_part_goes() {
    let (fake, unit) = unit(CAP | levels(4), ECAP);
    let domain = domain(&unit, 0);
    let all = Permissions::all();
    domain
        .map(HUGE, 4 * HUGE, HUGE + LARGE + PAGE, all)
        .unwrap();
    assert_eq!(domain.pages(), [1, 1, 1]);
    domain.map(8 * HUGE, PHYS + PAGE, LARGE, all).unwrap();
    assert_eq!(domain.pages(), [513, 1, 1], "not aligned alike");
    domain.unmap(8 * HUGE, LARGE).unwrap();
    domain.flush().unwrap();
    let at = HUGE + 5 * LARGE + 7 * PAGE;
    assert_eq!(
        fake.access(source(0), at, true),
        Outcome::Reaches(at + 3 * HUGE)
    );
    assert_eq!(domain.unmap(at, PAGE), Ok(PAGE));
    assert_eq!(domain.pages(), [1 + 511, 1 + 511, 0]);
    domain.flush().unwrap();
    assert_eq!(fake.access(source(0), at, true), Outcome::Blocked(5));
    for beside in [at - 1, at + PAGE, HUGE, 2 * HUGE - 1] {
        assert_eq!(
            fake.access(source(0), beside, true),
            Outcome::Reaches(beside + 3 * HUGE)
        );
    }
    assert_eq!(domain.unmap(0, 16 * HUGE), Ok(HUGE + LARGE));
    domain.flush().unwrap();
    assert_eq!((domain.pages(), domain.tables()), ([0; 3], 1));
}

#[test]
fn what_cannot_be_mapped_is_refused_and_changes_nothing() {
    let (fake, unit) = unit(CAP | levels(3), ECAP);
    let domain = domain(&unit, 0);
    let all = Permissions::all();
    let end = 1 << 39;
    for (iova, phys, len) in [
        (0, PHYS, 0),
        (1, PHYS, PAGE),
        (0, PHYS + 1, PAGE),
        (0, PHYS, PAGE + 1),
        (end, PHYS, PAGE),
        (end - PAGE, PHYS, 2 * PAGE),
        (u64::MAX - PAGE + 1, PHYS, PAGE),
        (0, u64::MAX - PAGE + 1, PAGE),
        (0, 1 << 52, PAGE),
    ] {
        assert_eq!(
            domain.map(iova, phys, len, all),
            Err(Error::Range),
            "{iova:#x}"
        );
    }
    assert_eq!(
        domain.map(0, PHYS, PAGE, Permissions::empty()),
        Err(Error::Range)
    );
    assert_eq!(domain.unmap(end, PAGE), Err(Error::Range));
    domain.map(end - PAGE, PHYS, PAGE, all).unwrap();
    // The second half is taken: the first goes as well.
    let tables = domain.tables();
    let start = end - PAGE - 600 * PAGE;
    assert_eq!(domain.map(start, PHYS, 601 * PAGE, all), Err(Error::Mapped));
    domain.flush().unwrap();
    assert_eq!((domain.pages(), domain.tables()), ([1, 0, 0], tables));
    assert_eq!(fake.access(source(0), start, true), Outcome::Blocked(5));
    assert_eq!(
        fake.access(source(0), end - 1, true),
        Outcome::Reaches(PHYS + PAGE - 1)
    );
}

/// Memory for so many tables.
struct Few(AtomicUsize);

impl DmaOps for Few {
    fn map(&self, buffers: &[Buffer], mapping: &mut RawMapping) -> Result<(), MapError> {
        let one = |left: usize| left.checked_sub(1);
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one);
        taken.map_err(|_| MapError::Exhausted)?;
        mapping.push_direct(buffers);
        Ok(())
    }

    fn unmap(&self, _: &RawMapping) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn without_memory_for_tables_nothing_is_mapped_and_none_stay() {
    let few = Arc::new(Few(AtomicUsize::new(100)));
    let fake = FakeUnit::new(CAP | levels(4), ECAP);
    let unit = Unit::new(0, fake.region(), DmaSpace::new(few.clone())).unwrap();
    unit.enable().unwrap();
    let domain = domain(&unit, 0);
    // Two tables of each level are needed.
    let at = (1 << 39) - PAGE;
    for left in 0..6 {
        few.0.store(left, Ordering::Relaxed);
        let result = domain.map(at, PHYS, 2 * PAGE, Permissions::all());
        assert!(
            matches!(result, Err(Error::Memory(_))),
            "{left}: {result:?}"
        );
        domain.flush().unwrap();
        assert_eq!((domain.pages(), domain.tables()), ([0; 3], 1));
        assert_eq!(few.0.load(Ordering::Relaxed), left, "all are back");
    }
    few.0.store(6, Ordering::Relaxed);
    domain.map(at, PHYS, 2 * PAGE, Permissions::all()).unwrap();
    let reached = fake.access(source(0), at + PAGE, true);
    assert_eq!(reached, Outcome::Reaches(PHYS + PAGE));
    // A large page whose half is unmapped needs a table as well, or stays as it is.
    domain
        .map(LARGE, PHYS, LARGE, Permissions::all())
        .unwrap_err();
    domain.unmap(at, 2 * PAGE).unwrap();
    domain.flush().unwrap();
    domain.map(LARGE, PHYS, LARGE, Permissions::all()).unwrap();
    few.0.store(0, Ordering::Relaxed);
    assert!(matches!(domain.unmap(LARGE, PAGE), Err(Error::Memory(_))));
    assert_eq!(domain.pages(), [0, 1, 0]);
}

#[test]
fn many_changes_cost_one_wait() {
    let (fake, unit) = unit(CAP | levels(4), ECAP);
    let domain = domain(&unit, 0);
    let all = Permissions::all();
    let counts =
        || [&fake.waits, &fake.selective, &fake.domainwide].map(|n| n.load(Ordering::Relaxed));
    domain.map(0, PHYS, 64 * PAGE, all).unwrap();
    domain.flush().unwrap();
    let [waits, selective, domainwide] = counts();
    // Aligned pages are one invalidation; sixteen of them are told one by one.
    domain.unmap(0, 8 * PAGE).unwrap();
    for page in 8..23 {
        domain.unmap(page * PAGE, PAGE).unwrap();
    }
    domain.flush().unwrap();
    assert_eq!(counts(), [waits + 1, selective + 16, domainwide]);
    for page in 23..40 {
        domain.unmap(page * PAGE, PAGE).unwrap();
    }
    domain.flush().unwrap();
    assert_eq!(counts(), [waits + 2, selective + 16, domainwide + 1]);
}

#[test]
fn a_unit_that_never_answers_is_left_alone() {
    for ecap in [ECAP, ECAP & !ECAP_QUEUE] {
        let (fake, unit) = unit(CAP | levels(4), ecap);
        let domain = domain(&unit, 0);
        domain.map(0, PHYS, PAGE, Permissions::all()).unwrap();
        domain.flush().unwrap();
        domain.unmap(0, PAGE).unwrap();
        match ecap & ECAP_QUEUE {
            0 => fake.refuses.store(true, Ordering::Relaxed),
            _ => fake.silent.store(true, Ordering::Relaxed),
        }
        let start = Instant::now();
        let error = domain.flush().unwrap_err();
        assert!(
            matches!(error, Error::Silent(_) | Error::Refused),
            "{error}"
        );
        assert!(start.elapsed() < 3 * crate::unit::ANSWER_LIMIT);
        assert!(unit.failed());
        let start = Instant::now();
        assert_eq!(domain.flush(), Err(Error::Failed), "at once");
        assert_eq!(domain.revoke(), Err(Error::Failed));
        assert_eq!(Domain::new(&unit, device(1)).unwrap_err(), Error::Failed);
        assert!(start.elapsed() < crate::unit::ANSWER_LIMIT);
    }
    let fake = FakeUnit::new(CAP | levels(4), ECAP);
    fake.silent.store(true, Ordering::Relaxed);
    let silent = Unit::new(0, fake.region(), FakeUnit::space());
    assert!(matches!(silent.map(drop), Err(Error::Silent(_))));
}

/// A domain of which a page was unmapped, and whose unit answers no more.
fn unmapped_in_silence() -> (Arc<FakeUnit>, Arc<Domain>) {
    let (fake, unit) = unit(CAP | levels(4), ECAP);
    let domain = domain(&unit, 0);
    domain.map(0, PHYS, PAGE, Permissions::all()).unwrap();
    domain.flush().unwrap();
    domain.unmap(0, PAGE).unwrap();
    fake.silent.store(true, Ordering::Relaxed);
    (fake, domain)
}

#[test]
fn what_a_unit_has_not_forgotten_is_not_flushed_by_a_revocation() {
    let (_fake, domain) = unmapped_in_silence();
    assert!(matches!(domain.revoke(), Err(Error::Silent(_))));
    assert_eq!(domain.flush(), Err(Error::Failed));
}

/// The unit may look through its memory of the domain until it has answered.
#[test]
fn a_flush_waits_for_a_revocation_under_way() {
    let (_fake, domain) = unmapped_in_silence();
    std::thread::scope(|scope| {
        let revocation = scope.spawn(|| domain.revoke());
        while !domain.is_revoked() {
            std::thread::yield_now();
        }
        assert!(domain.flush().is_err());
        assert!(revocation.join().unwrap().is_err());
    });
}

#[test]
fn a_queue_that_refuses_fails_the_unit() {
    let (fake, unit) = unit(CAP | levels(4), ECAP);
    let domain = domain(&unit, 0);
    fake.refuses.store(true, Ordering::Relaxed);
    domain.map(0, PHYS, PAGE, Permissions::all()).unwrap();
    domain.unmap(0, PAGE).unwrap();
    assert_eq!(domain.flush(), Err(Error::Refused));
    assert!(unit.failed());
}

#[test]
fn units_that_are_none_are_refused() {
    let refused = |cap, ecap| Unit::new(0, FakeUnit::new(cap, ecap).region(), FakeUnit::space());
    assert_eq!(refused(CAP, ECAP).map(drop), Err(Error::Widths(0)));
    let far = (CAP | levels(4)) | 0x3ff << 24;
    assert_eq!(refused(far, ECAP).map(drop), Err(Error::Registers));
    assert_eq!(refused(u64::MAX, ECAP).map(drop), Err(Error::Absent));
}

#[test]
fn faults_say_who_where_and_why() {
    let (fake, unit) = unit(CAP | levels(4), ECAP);
    let domain = domain(&unit, 0);
    domain.map(0x5000, PHYS, PAGE, Permissions::READ).unwrap();
    domain.flush().unwrap();
    assert!(!unit.has_faults());
    fake.access(source(0), 0x5678, true);
    fake.access(source(1), 0x1234_5678, false);
    fake.access(source(1), 0, false);
    assert!(unit.has_faults());
    let (faults, lost) = unit.take_faults();
    assert!(lost, "there are two records");
    let text: Vec<_> = faults.iter().map(|fault| format!("{fault}")).collect();
    assert_eq!(
        text,
        [
            "03:04.0 writes 0x5000: nothing is mapped for writing there (0x5)",
            "03:04.1 reads 0x12345000: it has no domain (0x2)",
        ]
    );
    assert!(!unit.has_faults());
    assert_eq!(unit.take_faults(), (vec![], false));
    // The next goes where the oldest was.
    fake.access(source(2), 0x9000, false);
    let (faults, lost) = unit.take_faults();
    assert_eq!(
        (faults.len(), faults[0].device, lost),
        (1, device(2), false)
    );
    assert_eq!(faults[0].access, Access::Read);
    // From here the oldest is not the first record.
    fake.access(source(3), 0x9000, false);
    fake.access(source(4), 0x9000, false);
    let (faults, _) = unit.take_faults();
    let devices: Vec<_> = faults.iter().map(|fault| fault.device).collect();
    assert_eq!(devices, [device(3), device(4)]);
}

#[test]
fn a_device_that_only_faults_does_not_fill_the_log() {
    let (fake, unit) = unit(CAP | levels(4), ECAP);
    let mut reporter = Reporter::new();
    let start = Instant::now();
    let stray = |function, reporter: &mut Reporter, after| {
        fake.access(source(function), 0x1000, true);
        let (faults, _) = unit.take_faults();
        reporter.note(faults[0], start + after)
    };
    let told: Vec<_> = (0..100)
        .map(|n| stray(0, &mut reporter, Duration::from_millis(n)))
        .collect();
    let lines = told
        .iter()
        .filter(|told| **told == Telling::Line(0))
        .count();
    assert_eq!((lines, reporter.count(device(0))), (5, 100));
    assert_eq!(
        stray(1, &mut reporter, Duration::from_millis(50)),
        Telling::Line(0)
    );
    let later = Duration::from_millis(1500);
    assert_eq!(stray(0, &mut reporter, later), Telling::Line(95));
    assert_eq!(reporter.total(), 102);
    assert_eq!(reporter.devices().count(), 2);
}

#[test]
fn a_device_interrupts_by_its_own_entry_alone() {
    for (extended, ecap) in [(false, ECAP), (true, ECAP), (true, ECAP & !ECAP_COHERENT)] {
        let (fake, unit) = unit(CAP | levels(4), ecap);
        unit.remap_interrupts(extended).unwrap();
        let target = |apic_id, vector| Target {
            apic_id,
            vector,
            level: false,
        };
        let index = unit.bind_interrupt(source(0), target(3, 0x41)).unwrap();
        let message = Message::of(index);
        let raise = |function, message: Message| {
            fake.interrupt(source(function), message.address, message.data)
        };
        assert_eq!(raise(0, message), Ok((3, 0x41)));
        assert_eq!(raise(1, message), Err(0x26), "another's entry");
        let plain = Message {
            address: 0xfee0_3000,
            data: 0x41,
        };
        assert_eq!(raise(0, plain), Err(0x25), "without an entry");
        assert_eq!(raise(0, Message::of(index + 1)), Err(0x22));
        assert_eq!(raise(0, Message::of(0xffff)), Err(0x21));
        unit.set_interrupt(index, source(0), target(7, 0x42))
            .unwrap();
        assert_eq!(
            raise(0, message),
            Ok((7, 0x42)),
            "it has forgotten the old one"
        );
        assert_eq!(unit.interrupts(), 1);
        unit.unbind_interrupt(index);
        assert_eq!(raise(0, message), Err(0x22));
        assert_eq!(unit.interrupts(), 0);
        if extended {
            let far = unit
                .bind_interrupt(source(0), target(0x1_0203, 0x43))
                .unwrap();
            assert_eq!(raise(0, Message::of(far)), Ok((0x1_0203, 0x43)));
        }
        while unit.has_faults() {
            unit.take_faults();
        }
        raise(1, Message::of(5)).unwrap_err();
        let (faults, _) = unit.take_faults();
        assert_eq!(
            format!("{}", faults[0]),
            "03:04.1 interrupts by entry 5: the entry is free (0x22)"
        );
    }
    let (_, no_queue) = unit(CAP | levels(4), ECAP & !ECAP_QUEUE);
    assert_eq!(no_queue.remap_interrupts(false), Err(Error::NoRemapping));
    assert_eq!(
        no_queue.bind_interrupt(
            0,
            Target {
                apic_id: 0,
                vector: 32,
                level: true
            }
        ),
        Err(Error::NoRemapping)
    );
}

#[test]
fn a_context_of_vcm_is_a_window_of_a_domain() {
    let (fake, unit) = unit(CAP | levels(4) | CAP_CACHING, ECAP);
    let domain = Domain::new(&unit, device(0)).unwrap();
    assert!(Window::new(domain.clone(), 0..1 << 49).is_none());
    let window = Window::new(domain.clone(), HUGE..2 * HUGE).unwrap();
    assert_eq!(window.range(), HUGE..2 * HUGE);
    let vcm = Vcm::new("a device", Arc::new(window)).unwrap();
    let active = vcm.active().unwrap();
    let piece = hal::dma::Extent {
        phys: PHYS,
        len: 2 * PAGE as usize,
    };
    let at = vcm.map_streaming(&[piece], vcm::Access::READ).unwrap();
    assert_eq!(
        fake.access(source(0), at + PAGE, false),
        Outcome::Reaches(PHYS + PAGE)
    );
    let range = at..at + 2 * PAGE;
    vcm.unmap_streaming(core::slice::from_ref(&range)).unwrap();
    assert_eq!(fake.access(source(0), at, false), Outcome::Blocked(6));
    drop(active);
    assert!(!domain.is_attached());
    assert_eq!(fake.access(source(0), at, false), Outcome::Blocked(2));
    let again = vcm.active().unwrap();
    assert!(domain.is_attached());
    domain.revoke().unwrap();
    let gone = vcm.map_streaming(&[piece], vcm::Access::READ);
    assert_eq!(gone, Err(vcm::Error::Mmu(vcm::MmuError::Gone)));
    drop(again);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Map {
        at: u64,
        phys: u64,
        len: u64,
        write: bool,
    },
    Unmap {
        at: u64,
        len: u64,
    },
    Look {
        at: u64,
    },
    Flush,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Around borders of large pages, so that these come up; lengths beyond one of them.
    let at = || prop_oneof![0u64..24, 500u64..530, 1020u64..1030, Just(512), Just(1024)];
    let len = || prop_oneof![1u64..20, 500u64..520, Just(512), Just(1024)];
    let step = prop_oneof![
        4 => (at(), prop_oneof![Just(0), Just(512u64), 0u64..1024], len(), any::<bool>())
            .prop_map(|(at, phys, len, write)| Step::Map { at, phys, len, write }),
        3 => (at(), len()).prop_map(|(at, len)| Step::Unmap { at, len }),
        3 => (0u64..2100).prop_map(|at| Step::Look { at }),
        2 => Just(Step::Flush),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 128 }))]

    /// Random changes against a map of pages: after a flush the unit sees that and nothing else; what
    /// was never mapped since the last flush is never reached.
    #[test]
    fn the_unit_sees_the_model(steps in steps(), kind in 0usize..10) {
        let (cap, ecap) = kinds()[kind];
        let (fake, unit) = unit(cap, ecap);
        let domain = domain(&unit, 0);
        // Page → physical page and whether it can be written; and what may still be stale.
        let mut model: BTreeMap<u64, (u64, bool)> = BTreeMap::new();
        let mut stale: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        let base = PHYS / PAGE;
        for step in steps.into_iter().chain([Step::Flush]) {
            match step {
                Step::Map { at, phys, len, write } => {
                    let permissions = if write { Permissions::all() } else { Permissions::READ };
                    let taken = (at..at + len).any(|page| model.contains_key(&page));
                    let result = domain.map(at * PAGE, (base + phys) * PAGE, len * PAGE, permissions);
                    prop_assert_eq!(result, if taken { Err(Error::Mapped) } else { Ok(()) });
                    if taken {
                        continue;
                    }
                    for page in 0..len {
                        model.insert(at + page, (base + phys + page, write));
                    }
                }
                Step::Unmap { at, len } => {
                    let gone = (at..at + len).filter_map(|page| Some((page, model.remove(&page)?)));
                    let gone: Vec<_> = gone.collect();
                    prop_assert_eq!(domain.unmap(at * PAGE, len * PAGE), Ok(gone.len() as u64 * PAGE));
                    for (page, (phys, _)) in gone {
                        stale.entry(page).or_default().push(phys);
                    }
                }
                Step::Look { at } => {
                    // Between flushes: old or new, nothing else.
                    if let Outcome::Reaches(phys) = fake.access(source(0), at * PAGE, false) {
                        let now = model.get(&at).map(|(phys, _)| *phys);
                        let before = stale.get(&at).into_iter().flatten().copied();
                        prop_assert!(now.into_iter().chain(before).any(|page| page * PAGE == phys));
                    }
                }
                Step::Flush => {
                    domain.flush().unwrap();
                    stale.clear();
                    for at in 0..2100 {
                        let (read, write) = (6, 5);
                        let seen = [false, true].map(|write| fake.access(source(0), at * PAGE, write));
                        let expected = match model.get(&at) {
                            None => [Outcome::Blocked(read), Outcome::Blocked(write)],
                            Some(&(phys, false)) => [Outcome::Reaches(phys * PAGE), Outcome::Blocked(write)],
                            Some(&(phys, true)) => [Outcome::Reaches(phys * PAGE); 2],
                        };
                        prop_assert_eq!(seen, expected, "page {}", at);
                        let told = domain.translate(at * PAGE).map(|found| found.phys);
                        prop_assert_eq!(told, model.get(&at).map(|(phys, _)| phys * PAGE));
                    }
                }
            }
        }
        let [small, medium, large] = domain.pages();
        prop_assert_eq!(small + (medium << 9) + (large << 18), model.len());
        domain.unmap(0, 4096 * PAGE).unwrap();
        domain.flush().unwrap();
        prop_assert_eq!(domain.tables(), 1);
    }
}
