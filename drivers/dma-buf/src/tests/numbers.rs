//! Numbers, and the list of tickets.

use alloc::boxed::Box;
use core::task::Poll;
use std::format;
use std::string::ToString;
use std::sync::Arc;

use super::{Wakes, manager, poll, resvs};
use crate::{Manager, Options, ReserveError, Resv, Seq, Usage};

#[test]
fn s4_13_order_is_kept_where_numbers_wrap_around() {
    let manager = Manager::new(Options {
        first: u32::MAX - 1,
        ..Options::default()
    });
    let resv = Resv::new(&manager);
    let mut tickets = std::vec::Vec::new();
    for number in [u32::MAX - 1, u32::MAX, 0, 1] {
        let ticket = manager.try_ticket("test").unwrap();
        assert_eq!(ticket.seq().number(), number);
        tickets.push(ticket);
    }
    for (older, younger) in [(0, 1), (1, 2), (0, 3), (2, 3)] {
        assert!(tickets[older].seq().is_older_than(tickets[younger].seq()));
        assert!(!tickets[younger].seq().is_older_than(tickets[older].seq()));
        tickets[older].try_one(&resv, Usage::Read).unwrap();
        let refused = tickets[younger].try_one(&resv, Usage::Read);
        assert_eq!(refused, Err(ReserveError::Again));
        tickets[younger].unreserve(&resv);
        tickets[older].unreserve(&resv);
    }
    let listed: std::vec::Vec<_> = manager
        .outstanding()
        .iter()
        .map(|t| t.seq.number())
        .collect();
    assert_eq!(listed, [u32::MAX - 1, u32::MAX, 0, 1], "the oldest first");
}

#[test]
fn s4_13_a_number_too_far_from_the_oldest_is_waited_for() {
    let manager = Manager::new(Options {
        first: u32::MAX - 1,
        span: 3,
        ..Options::default()
    });
    let oldest = manager.try_ticket("oldest").unwrap();
    let second = manager.try_ticket("second").unwrap();
    drop(manager.try_ticket("third").unwrap());
    assert!(manager.try_ticket("too far").is_none());
    let wakes = Arc::new(Wakes::default());
    let mut ticket = Box::pin(manager.ticket("waits"));
    assert!(poll(ticket.as_mut(), &wakes).is_pending());
    drop(second);
    assert!(poll(ticket.as_mut(), &wakes).is_pending());
    assert_eq!(wakes.count(), 0);
    drop(oldest);
    assert_eq!(wakes.count(), 1);
    let Poll::Ready(ticket) = poll(ticket.as_mut(), &wakes) else {
        panic!("the oldest has ended");
    };
    assert_eq!(ticket.seq(), Seq::new(1));
}

#[test]
fn s4_12_outstanding_tickets_show_what_they_hold_and_wait_for() {
    let manager = manager();
    let list = resvs(&manager, 3);
    let number = |at: usize| list[at].number();
    assert!(manager.outstanding().is_empty());
    let mut older = manager.try_ticket("render").unwrap();
    let mut younger = manager.try_ticket("scanout").unwrap();
    younger.try_one(&list[0], Usage::Read).unwrap();
    younger.try_one(&list[1], Usage::Read).unwrap();
    older
        .add(&list[2], Usage::Write)
        .add(&list[1], Usage::Write);
    let wakes = Arc::new(Wakes::default());
    let mut waiting = Box::pin(older.reserve());
    assert!(poll(waiting.as_mut(), &wakes).is_pending());
    let lines: std::vec::Vec<_> = manager
        .outstanding()
        .iter()
        .map(ToString::to_string)
        .collect();
    let first = format!(
        "resv: ticket=1 holds=[{}] waits=[{}@2] retries=0 by=render",
        number(2),
        number(1)
    );
    let second = format!(
        "resv: ticket=2 holds=[{},{}] waits=[] retries=0 by=scanout",
        number(0),
        number(1)
    );
    assert_eq!(lines, [first, second]);
    // And one that has let go of everything.
    let refused = younger.try_one(&list[2], Usage::Read);
    assert_eq!(refused, Err(ReserveError::Again));
    let mut back_off = Box::pin(younger.back_off());
    assert!(poll(back_off.as_mut(), &Arc::default()).is_pending());
    let line = manager.outstanding()[1].to_string();
    let gone = format!(
        "resv: ticket=2 holds=[] waits=[{}@1] retries=1 by=scanout",
        number(2)
    );
    assert_eq!(line, gone);
    assert_eq!(manager.statistics().outstanding, 2);
    drop((waiting, back_off));
    drop(younger);
    assert!(manager.outstanding().is_empty());
    let statistics = manager.statistics();
    let counts = (
        statistics.tickets,
        statistics.retries,
        statistics.most_retries,
    );
    assert_eq!(counts, (2, 1, 1));
}

#[test]
fn s4_15_what_is_embedded_is_small() {
    assert!(size_of::<Resv>() <= 64, "{}", size_of::<Resv>());
    let before = hal::host::CountingHeap::count();
    let manager = manager();
    let resv = Resv::new(&manager);
    assert_eq!(
        hal::host::CountingHeap::count(),
        before,
        "nothing on the heap"
    );
    drop(resv);
}
