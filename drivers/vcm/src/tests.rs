//! What a context promises, by rows, and what it does with bad input.

use alloc::sync::Arc;
use std::cell::RefCell;
use std::sync::{Mutex, Once};

use crate::fake::{Fake, Frames, K, M, context, piece, scattered};
use crate::{Access, Error, MmuError, OneToOne, PageSizes, Physical, Request, Reservation, Vcm};

pub(crate) const BOTH: Access = Access::READ.union(Access::WRITE);

thread_local! {
    static LINES: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

struct Log;

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        LINES.with_borrow_mut(|lines| {
            if let Some(lines) = lines {
                lines.push(record.args().to_string());
            }
        });
    }
    fn flush(&self) {}
}

/// What this thread logs meanwhile.
fn logged(what: impl FnOnce()) -> Vec<String> {
    static LOG: Once = Once::new();
    LOG.call_once(|| {
        log::set_logger(&Log).unwrap();
        log::set_max_level(log::LevelFilter::Info);
    });
    LINES.set(Some(Vec::new()));
    what();
    LINES.take().unwrap()
}

/// Nothing is left of anything.
pub(crate) fn assert_empty(vcm: &Vcm, fake: &Fake) {
    let now = vcm.statistics();
    assert_eq!((now.reservations, now.taken, now.bound), (0, 0, 0));
    assert_eq!((now.maps - now.unmaps, fake.mapped()), (0, 0));
    assert_eq!(fake.state().reserved, []);
}

#[test]
fn s2_1_who_reserves_owns_alone() {
    let (vcm, fake) = context();
    let reservation = vcm.reserve(3 * K - 1).unwrap();
    assert_eq!((reservation.refs(), reservation.size()), (1, 3 * K));
    assert_eq!(fake.state().reserved, [reservation.range()]);
    assert_eq!(vcm.reservations()[0].refs, 1);
    let other = vcm.reserve(K).unwrap();
    assert_eq!((reservation.refs(), other.refs()), (1, 1));
    assert!(other.start() >= reservation.range().end || other.start() < reservation.start());
}

#[test]
fn s2_2_a_dead_reservation_is_not_brought_back() {
    let (vcm, fake) = context();
    let reservation = vcm.reserve(K).unwrap();
    let weak = reservation.downgrade();
    assert_eq!(weak.upgrade().unwrap().start(), reservation.start());
    #[cfg(feature = "refcount")]
    {
        assert_eq!(weak.upgrade().unwrap().refs(), 2);
        assert_eq!(reservation.refs(), 1);
    }
    drop(reservation);
    for _ in 0..3 {
        let error = weak.upgrade().unwrap_err();
        assert_eq!((error, error.errno()), (Error::Unreserved, -22));
        assert_eq!(weak.refs(), 0);
    }
    assert_eq!(fake.state().unreserved.len(), 1);
    assert_empty(&vcm, &fake);
}

#[test]
#[cfg(feature = "refcount")]
fn s2_2_whoever_comes_while_the_last_owner_leaves_finds_it_or_does_not() {
    let (vcm, fake) = context();
    let rounds = if cfg!(miri) { 5 } else { 500 };
    for round in 1..=rounds {
        let reservation = vcm.reserve(K).unwrap();
        let weak = reservation.downgrade();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| match weak.upgrade() {
                    Ok(alive) => alive.bind(piece(0, K).into(), BOTH).map_or_else(
                        |error| assert!(matches!(error, Error::Bound | Error::NotBound)),
                        |()| drop(alive.unbind().unwrap()),
                    ),
                    Err(error) => assert_eq!(error, Error::Unreserved),
                });
            }
            scope.spawn(|| drop(reservation));
        });
        assert_eq!(weak.refs(), 0);
        assert_eq!(fake.state().unreserved.len(), round);
    }
    assert_empty(&vcm, &fake);
}

#[test]
#[cfg(feature = "refcount")]
fn s2_3_the_last_owner_unreserves() {
    let (vcm, fake) = context();
    let one = vcm.reserve(K).unwrap();
    let (two, range) = (one.clone(), one.range());
    drop(one);
    assert_eq!((two.refs(), fake.state().unreserved.len()), (1, 0));
    assert_eq!(
        vcm.reserve(Request::new(K).at(range.start)).unwrap_err(),
        Error::Overlap
    );
    let lines = logged(|| drop(two));
    assert_eq!(lines, [""; 0]);
    assert_eq!(fake.state().unreserved, std::slice::from_ref(&range));
    assert_empty(&vcm, &fake);
    assert!(vcm.reserve(Request::new(K).at(range.start)).is_ok());
}

#[test]
fn s2_3_memory_still_bound_is_warned_of_and_unbound() {
    let (vcm, fake) = context();
    let freed = Arc::default();
    let memory = Frames::own(scattered(2, K), &fake, &freed);
    let reservation = vcm.map(memory, BOTH).unwrap();
    let start = reservation.start();
    assert!(fake.read(start).is_some() && fake.read(start + K).is_some());
    let lines = logged(|| drop(reservation));
    assert_eq!(lines.len(), 1);
    assert!(lines[0].starts_with("WARN bound vcm fake"), "{lines:?}");
    assert_eq!((fake.read(start), fake.read(start + K)), (None, None));
    assert_eq!(freed.lock().unwrap().len(), 2);
    assert_empty(&vcm, &fake);
}

#[test]
#[cfg(feature = "refcount")]
fn s2_4_each_owner_is_counted_where_it_begins() {
    fn takes(reservation: Reservation) -> usize {
        reservation.refs()
    }
    fn borrows(reservation: &Reservation) -> usize {
        let mine = reservation.clone();
        mine.refs()
    }
    struct Driver {
        reservation: Option<Reservation>,
    }
    let (vcm, _) = context();
    // Whoever creates it.
    let reservation = vcm.reserve(K).unwrap();
    let mut trace = vec![reservation.refs()];
    // A structure that keeps it.
    let mut driver = Driver {
        reservation: Some(reservation.clone()),
    };
    trace.push(reservation.refs());
    // Who was handed it; and who got it for good.
    trace.push(borrows(&reservation));
    let all = Mutex::new(reservation.downgrade());
    trace.push(takes(reservation));
    // Who finds it where all can reach it.
    let found = all.lock().unwrap().upgrade().unwrap();
    trace.push(found.refs());
    drop(driver.reservation.take());
    trace.push(found.refs());
    assert_eq!(trace, [1, 2, 3, 2, 2, 1]);
}

#[test]
#[cfg(feature = "refcount")]
fn s2_5_each_owner_ends_where_it_leaves() {
    let (vcm, fake) = context();
    let reservation = vcm.reserve(K).unwrap();
    let weak = reservation.downgrade();
    let kept = vec![reservation.clone(), reservation.clone()];
    let mut trace = vec![weak.refs()];
    {
        let _mine = reservation.clone();
        trace.push(weak.refs());
    }
    trace.push(weak.refs());
    drop(kept);
    trace.push(weak.refs());
    drop(reservation);
    trace.push(weak.refs());
    assert_eq!(trace, [3, 4, 3, 1, 0]);
    assert_empty(&vcm, &fake);
}

#[test]
#[cfg(feature = "refcount")]
fn s2_7_owners_leave_in_any_order() {
    let mut orders = vec![vec![]];
    for owner in 0..4 {
        let longer = |order: &Vec<usize>| {
            let insert = |at| [&order[..at], &[owner], &order[at..]].concat();
            (0..=order.len()).map(insert).collect::<Vec<_>>()
        };
        orders = orders.iter().flat_map(longer).collect();
    }
    assert_eq!(orders.len(), 24);
    for order in orders {
        let (vcm, fake) = context();
        let first = vcm.map(scattered(2, K), BOTH).unwrap();
        let (start, range) = (first.start(), first.range());
        let mut owners: Vec<_> = (0..3).map(|_| Some(first.clone())).collect();
        owners.push(Some(first));
        for (left, &owner) in (1..=4).rev().zip(&order) {
            assert!(fake.read(start).is_some());
            assert_eq!(vcm.reservations()[0].refs, left);
            if left == 1 {
                owners[owner].as_ref().unwrap().unbind().unwrap();
            }
            owners[owner] = None;
        }
        let ended = &fake.state().unreserved.clone()[..];
        assert_eq!(ended, std::slice::from_ref(&range), "{order:?}");
        assert_empty(&vcm, &fake);
    }
}

#[test]
#[cfg(not(feature = "refcount"))]
fn s2_8_uncounted_the_first_who_leaves_takes_it_along() {
    let (vcm, fake) = context();
    let freed = Arc::default();
    let memory = Frames::own(scattered(1, K), &fake, &freed);
    let one = vcm.map(memory.clone(), BOTH).unwrap();
    drop(memory);
    let (two, weak, start) = (one.clone(), one.downgrade(), one.start());
    assert_eq!((one.refs(), two.refs()), (1, 1));
    assert!(fake.read(start).is_some());
    let lines = logged(|| drop(one));
    assert!(lines[0].starts_with("WARN bound"), "{lines:?}");
    assert_eq!((fake.read(start), freed.lock().unwrap().len()), (None, 1));
    assert_empty(&vcm, &fake);
    // Others have a handle that leads nowhere, even where the addresses are somebody's again.
    let new = vcm.reserve(Request::new(K).at(start)).unwrap();
    new.bind(scattered(1, K), BOTH).unwrap();
    assert_eq!((two.refs(), two.bound()), (0, 0));
    let refused = two.bind(scattered(1, K), BOTH);
    assert_eq!(refused, Err(Error::Unreserved));
    assert_eq!(two.unbind().unwrap_err(), Error::Unreserved);
    assert_eq!(weak.upgrade().unwrap_err(), Error::Unreserved);
    let lines = logged(|| drop((two.clone(), two)));
    assert_eq!(lines, [""; 0]);
    assert!(fake.read(start).is_some());
    assert_eq!((fake.state().unreserved.len(), new.refs()), (1, 1));
    new.unmap().unwrap();
    assert_empty(&vcm, &fake);
}

#[test]
#[cfg(feature = "refcount")]
fn s2_8_counted_the_first_who_leaves_takes_nothing_along() {
    let (vcm, fake) = context();
    let one = vcm.map(scattered(1, K), BOTH).unwrap();
    let (two, start) = (one.clone(), one.start());
    assert_eq!((one.refs(), two.refs()), (2, 2));
    let lines = logged(|| drop(one));
    assert_eq!(lines, [""; 0]);
    assert!(fake.read(start).is_some());
    assert_eq!((two.refs(), two.bound()), (1, K));
    two.unmap().unwrap();
    assert_empty(&vcm, &fake);
}

#[test]
fn s2_9_a_reservation_need_not_be_bound() {
    let (vcm, fake) = context();
    let reservation = vcm.reserve(4 * K).unwrap();
    assert_eq!(
        (reservation.bound(), fake.read(reservation.start())),
        (0, None)
    );
    for frames in [2, 4] {
        let memory = scattered(frames, K);
        reservation.bind(memory.clone(), BOTH).unwrap();
        assert_eq!(reservation.bound(), frames * K);
        for (n, piece) in memory.pieces().iter().enumerate() {
            let at = reservation.start() + n as u64 * K + 5;
            assert_eq!(fake.read(at), Some(piece.phys + 5));
        }
        let back = reservation.unbind().unwrap();
        assert_eq!(back.pieces(), memory.pieces());
        assert_eq!(
            (reservation.bound(), fake.read(reservation.start())),
            (0, None)
        );
    }
    let lines = logged(|| drop(reservation));
    assert_eq!(lines, [""; 0]);
    assert_empty(&vcm, &fake);
}

#[test]
fn s2_9_mapping_is_reserving_and_binding() {
    let (vcm, fake) = context();
    let reservation = vcm.map(scattered(8, K), BOTH).unwrap();
    assert_eq!((reservation.size(), reservation.bound()), (8 * K, 8 * K));
    assert_eq!((reservation.refs(), fake.pages()), (1, [8, 0, 0]));
    assert_eq!(reservation.unmap().unwrap().len(), 8 * K);
    assert_empty(&vcm, &fake);
}

#[test]
fn s2_9_activation_nests() {
    let fake = Fake::new(0..M, PageSizes::KIB4);
    let vcm = Vcm::new("nested", fake.clone()).unwrap();
    let memory = vcm.map(scattered(1, K), BOTH).unwrap();
    let read = || fake.read(memory.start()).is_some();
    assert!(!read(), "not active yet");
    let outer = vcm.active().unwrap();
    vcm.activate().unwrap();
    let inner = vcm.active().unwrap();
    assert_eq!((vcm.statistics().active, read()), (3, true));
    drop(outer);
    vcm.deactivate().unwrap();
    assert!(read());
    assert_eq!(fake.state().toggles, [true]);
    drop(inner);
    assert!(!read());
    assert_eq!(fake.state().toggles, [true, false]);
    assert_eq!(vcm.deactivate(), Err(Error::NotActive), "unpaired");
    assert_eq!(fake.state().toggles, [true, false]);
    memory.unmap().unwrap();
}

#[test]
fn a_unit_that_does_not_turn_on_is_not_active() {
    let fake = Fake::new(0..M, PageSizes::KIB4);
    let vcm = Vcm::new("deaf", fake.clone()).unwrap();
    fake.state().deaf = true;
    assert_eq!(vcm.activate(), Err(Error::Mmu(MmuError::TimedOut)));
    assert_eq!(vcm.deactivate(), Err(Error::NotActive));
    fake.state().deaf = false;
    vcm.activate().unwrap();
    let lines = logged(|| drop(vcm));
    assert_eq!(lines, ["WARN active vcm deaf dropped"]);
    assert_eq!(fake.state().toggles, [true, false]);
}

#[test]
fn bad_requests_are_refused_and_leave_nothing() {
    let (vcm, fake) = context();
    let refused = |request: Request| vcm.reserve(request).unwrap_err();
    assert_eq!(refused(0.into()), Error::Empty);
    assert_eq!(refused(u64::MAX.into()), Error::TooLarge);
    assert_eq!(refused((1 << 31).into()), Error::TooLarge);
    assert_eq!(
        refused(Request::new(u64::MAX - 2 * K).guarded()),
        Error::TooLarge
    );
    assert_eq!(refused(Request::new(1 << 30).guarded()), Error::TooLarge);
    assert_eq!(refused(Request::new(K).aligned(3 * K)), Error::Misaligned);
    assert_eq!(refused(Request::new(K).aligned(0)), Error::Misaligned);
    assert_eq!(refused(Request::new(K).at(5)), Error::Misaligned);
    assert_eq!(refused(Request::new(K).at(K).aligned(M)), Error::Misaligned);
    assert_eq!(refused(Request::new(K).at(K).aligned(3)), Error::Misaligned);
    assert_eq!(refused(Request::new(K).at(1 << 30)), Error::OutOfRange);
    assert_eq!(
        refused(Request::new(M).at(0u64.wrapping_sub(K))),
        Error::OutOfRange
    );
    fake.state().full = true;
    assert_eq!(refused(K.into()), Error::Mmu(MmuError::NoMemory));
    assert_empty(&vcm, &fake);
}

#[test]
fn spaces_without_a_page_are_none() {
    let none = |range, sizes| Vcm::new("none", Fake::new(range, sizes)).is_none();
    assert!(none(0..0, PageSizes::KIB4) && none(1..K, PageSizes::KIB4));
    assert!(none(0..M, PageSizes::empty()));
    assert!(none(K..M, PageSizes::MIB2));
    let vcm = Vcm::new("ends", Fake::new(K..2 * M + K, PageSizes::MIB2)).unwrap();
    assert_eq!((vcm.page(), vcm.range()), (M, M..2 * M));
}

#[test]
fn an_exhausted_space_says_so_until_something_comes_back() {
    let fake = Fake::new(K..9 * K, PageSizes::KIB4);
    let vcm = Vcm::new("small", fake.clone()).unwrap();
    let mut all: Vec<_> = (0..8).map(|_| vcm.reserve(K).unwrap()).collect();
    assert_eq!(vcm.reserve(K).unwrap_err(), Error::Exhausted);
    assert_eq!(
        vcm.map(scattered(1, K), BOTH).unwrap_err(),
        Error::Exhausted
    );
    let pieces = [piece(0, K)];
    assert_eq!(vcm.map_streaming(&pieces, BOTH), Err(Error::Exhausted));
    all.sort_by_key(Reservation::start);
    drop((all.remove(6), all.remove(3)));
    assert_eq!(vcm.reserve(2 * K).unwrap_err(), Error::Exhausted, "apart");
    drop(all.remove(3));
    assert_eq!(vcm.reserve(2 * K).unwrap().start(), 4 * K);
    drop(all);
    assert_eq!(vcm.reserve(8 * K).unwrap().start(), K);
    assert_empty(&vcm, &fake);
}

#[test]
fn bad_memory_is_refused_and_leaves_nothing() {
    let (vcm, fake) = context();
    let reservation = vcm.reserve(2 * K).unwrap();
    let refused = |pieces: &[hal::dma::Extent]| {
        let bound = reservation.bind(Physical::new(pieces.iter().copied()), BOTH);
        assert_eq!(
            vcm.map_streaming(pieces, BOTH).err(),
            bound.err().filter(|e| *e != Error::TooLarge)
        );
        bound.unwrap_err()
    };
    assert_eq!(refused(&[]), Error::Empty);
    assert_eq!(refused(&[piece(0, K), piece(3 * K, 0)]), Error::Empty);
    assert_eq!(refused(&[piece(5, K)]), Error::Misaligned);
    assert_eq!(refused(&[piece(0, K + 5)]), Error::Misaligned);
    let high = 0u64.wrapping_sub(2 * K);
    let end = reservation.bind(piece(high, 4 * K).into(), BOTH);
    assert_eq!(end, Err(Error::TooLarge));
    assert_eq!(
        vcm.map_streaming(&[piece(high, 4 * K)], BOTH),
        Err(Error::TooLarge)
    );
    assert_eq!(
        reservation.bind(scattered(3, K), BOTH),
        Err(Error::TooLarge)
    );
    let most = [piece(0, 0u64.wrapping_sub(K)), piece(0, 2 * K)];
    assert_eq!(vcm.map_streaming(&most, BOTH), Err(Error::TooLarge));
    assert_eq!(reservation.unbind().unwrap_err(), Error::NotBound);
    drop(reservation);
    assert_empty(&vcm, &fake);
}

#[test]
fn memory_is_bound_once() {
    let (vcm, fake) = context();
    let freed: Arc<Mutex<Vec<_>>> = Arc::default();
    let reservation = vcm.map(scattered(1, K), BOTH).unwrap();
    let second = Frames::own(scattered(1, K), &Fake::new(0..0, PageSizes::KIB4), &freed);
    assert_eq!(reservation.bind(second, BOTH), Err(Error::Bound));
    assert_eq!(freed.lock().unwrap().len(), 1, "nobody has it any more");
    assert!(fake.read(reservation.start()).is_some());
    reservation.unmap().unwrap();
    assert_empty(&vcm, &fake);
}

#[test]
fn memory_that_cannot_be_mapped_as_a_whole_is_not_mapped() {
    let (vcm, fake) = context();
    fake.state().runs_left = Some(2);
    let refused = vcm.map(scattered(3, K), BOTH).unwrap_err();
    assert_eq!(refused, Error::Mmu(MmuError::NoMemory));
    fake.state().runs_left = Some(2);
    let pieces = scattered(3, K);
    assert_eq!(vcm.map_streaming(pieces.pieces(), BOTH), Err(refused));
    assert_empty(&vcm, &fake);
    fake.state().runs_left = None;
    assert!(vcm.map_streaming(pieces.pieces(), BOTH).is_ok());
}

#[test]
fn what_is_mapped_is_used_where_absence_is_cached() {
    let (vcm, fake) = context();
    fake.state().caching_mode = true;
    let reservation = vcm.reserve(K).unwrap();
    assert_eq!(fake.read(reservation.start()), None);
    reservation.bind(scattered(1, K), Access::READ).unwrap();
    assert!(fake.read(reservation.start()).is_some());
    assert_eq!(fake.access(reservation.start(), Access::WRITE), None);
    reservation.unmap().unwrap();
}

#[test]
fn a_unit_that_does_not_answer_costs_memory_and_addresses() {
    let (vcm, fake) = context();
    let freed = Arc::default();
    let own = |count| Frames::own(scattered(count, K), &fake, &freed);
    let (unbound, dropped) = (
        vcm.map(own(1), BOTH).unwrap(),
        vcm.map(own(2), BOTH).unwrap(),
    );
    let half = vcm.reserve(3 * K).unwrap();
    let streaming = vcm.map_streaming(scattered(4, K).pieces(), BOTH).unwrap();
    fake.state().deaf = true;
    let silent = Error::Mmu(MmuError::TimedOut);
    assert_eq!(unbound.unbind().unwrap_err(), silent);
    assert_eq!(unbound.unbind().unwrap_err(), Error::Withheld);
    assert_eq!(unbound.bind(scattered(1, K), BOTH), Err(Error::Withheld));
    drop((unbound, dropped));
    fake.state().runs_left = Some(2);
    assert_eq!(half.bind(own(3), BOTH), Err(Error::Mmu(MmuError::NoMemory)));
    drop(half);
    let range = streaming..streaming + 4 * K;
    assert_eq!(vcm.unmap_streaming(&[range]), Err(silent));
    fake.state().runs_left = Some(4);
    let five = scattered(5, K);
    assert!(vcm.map_streaming(five.pieces(), BOTH).is_err());
    // Nothing was freed, nothing comes again.
    assert_eq!(freed.lock().unwrap().len(), 0);
    let now = vcm.statistics();
    assert_eq!((now.reservations, now.bound, now.withheld), (0, 0, 15 * K));
    assert_eq!(now.taken, 15 * K);
    fake.state().deaf = false;
    fake.state().runs_left = None;
    assert_eq!(vcm.reserve(1 << 30).unwrap_err(), Error::Exhausted);
    assert_eq!(
        vcm.reserve((1 << 30) - 16 * K).map(|rest| rest.size()),
        Ok((1 << 30) - 16 * K)
    );
}

#[test]
fn reservations_of_the_whole_space_keep_their_guards() {
    let fake = Fake::new(0..8 * K, PageSizes::KIB4);
    let vcm = Vcm::new("guarded", fake.clone()).unwrap();
    let guarded = || vcm.reserve(Request::new(K).guarded());
    let all: Vec<_> = std::iter::from_fn(|| guarded().ok()).collect();
    assert_eq!((all.len(), vcm.statistics().taken), (4, 8 * K));
    for (n, one) in all.iter().enumerate() {
        assert_eq!((one.size(), one.start()), (K, n as u64 * 2 * K));
        assert_eq!(one.bind(scattered(2, K), BOTH), Err(Error::TooLarge));
    }
    drop(all);
    assert_empty(&vcm, &fake);
}

#[test]
fn large_pages_are_used_wherever_memory_allows() {
    let (vcm, fake) = context();
    let pages = |memory: Physical| {
        let reservation = vcm.map(memory, BOTH).unwrap();
        let pages = fake.pages();
        reservation.unmap().unwrap();
        pages
    };
    assert_eq!(pages(piece(3 * M, 2 * M).into()), [0, 2, 0]);
    assert_eq!(pages(piece(3 * M + K, 2 * M).into()), [512, 1, 0]);
    assert_eq!(pages(scattered(32, M)), [0, 32, 0]);
    assert_eq!(pages(scattered(512, K)), [512, 0, 0]);
    assert_eq!(
        pages(Physical::new((0..512).map(|n| piece(M + n * K, K)))),
        [0, 1, 0]
    );
    let streaming = vcm.map_streaming(&[piece(3 * M + K, 2 * M)], BOTH).unwrap();
    assert_eq!(fake.pages(), [512, 1, 0]);
    assert_eq!(fake.read(streaming + M), Some(4 * M + K));
    let range = streaming..streaming + 2 * M;
    vcm.unmap_streaming(&[range]).unwrap();
    assert_empty(&vcm, &fake);
    assert_eq!(
        vcm.statistics().pages,
        [512 + 512 + 512, 2 + 1 + 32 + 1 + 1, 0]
    );
}

#[test]
fn where_no_aligned_range_is_free_any_will_do() {
    let fake = Fake::new(K..2 * M, PageSizes::KIB4 | PageSizes::MIB2);
    let vcm = Vcm::new("crooked", fake.clone()).unwrap();
    let reservation = vcm.map(piece(0, M + K).into(), BOTH);
    let reservation = reservation.unwrap();
    assert_eq!(fake.pages(), [513, 0, 0]);
    reservation.unmap().unwrap();
    assert_eq!(
        vcm.reserve(Request::new(K).aligned(2 * M)).unwrap_err(),
        Error::Exhausted
    );
    assert_empty(&vcm, &fake);
}

#[test]
fn scattered_memory_is_one_range() {
    let (vcm, fake) = context();
    let (count, size) = if cfg!(miri) { (16, K) } else { (16384, K) };
    for (count, size) in [(count, size), (32, M)] {
        let memory = scattered(count, size);
        assert_eq!(memory.pieces().len() as u64, count);
        let reservation = vcm.map(memory.clone(), BOTH).unwrap();
        assert_eq!(reservation.size(), count * size);
        for (n, piece) in memory.pieces().iter().enumerate() {
            let at = reservation.start() + n as u64 * size;
            assert_eq!(fake.read(at + size - 1), Some(piece.phys + size - 1));
        }
        reservation.unmap().unwrap();
    }
    assert_empty(&vcm, &fake);
}

#[test]
fn streaming_mappings_come_back_by_one_flush() {
    let (vcm, fake) = context();
    let one = vcm.map_streaming(&[piece(M, K)], Access::READ).unwrap();
    let two = vcm
        .map_streaming(scattered(16, K).pieces(), Access::WRITE)
        .unwrap();
    assert_eq!((fake.read(one), fake.read(two)), (Some(M), None));
    assert!(fake.access(two, Access::WRITE).is_some());
    let before = fake.state().flushes;
    let ranges = [one..one + K, two..two + 16 * K];
    vcm.unmap_streaming(&ranges).unwrap();
    assert_eq!(fake.state().flushes, before + 1);
    assert_eq!(
        (fake.read(one), fake.access(two, Access::WRITE)),
        (None, None)
    );
    // What was given last rests.
    let next = vcm.map_streaming(&[piece(M, K)], Access::READ).unwrap();
    assert!(ranges.iter().all(|range| !range.contains(&next)));
    let next = next..next + K;
    vcm.unmap_streaming(core::slice::from_ref(&next)).unwrap();
    assert_empty(&vcm, &fake);
}

#[test]
fn where_nothing_translates_memory_is_where_it_is() {
    let vcm = Vcm::new("direct", Arc::new(OneToOne::new(0..1 << 40))).unwrap();
    let reservation = vcm.map(piece(5 * M + K, 2 * K).into(), BOTH).unwrap();
    assert_eq!(reservation.range(), 5 * M + K..5 * M + 3 * K);
    let again = vcm.map(piece(5 * M + 2 * K, K).into(), BOTH);
    assert_eq!(again.unwrap_err(), Error::Overlap);
    let neighbours = Physical::new([piece(M, K), piece(M + K, K)]);
    vcm.map(neighbours, BOTH).unwrap().unmap().unwrap();
    let untranslatable = Error::Mmu(MmuError::Untranslatable);
    assert_eq!(vcm.map(scattered(2, K), BOTH).unwrap_err(), untranslatable);
    assert_eq!(
        vcm.map(piece(1 << 40, K).into(), BOTH).unwrap_err(),
        Error::OutOfRange
    );
    assert_eq!(vcm.map_streaming(&[piece(M, K)], BOTH), Ok(M));
    let pieces = [piece(2 * M, K), piece(4 * M, K)];
    assert_eq!(vcm.map_streaming(&pieces, BOTH), Err(untranslatable));
    let elsewhere = vcm.reserve(Request::new(K).at(K)).unwrap();
    assert_eq!(
        elsewhere.bind(piece(M, K).into(), BOTH),
        Err(untranslatable)
    );
    elsewhere.bind(piece(K, K).into(), BOTH).unwrap();
    elsewhere.unmap().unwrap();
    let range = M..M + K;
    vcm.unmap_streaming(&[range]).unwrap();
    reservation.unmap().unwrap();
    assert_eq!(vcm.statistics().taken, 0);
}

#[test]
fn excluded_addresses_are_never_reserved() {
    let fake = Fake::new(0..4 * K, PageSizes::KIB4);
    let vcm = Vcm::new("holes", fake).unwrap();
    vcm.exclude(K + 5..2 * K + 1).unwrap();
    assert_eq!(vcm.exclude(2 * K..2 * K + 1), Err(Error::Overlap));
    assert_eq!(vcm.exclude(3 * K..5 * K), Err(Error::OutOfRange));
    assert_eq!(vcm.exclude(3 * K..u64::MAX), Err(Error::OutOfRange));
    let all: Vec<_> = std::iter::from_fn(|| vcm.reserve(K).ok()).collect();
    let starts: Vec<_> = all.iter().map(Reservation::start).collect();
    assert_eq!(starts, [0, 3 * K]);
}

#[test]
fn contexts_are_found_while_they_live() {
    let (vcm, _) = context();
    let known = |id| crate::contexts().iter().any(|vcm| vcm.id() == id);
    let id = vcm.id();
    assert!(known(id));
    let reservation = vcm.map(scattered(2, K), BOTH).unwrap();
    let infos = vcm.reservations();
    assert_eq!(
        (infos.len(), infos[0].range.clone()),
        (1, reservation.range())
    );
    assert_eq!((infos[0].bound, infos[0].refs), (2 * K, 1));
    reservation.unmap().unwrap();
    drop(logged(|| drop(vcm)));
    assert!(!known(id));
}
