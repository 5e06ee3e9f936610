use super::*;
use core::cell::{Cell, RefCell};
use proptest::prelude::*;

/// A ring whose engine is done with what it is told.
#[derive(Default)]
struct Engine {
    done: AtomicU64,
}

impl Slots for Engine {
    fn capacity(&self) -> u64 {
        7
    }
}

fn look(engine: &Engine, seen: &mut u64, given: Range<u64>) -> u64 {
    *seen = engine.done.load(Ordering::Relaxed);
    (*seen).clamp(given.start, given.end)
}

fn open(first: u64) -> (Queue<Engine, u64>, Arc<Engine>) {
    let queue = Queue::new();
    let engine = Arc::new(Engine::default());
    queue.open(engine.clone(), first, 0);
    (queue, engine)
}

fn push(queue: &Queue<Engine, u64>, count: u64, entry: u64) -> Result<(), Refusal> {
    let pushed = queue.push(entry, |_, _, _| Some(count));
    pushed.map_err(|(back, refusal)| {
        assert_eq!(back, entry);
        refusal
    })
}

fn delivered(queue: &Queue<Engine, u64>, budget: u64) -> (Vec<u64>, bool) {
    let mut entries = Vec::new();
    let spent = queue.complete(budget, look, |entry| entries.push(entry));
    (entries, spent)
}

#[test]
fn an_entry_that_does_not_fit_comes_back() {
    let (queue, engine) = open(1);
    assert_eq!(push(&queue, 8, 0), Err(Refusal::TooLarge));
    assert_eq!(push(&queue, 5, 1), Ok(()));
    assert_eq!(push(&queue, 3, 2), Err(Refusal::Full));
    assert_eq!(push(&queue, 2, 3), Ok(()));
    assert!(queue.issue(|slots| assert_eq!(slots, 8)));
    assert!(
        !queue.issue(|_| unreachable!()),
        "nothing is left to announce"
    );
    engine.done.store(6, Ordering::Relaxed);
    assert_eq!(delivered(&queue, 10), (vec![1], false));
    assert_eq!((queue.tail(), queue.issued()), (6, 8));
    assert_eq!(push(&queue, 5, 4), Ok(()));
    let torn = queue.push(5, |_, free, _| {
        assert_eq!(free, 13..13, "as many as are free");
        None
    });
    assert_eq!(torn, Err((5, Refusal::Torn)));
    queue.close();
    assert_eq!(push(&queue, 1, 5), Err(Refusal::Closed));
}

#[test]
fn an_entry_ends_with_its_last_slot() {
    let (queue, engine) = open(1);
    push(&queue, 3, 1).unwrap();
    push(&queue, 1, 2).unwrap();
    queue.issue(|_| {});
    engine.done.store(3, Ordering::Relaxed);
    assert_eq!(delivered(&queue, 10), (vec![], false));
    engine.done.store(5, Ordering::Relaxed);
    assert_eq!(delivered(&queue, 10), (vec![1, 2], false));
}

#[test]
fn a_budget_that_is_spent_leaves_the_rest() {
    let (queue, engine) = open(1);
    for entry in 0..3 {
        push(&queue, 1, entry).unwrap();
    }
    queue.issue(|_| {});
    engine.done.store(4, Ordering::Relaxed);
    assert_eq!(delivered(&queue, 2), (vec![0, 1], true));
    assert_eq!(delivered(&queue, 2), (vec![2], false));
}

#[test]
fn who_delivers_looks_again_at_what_is_left() {
    let (queue, engine) = open(1);
    push(&queue, 1, 1).unwrap();
    push(&queue, 1, 2).unwrap();
    queue.issue(|_| {});
    engine.done.store(2, Ordering::Relaxed);
    let (looks, entries) = (Cell::new(0), RefCell::new(Vec::new()));
    let counted = |engine: &Engine, seen: &mut u64, given| {
        looks.set(looks.get() + 1);
        look(engine, seen, given)
    };
    queue.complete(10, counted, |entry| {
        entries.borrow_mut().push(entry);
        if entry == 1 {
            engine.done.store(3, Ordering::Relaxed);
            assert_eq!(delivered(&queue, 10), (vec![], false), "left to the other");
        }
    });
    assert_eq!((entries.into_inner(), looks.get()), (vec![1, 2], 2));
}

#[test]
fn one_look_serves_all_that_is_done() {
    let (queue, engine) = open(1);
    for entry in 0..5 {
        push(&queue, 1, entry).unwrap();
    }
    queue.issue(|_| {});
    engine.done.store(6, Ordering::Relaxed);
    let looks = Cell::new(0);
    let counted = |engine: &Engine, seen: &mut u64, given| {
        looks.set(looks.get() + 1);
        look(engine, seen, given)
    };
    let mut count = 0;
    queue.complete(10, counted, |_| count += 1);
    assert_eq!((count, looks.get()), (5, 1));
}

#[test]
fn what_is_issued_in_silence_is_announced_by_the_restart() {
    let (queue, engine) = open(1);
    push(&queue, 1, 1).unwrap();
    push(&queue, 1, 2).unwrap();
    queue.issue(|slots| assert_eq!(slots, 3));
    push(&queue, 1, 3).unwrap();
    queue.silence();
    assert!(queue.issue(|_| unreachable!("the engine does not listen")));
    engine.done.store(2, Ordering::Relaxed);
    assert_eq!(queue.take(Scope::First, false, look), None, "1 is done");
    assert_eq!(delivered(&queue, 10).0, [1]);
    let taken = queue.take(Scope::Issued, false, look).unwrap();
    assert_eq!(taken, [2], "what was issued in silence is not concerned");
    assert_eq!(
        queue.take(Scope::First, false, look),
        None,
        "not given back yet"
    );
    queue.delivered();
    queue.restart(|_, tail, issued| assert_eq!((tail, issued), (3, 1)));
    push(&queue, 1, 4).unwrap();
    queue.issue(|slots| assert_eq!(slots, 2, "since the restart"));
}

#[test]
fn all_is_taken_announced_or_not() {
    let (queue, _engine) = open(1);
    push(&queue, 1, 1).unwrap();
    queue.issue(|_| {});
    push(&queue, 2, 2).unwrap();
    assert_eq!(queue.take(Scope::None, false, look), Some(vec![]));
    queue.delivered();
    assert_eq!(queue.take(Scope::All, true, look), Some(vec![1, 2]));
    assert_eq!((queue.tail(), queue.issued()), (4, 4));
    assert_eq!(push(&queue, 1, 3), Err(Refusal::Closed));
}

proptest! {
    /// Whatever is pushed, issued, done and retired in whatever portions: everything ends once, in
    /// order, and not before the engine is done with it.
    #[test]
    fn entries_end_once_in_order(steps in prop::collection::vec((0u8..4, 1u64..4), 1..200)) {
        let (queue, engine) = open(1);
        let (mut next, mut ends, mut ended) = (0, Vec::new(), 0);
        let (mut head, mut done) = (1, 1);
        for (step, n) in steps {
            match step {
                0 => if push(&queue, n, next).is_ok() {
                    head += n;
                    ends.push(head);
                    next += 1;
                },
                1 => {
                    queue.issue(|slots| assert_eq!(slots, head));
                    prop_assert_eq!(queue.issued(), head);
                }
                2 => {
                    done = (done + n).min(queue.issued());
                    engine.done.store(done, Ordering::Relaxed);
                }
                _ => for entry in delivered(&queue, n).0 {
                    prop_assert_eq!(entry, ended);
                    prop_assert!(ends[ended as usize] <= done);
                    ended += 1;
                },
            }
            prop_assert!(queue.tail() <= queue.issued() && queue.issued() <= head);
        }
    }
}
