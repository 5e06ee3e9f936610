//! One reservation at a time, and what a ticket is told.

use alloc::boxed::Box;
use core::pin::pin;
use core::task::Poll;
use std::string::ToString;
use std::sync::Arc;

use hal::host::block_on;

use super::{Wakes, manager, poll, resvs};
use crate::{ReserveError, Resv, Usage};

#[test]
fn s4_22_one_ticket_reserves_once() {
    let manager = manager();
    let resv = Resv::new(&manager);
    let mut ticket = manager.try_ticket("a").unwrap();
    assert_eq!(ticket.try_one(&resv, Usage::Read), Ok(()));
    let again = ticket.try_one(&resv, Usage::Read);
    assert_eq!(again, Err(ReserveError::Deadlock));
    assert!(ticket.unreserve(&resv), "it is held once");
    assert!(!resv.is_reserved());
    assert!(!ticket.unreserve(&resv));
    // In a list as well: nothing of it stays reserved.
    let all = block_on(manager.reserve("b", [(&resv, Usage::Read), (&resv, Usage::Write)]));
    assert_eq!(all.unwrap_err(), ReserveError::Deadlock);
    assert!(!resv.is_reserved());
}

#[test]
fn s4_22_older_and_younger_owners_are_told_apart() {
    let manager = manager();
    let resv = Resv::new(&manager);
    let mut older = manager.try_ticket("older").unwrap();
    let mut younger = manager.try_ticket("younger").unwrap();
    older.try_one(&resv, Usage::Read).unwrap();
    let refused = younger.try_one(&resv, Usage::Read);
    assert_eq!(refused, Err(ReserveError::Again));
    drop(older);
    younger.try_one(&resv, Usage::Read).unwrap();
    let mut third = manager.try_ticket("third").unwrap();
    let refused = third.try_one(&resv, Usage::Read);
    assert_eq!(refused, Err(ReserveError::Again));
    drop((third, younger));

    let mut older = manager.try_ticket("older").unwrap();
    let mut younger = manager.try_ticket("younger").unwrap();
    younger.try_one(&resv, Usage::Read).unwrap();
    let refused = older.try_one(&resv, Usage::Read);
    assert_eq!(refused, Err(ReserveError::Busy));
    assert!(younger.unreserve(&resv));
    assert_eq!(older.try_one(&resv, Usage::Read), Ok(()));
}

#[test]
fn s4_22_who_waits_gets_it_when_it_is_let_go_of() {
    let manager = manager();
    let resv = Resv::new(&manager);
    let mut older = manager.try_ticket("older").unwrap();
    let mut younger = manager.try_ticket("younger").unwrap();
    younger.try_one(&resv, Usage::Read).unwrap();
    let wakes = Arc::new(Wakes::default());
    {
        let mut wait = pin!(older.one(&resv, Usage::Write));
        assert!(poll(wait.as_mut(), &wakes).is_pending());
        assert_eq!(wakes.count(), 0);
        younger.unreserve(&resv);
        assert_eq!(wakes.count(), 1);
        assert_eq!(poll(wait.as_mut(), &wakes), Poll::Ready(Ok(())));
    }
    let mut unreserved = pin!(manager.wait_unreserved(&resv));
    assert!(poll(unreserved.as_mut(), &wakes).is_pending());
    drop(older);
    assert_eq!(wakes.count(), 2);
    assert_eq!(poll(unreserved.as_mut(), &wakes), Poll::Ready(Ok(())));
}

#[test]
fn s4_22_an_interrupted_ticket_lets_go_of_everything() {
    let manager = manager();
    let list = resvs(&manager, 2);
    let mut older = manager.try_ticket("older").unwrap();
    let mut younger = manager.try_ticket("younger").unwrap();
    younger.try_one(&list[1], Usage::Read).unwrap();
    let seq = older.seq();
    let wakes = Arc::new(Wakes::default());
    older.add(&list[0], Usage::Read).add(&list[1], Usage::Read);
    let mut wait = Box::pin(older.reserve());
    assert!(poll(wait.as_mut(), &wakes).is_pending());
    assert!(list[0].is_reserved());
    assert!(manager.interrupt(seq));
    assert_eq!(wakes.count(), 1);
    let Poll::Ready(Err(error)) = poll(wait.as_mut(), &wakes) else {
        panic!("it was interrupted");
    };
    assert_eq!(error, ReserveError::Interrupted);
    assert!(!list[0].is_reserved());
    assert!(!manager.interrupt(seq), "it has ended");
    // One that does not wait yet is told at its next step.
    let mut late = manager.try_ticket("late").unwrap();
    assert!(manager.interrupt(late.seq()));
    let refused = late.try_one(&list[0], Usage::Read);
    assert_eq!(refused, Err(ReserveError::Interrupted));
}

#[test]
fn s4_22_a_ticket_reserves_for_its_own_manager_alone() {
    let (one, other) = (manager(), manager());
    let resv = Resv::new(&one);
    let mut ticket = other.try_ticket("other").unwrap();
    let refused = ticket.try_one(&resv, Usage::Read);
    assert_eq!(refused, Err(ReserveError::Foreign));
    let refused = block_on(other.reserve("other", [(&resv, Usage::Read)]));
    assert_eq!(refused.unwrap_err(), ReserveError::Foreign);
    let refused = block_on(other.wait_unreserved(&resv));
    assert_eq!(refused, Err(ReserveError::Foreign));
    assert!(!resv.is_reserved());
}

#[test]
fn s4_22_errors_have_linux_numbers_and_a_line_each() {
    for (error, errno, line) in [
        (ReserveError::Deadlock, -35, "reserved twice by one ticket"),
        (ReserveError::Again, -11, "an older ticket has it"),
        (ReserveError::Busy, -16, "reserved"),
        (ReserveError::Interrupted, -4, "interrupted"),
        (ReserveError::Foreign, -18, "of another manager"),
        (ReserveError::Full, -22, "no place for another shared fence"),
        (ReserveError::OutOfMemory, -12, "out of memory"),
    ] {
        assert_eq!((error.errno(), error.to_string().as_str()), (errno, line));
    }
}

#[test]
fn s4_14_a_waiter_is_woken_once_by_the_whole_ticket() {
    let manager = manager();
    let list = resvs(&manager, 4);
    let mut older = manager.try_ticket("older").unwrap();
    for resv in &list[..3] {
        older.try_one(resv, Usage::Read).unwrap();
    }
    let wakes = Arc::new(Wakes::default());
    let all = list.iter().map(|resv| (resv, Usage::Read));
    let mut younger = pin!(manager.reserve("younger", all));
    assert!(poll(younger.as_mut(), &wakes).is_pending());
    // It waits for the whole ticket, not for what it has met first.
    for resv in &list[..3] {
        older.unreserve(resv);
        assert_eq!(wakes.count(), 0);
        assert!(!list[3].is_reserved());
    }
    drop(older);
    assert_eq!(wakes.count(), 1);
    assert!(poll(younger.as_mut(), &wakes).is_ready());
    assert_eq!(wakes.count(), 1);
}

#[test]
fn s4_19_nobody_younger_gets_what_an_older_one_was_refused() {
    let manager = manager();
    let list = resvs(&manager, 2);
    let wakes = Arc::new(Wakes::default());
    let mut first = manager.try_ticket("first").unwrap();
    let mut second = manager.try_ticket("second").unwrap();
    let mut third = manager.try_ticket("third").unwrap();
    first.try_one(&list[0], Usage::Read).unwrap();
    second.add(&list[0], Usage::Read);
    let mut waiting = Box::pin(second.reserve());
    assert!(poll(waiting.as_mut(), &wakes).is_pending());
    drop(first);
    // Free, and the second has been woken; the third comes before it has run.
    assert!(!list[0].is_reserved());
    assert_eq!(
        third.try_one(&list[0], Usage::Read),
        Err(ReserveError::Again)
    );
    let Poll::Ready(Ok(second)) = poll(waiting.as_mut(), &wakes) else {
        panic!("it is the oldest");
    };
    assert_eq!(second.retries(), 1);
    drop(second);
    assert_eq!(third.try_one(&list[0], Usage::Read), Ok(()));
}

#[test]
fn s4_19_who_was_refused_one_keeps_all_it_lists_from_younger_ones() {
    let manager = manager();
    let list = resvs(&manager, 2);
    let mut first = manager.try_ticket("first").unwrap();
    let mut second = manager.try_ticket("second").unwrap();
    let mut third = manager.try_ticket("third").unwrap();
    first.try_one(&list[0], Usage::Read).unwrap();
    second.add(&list[1], Usage::Read);
    assert_eq!(
        second.try_one(&list[0], Usage::Read),
        Err(ReserveError::Again)
    );
    assert!(!list[1].is_reserved());
    assert_eq!(
        third.try_one(&list[1], Usage::Read),
        Err(ReserveError::Again)
    );
    assert_eq!(first.try_one(&list[1], Usage::Read), Ok(()), "it is older");
    drop(first);
    // What is taken off the list is nobody's claim any more.
    assert!(!second.unreserve(&list[1]));
    assert_eq!(third.try_one(&list[1], Usage::Read), Ok(()));
    assert!(manager.interrupt(second.seq()));
    assert_eq!(
        second.try_one(&list[0], Usage::Read),
        Err(ReserveError::Interrupted)
    );
    assert_eq!(third.try_one(&list[0], Usage::Read), Ok(()));
}

#[test]
fn s4_19_who_backs_off_waits_for_the_last_of_those_in_the_way() {
    let manager = manager();
    let list = resvs(&manager, 2);
    let mut older = [(); 2].map(|()| manager.try_ticket("older").unwrap());
    for (ticket, resv) in older.iter_mut().zip(&list) {
        ticket.try_one(resv, Usage::Read).unwrap();
    }
    let [first, second] = older;
    let wakes = Arc::new(Wakes::default());
    let all = list.iter().map(|resv| (resv, Usage::Read));
    let mut younger = pin!(manager.reserve("younger", all));
    assert!(poll(younger.as_mut(), &wakes).is_pending());
    let waits = manager.outstanding()[2].waits.unwrap();
    assert_eq!(
        (waits.resv, waits.ticket()),
        (list[1].number(), second.seq())
    );
    drop(first);
    assert_eq!(wakes.count(), 0);
    drop(second);
    assert_eq!(wakes.count(), 1);
    let Poll::Ready(Ok(reserved)) = poll(younger.as_mut(), &wakes) else {
        panic!("both have ended");
    };
    assert_eq!((reserved.retries(), reserved.older()), (1, 2));
}

#[test]
fn s4_19_who_gives_up_keeps_nobody_out() {
    let manager = manager();
    let resv = Resv::new(&manager);
    let wakes = Arc::new(Wakes::default());
    let mut first = manager.try_ticket("first").unwrap();
    let second = manager.try_ticket("second").unwrap();
    let mut third = manager.try_ticket("third").unwrap();
    first.try_one(&resv, Usage::Read).unwrap();
    let mut ticket = second;
    ticket.add(&resv, Usage::Read);
    let mut waiting = Box::pin(ticket.reserve());
    assert!(poll(waiting.as_mut(), &wakes).is_pending());
    drop(waiting);
    drop(first);
    assert_eq!(third.try_one(&resv, Usage::Read), Ok(()));
    assert_eq!(wakes.count(), 0);
}

#[test]
fn s4_24_who_meets_an_older_one_lets_go_and_keeps_its_number() {
    let manager = manager();
    let list = resvs(&manager, 2);
    let wakes = Arc::new(Wakes::default());
    let mut older = manager.try_ticket("older").unwrap();
    let mut younger = manager.try_ticket("younger").unwrap();
    let seq = younger.seq();
    older.try_one(&list[1], Usage::Read).unwrap();
    younger
        .add(&list[0], Usage::Read)
        .add(&list[1], Usage::Read);
    let mut waiting = Box::pin(younger.reserve());
    assert!(poll(waiting.as_mut(), &wakes).is_pending());
    assert!(!list[0].is_reserved(), "it dropped all it held");
    assert_eq!(older.try_one(&list[0], Usage::Read), Ok(()));
    drop(older);
    let Poll::Ready(Ok(reserved)) = poll(waiting.as_mut(), &wakes) else {
        panic!("nobody else is there");
    };
    assert_eq!(
        (reserved.seq(), reserved.retries(), reserved.older()),
        (seq, 1, 1)
    );
}

#[test]
fn s4_24_who_meets_a_younger_one_waits_holding() {
    let manager = manager();
    let list = resvs(&manager, 2);
    let wakes = Arc::new(Wakes::default());
    let mut older = manager.try_ticket("older").unwrap();
    let mut younger = manager.try_ticket("younger").unwrap();
    younger.try_one(&list[1], Usage::Read).unwrap();
    older.add(&list[0], Usage::Read).add(&list[1], Usage::Read);
    let mut waiting = Box::pin(older.reserve());
    assert!(poll(waiting.as_mut(), &wakes).is_pending());
    assert!(list[0].is_reserved());
    let refused = younger.try_one(&list[0], Usage::Read);
    assert_eq!(refused, Err(ReserveError::Again));
    let mut back_off = Box::pin(younger.back_off());
    assert!(poll(back_off.as_mut(), &Arc::default()).is_pending());
    assert_eq!(wakes.count(), 1);
    let Poll::Ready(Ok(reserved)) = poll(waiting.as_mut(), &wakes) else {
        panic!("the younger one let go");
    };
    assert_eq!(reserved.retries(), 0);
    drop(reserved);
    assert!(poll(back_off.as_mut(), &Arc::default()).is_ready());
    drop(back_off);
    assert_eq!(younger.retries(), 1);
    let reserved = block_on(younger.reserve()).unwrap();
    assert!(list.iter().all(Resv::is_reserved), "both stayed listed");
    drop(reserved);
}

#[test]
fn a_list_is_reserved_at_once_or_not_at_all() {
    let manager = manager();
    let list = resvs(&manager, 2);
    let mut older = manager.try_ticket("older").unwrap();
    let mut younger = manager.try_ticket("younger").unwrap();
    younger.try_one(&list[1], Usage::Read).unwrap();
    older.add(&list[0], Usage::Read).add(&list[1], Usage::Read);
    assert_eq!(older.try_reserve().unwrap_err(), ReserveError::Busy);
    assert!(!list[0].is_reserved());
    drop(younger);
    let mut ticket = manager.try_ticket("again").unwrap();
    ticket.add(&list[0], Usage::Read).add(&list[1], Usage::Read);
    let reserved = ticket.try_reserve().unwrap();
    assert!(list.iter().all(Resv::is_reserved));
    reserved.back_off();
    assert!(!list.iter().any(Resv::is_reserved));
}
