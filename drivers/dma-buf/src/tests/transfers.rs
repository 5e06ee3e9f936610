//! Copies, fills and pipelines, with engines that obey, fail and leave.

use alloc::boxed::Box;
use std::sync::Arc;
use std::thread;
use std::vec::Vec;

use dma_fence::{Fence, FenceError};
use hal::dma::PAGE;
use hal::host::block_on;
use hal::time::Duration;
use proptest::prelude::*;

use super::access::others_run;
use super::engine::{Bench, Engine};
use super::poll;
use crate::{
    BufError, Chunked, DmaBuf, Pipeline, ReserveError, copy, copy_range, fill, fill_range,
};

/// Chunks of a buffer; Miri, a thousand times slower, has less.
const CHUNKS: usize = if cfg!(miri) { 2 } else { 6 };
const LEN: usize = (CHUNKS - 1) * PAGE + 7;

fn bytes(buf: &DmaBuf) -> Result<Vec<u8>, BufError> {
    let read = block_on(buf.begin_cpu_read())?;
    Ok(read.chunks().collect::<Vec<_>>().concat())
}

fn buf() -> DmaBuf {
    DmaBuf::new(LEN).unwrap()
}

#[test]
fn engines_copy_and_fill_chunk_by_chunk() {
    let engine = Engine::eager();
    let bench = Bench::new(&[&engine]);
    let (a, b) = (buf(), buf());
    block_on(fill(&bench.tx, &a, 0xaa).into_future()).unwrap();
    assert_eq!(engine.done(), CHUNKS);
    block_on(copy(&bench.tx, &b, &a).into_future()).unwrap();
    assert_eq!(engine.done(), 2 * CHUNKS);
    assert_eq!(bytes(&b), Ok(std::vec![0xaa; LEN]));
    // Without engines, the CPU.
    let bench = Bench::new(&[]);
    block_on(fill(&bench.tx, &a, 0xbb).into_future()).unwrap();
    block_on(copy(&bench.tx, &b, &a).into_future()).unwrap();
    assert_eq!(bytes(&b), Ok(std::vec![0xbb; LEN]));
}

#[test]
fn a_batch_rings_once_and_nothing_of_it_is_forgotten() {
    let engine = Engine::eager();
    let bench = Bench::new(&[&engine]);
    let a = buf();
    block_on(fill(&bench.tx, &a, 0xaa).into_future()).unwrap();
    assert_eq!((engine.rings(), engine.done()), (1, CHUNKS));
    // Where the rest of a batch is not sent, what was sent is done all the same.
    let pages = &a.inner.pages;
    let lent = pages.lend(CHUNKS - 1).unwrap();
    let b = buf();
    let (to, from) = (&a.inner.pages, &b.inner.pages);
    let copied = block_on(crate::transfer::copy_pages(&bench.tx, to, 0, from, 0..LEN));
    assert_eq!(copied, Err(FenceError::Map));
    assert_eq!((engine.rings(), engine.done()), (2, 2 * CHUNKS - 1));
    pages.put(CHUNKS - 1, lent);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let bench = Bench::new(&[]);
    let (a, small) = (buf(), DmaBuf::new(10).unwrap());
    let run = |transfer: crate::Transfer| block_on(transfer.into_future());
    assert_eq!(run(copy(&bench.tx, &small, &a)), Err(BufError::Range));
    let empty = copy_range(&bench.tx, &a, 0, &small, 3..3);
    assert_eq!(run(empty), Err(BufError::Range));
    let far = copy_range(&bench.tx, &a, usize::MAX, &small, 0..10);
    assert_eq!(run(far), Err(BufError::Range));
    assert_eq!(
        run(fill_range(&bench.tx, &small, 4..11, 1)),
        Err(BufError::Range)
    );
    let deadlock = BufError::Reserve(ReserveError::Deadlock);
    assert_eq!(run(copy_range(&bench.tx, &a, 0, &a, 9..20)), Err(deadlock));
    assert_eq!(bytes(&a), Ok(std::vec![0; LEN]));
}

#[test]
fn a_transfer_goes_on_when_nobody_waits_for_it() {
    let engine = Engine::held();
    let bench = Bench::new(&[&engine]);
    let (a, b) = (buf(), buf());
    let mut first = Box::pin(fill(&bench.tx, &a, 1).into_future());
    assert!(poll(first.as_mut(), &Arc::default()).is_pending());
    let mut second = Box::pin(copy(&bench.tx, &b, &a).into_future());
    assert!(poll(second.as_mut(), &Arc::default()).is_pending());
    drop((first, second));
    engine.let_go();
    assert_eq!(bytes(&b), Ok(std::vec![1; LEN]));
}

#[test]
fn stages_wait_for_what_they_need_and_no_more() {
    let (slow, fast) = (Engine::held(), Engine::eager());
    let bench = Bench::new(&[&slow, &fast]);
    let (by_slow, by_fast) = (bench.by(0), bench.by(1));
    let [a, b, c, d] = core::array::from_fn(|_| buf());
    let pipeline = Pipeline::new()
        .then(fill(&by_slow, &a, 1))
        .then(copy(&by_slow, &b, &a))
        .then(fill(&by_fast, &c, 2))
        .then(copy(&by_fast, &d, &c))
        .then(copy(&by_fast, &c, &b));
    let fences = block_on(pipeline.submit()).unwrap();
    assert_eq!(fences.len(), 5);
    // The third and the fourth have nothing to do with the slow engine.
    assert_eq!(block_on(fences[3].wait()), Ok(()));
    let ended: Vec<_> = fences.iter().map(dma_fence::Fence::is_signalled).collect();
    assert_eq!(ended, [false, false, true, true, false]);
    assert_eq!(bytes(&d), Ok(std::vec![2; LEN]));
    slow.let_go();
    assert_eq!(block_on(fences[4].wait()), Ok(()));
    assert_eq!(bytes(&c), Ok(std::vec![1; LEN]));
}

/// A buffer with other bytes everywhere.
fn noise() -> (DmaBuf, Vec<u8>) {
    let buf = buf();
    let bytes: Vec<u8> = (0..LEN).map(|at| (at * 31 + at / 256) as u8).collect();
    let mut write = block_on(buf.begin_cpu_write()).unwrap();
    write.write(0, &bytes).unwrap();
    drop(write);
    (buf, bytes)
}

#[test]
fn s4_37_a_chain_on_one_channel_is_in_its_ring_before_any_of_it_has_ended() {
    let engine = Engine::held();
    let bench = Bench::new(&[&engine]);
    let (a, expected) = noise();
    let [b, c, d] = core::array::from_fn(|_| buf());
    let chain = [(&b, &a), (&c, &b), (&d, &c)];
    let fences = chain.map(|(to, from)| block_on(copy(&bench.tx, to, from).submit()).unwrap());
    while engine.issued() < 3 * CHUNKS {
        thread::yield_now();
    }
    assert!(!fences.iter().any(Fence::is_signalled));
    // Who would change what all of them read waits for all of them.
    let over = block_on(fill(&bench.tx, &a, 9).queue()).unwrap();
    for fence in &fences {
        assert!(over.begin.fences().any(|other| other.is_same(fence)));
    }
    engine.let_go();
    assert_eq!(fences.map(|fence| block_on(fence.wait())), [Ok(()); 3]);
    for buf in [&b, &c, &d] {
        assert_eq!(bytes(buf).as_ref(), Ok(&expected));
    }
}

#[test]
fn s4_37_a_pipeline_on_one_channel_rings_once() {
    const STAGES: usize = 16;
    let engine = Engine::held();
    let bench = Bench::new(&[&engine]);
    let list: Vec<_> = (0..=STAGES).map(|_| DmaBuf::new(10).unwrap()).collect();
    let mut pipeline = Pipeline::new().then(fill(&bench.tx, &list[0], 7));
    for pair in list.windows(2) {
        pipeline = pipeline.then(copy(&bench.tx, &pair[1], &pair[0]));
    }
    let fences = block_on(pipeline.submit()).unwrap();
    while engine.issued() <= STAGES {
        thread::yield_now();
    }
    assert_eq!((engine.rings(), engine.done()), (1, 0));
    engine.let_go();
    assert_eq!(block_on(fences[STAGES].wait()), Ok(()));
    assert!(fences.iter().all(Fence::is_signalled));
    assert_eq!(bytes(&list[STAGES]), Ok(std::vec![7; 10]));
}

/// Who has what a stage is queued for may wait for the stages before it.
#[test]
fn a_stage_begins_while_the_next_one_cannot_be_queued() {
    let bench = Bench::new(&[&Engine::eager()]);
    let (first, second) = (buf(), buf());
    let pipeline = Pipeline::new()
        .then(fill(&bench.tx, &first, 7))
        .then(copy(&bench.tx, &second, &first));
    let held = crate::manager().reserve("other", [(second.resv(), crate::Usage::Write)]);
    let held = block_on(held).unwrap();
    let mut submit = Box::pin(pipeline.submit());
    assert!(poll(submit.as_mut(), &Arc::default()).is_pending());
    // Unless it has ended already.
    if let Some(begun) = first.resv().writer() {
        let ended = hal::time::timeout(Duration::from_secs(5), begun.wait());
        assert_eq!(block_on(ended), Ok(Ok(())), "the first stage goes on");
    }
    drop(held);
    let fences = block_on(submit).unwrap();
    assert_eq!(block_on(fences[1].wait()), Ok(()));
}

#[test]
fn s4_37_what_a_transfer_cannot_follow_it_waits_for() {
    let (engine, other) = (Engine::held(), Engine::held());
    let bench = Bench::new(&[&engine, &other]);
    let (elsewhere, tx) = (bench.by(1), &bench.tx);
    let [a, b, c] = core::array::from_fn(|_| buf());
    let follows = |transfer: crate::Transfer| block_on(transfer.queue()).unwrap().follows;
    let first = block_on(copy(tx, &b, &a).submit()).unwrap();
    let found = follows(copy(tx, &c, &b)).unwrap();
    assert!(found.is_same(&first));
    assert!(follows(copy(&elsewhere, &c, &b)).is_none(), "another way");
    // It would read what it writes.
    assert!(follows(copy(tx, &a, &b)).is_none());
    // That has queued a writer of what is read on the way to `b`.
    assert!(follows(copy(tx, &c, &b)).is_none(), "changed since");
    let part = block_on(fill_range(tx, &c, 0..10, 1).submit()).unwrap();
    let found = follows(copy_range(tx, &b, 0, &c, 3..10)).unwrap();
    assert!(found.is_same(&part));
    let beyond = block_on(fill_range(tx, &c, 0..10, 1).submit()).unwrap();
    assert!(follows(copy_range(tx, &b, 0, &c, 3..11)).is_none());
    engine.let_go();
    other.let_go();
    // It has written a part of what others, who never began, were to write.
    assert_eq!(block_on(beyond.wait()), Err(FenceError::Abandoned));
    assert!(follows(copy(tx, &b, &c)).is_none(), "nothing is on its way");
}

#[test]
fn s4_37_who_follows_ends_after_the_first_and_with_its_error() {
    let engine = Engine::held();
    let bench = Bench::new(&[&engine]);
    let (a, expected) = noise();
    let (b, c) = (buf(), buf());
    // A reader keeps the first from its beginning, and not the second.
    let reader = block_on(b.begin_cpu_read()).unwrap();
    let fences = [(&b, &a), (&c, &b)];
    let fences = fences.map(|(to, from)| block_on(copy(&bench.tx, to, from).submit()).unwrap());
    while engine.issued() < CHUNKS {
        thread::yield_now();
    }
    engine.finish();
    assert_eq!(engine.done(), CHUNKS);
    while c.inner.pages.share(CHUNKS - 1).is_err() {
        thread::yield_now();
    }
    others_run();
    assert!(!fences[1].is_signalled(), "before the first");
    engine.fail(FenceError::Gone);
    engine.expose();
    engine.let_go();
    drop(reader);
    let gone = Err(FenceError::Gone);
    assert_eq!(fences.map(|fence| block_on(fence.wait())), [gone, gone]);
    assert_eq!(bytes(&c), Err(BufError::Failed(FenceError::Gone)));
    assert_eq!(bytes(&a), Ok(expected), "the source is whole");
}

#[test]
fn what_an_engine_fails_is_done_all_the_same() {
    let engine = Engine::eager();
    engine.fail(FenceError::Device(1));
    let bench = Bench::new(&[&engine]);
    let (a, b) = (buf(), buf());
    let pipeline = Pipeline::new()
        .then(fill(&bench.tx, &a, 3))
        .then(copy(&bench.tx, &b, &a));
    assert_eq!(block_on(pipeline.into_future()), Ok(()));
    assert!(engine.done() >= 2 * CHUNKS);
    assert_eq!(bytes(&b), Ok(std::vec![3; LEN]));
}

#[test]
fn an_engine_that_leaves_in_the_middle_is_not_missed() {
    let engine = Engine::held();
    let bench = Bench::new(&[&engine]);
    let (a, b, c) = (buf(), buf(), buf());
    let pipeline = Pipeline::new()
        .then(fill(&bench.tx, &a, 4))
        .then(copy(&bench.tx, &b, &a))
        .then(copy(&bench.tx, &c, &b));
    let fences = block_on(pipeline.submit()).unwrap();
    // All of it is in the ring.
    while engine.issued() < 3 * CHUNKS {
        thread::yield_now();
    }
    let removal = block_on(
        bench
            .registry
            .unregister(&bench.devices[0], Duration::from_millis(5)),
    );
    assert_eq!((removal.by_cpu, removal.lost), (3 * CHUNKS, 0));
    assert_eq!(bytes(&b), Ok(std::vec![4; LEN]));
    assert_eq!(block_on(fences[2].wait()), Ok(()));
    assert_eq!(bytes(&c), Ok(std::vec![4; LEN]));
}

#[test]
fn memory_that_is_lost_with_an_engine_is_replaced_and_told_of() {
    let engine = Engine::eager();
    let bench = Bench::new(&[&engine]);
    let (a, b) = (buf(), buf());
    block_on(fill(&bench.tx, &a, 5).into_future()).unwrap();
    engine.fail(FenceError::Gone);
    engine.expose();
    let withheld = hal::dma::withheld();
    let failed = Err(BufError::Failed(FenceError::Gone));
    assert_eq!(block_on(copy(&bench.tx, &b, &a).into_future()), failed);
    assert!(hal::dma::withheld() >= withheld + CHUNKS);
    // What was to be there is not, for the CPU or for a copy; the source is whole.
    assert_eq!(bytes(&b), Err(BufError::Failed(FenceError::Gone)));
    let cpu = Bench::new(&[]);
    assert_eq!(block_on(copy(&cpu.tx, &a, &b).into_future()), failed);
    assert_eq!(bytes(&b).err(), Some(BufError::Failed(FenceError::Gone)));
    // Who writes a part of it makes the rest no better.
    let part = fill_range(&cpu.tx, &b, 0..10, 7);
    assert_eq!(block_on(part.into_future()), failed);
    assert_eq!(bytes(&b).err(), Some(BufError::Failed(FenceError::Gone)));
    // Written anew, it is as good as ever.
    block_on(fill(&cpu.tx, &b, 6).into_future()).unwrap();
    assert_eq!(bytes(&b), Ok(std::vec![6; LEN]));
}

/// What the property does to two buffers, and to two vectors beside them.
#[derive(Clone, Debug)]
enum Step {
    Copy { to: usize, from: usize, len: usize },
    Fill { at: usize, len: usize, value: u8 },
    Swap,
}

fn step() -> impl Strategy<Value = Step> {
    let at = || 0..LEN - 1;
    prop_oneof![
        4 => (at(), at(), 1..LEN).prop_map(|(to, from, len)| Step::Copy { to, from, len }),
        2 => (at(), 1..LEN, any::<u8>()).prop_map(|(at, len, value)| Step::Fill { at, len, value }),
        1 => Just(Step::Swap),
    ]
}

proptest! {
    #[test]
    fn transfers_do_what_slices_do(
        steps in proptest::collection::vec(step(), 1..12),
        chunks in (1usize..4, 1usize..4),
        held in any::<bool>(),
    ) {
        // Held, all are queued before any has ended.
        let engine = if held { Engine::held() } else { Engine::eager() };
        let bench = Bench::new(&[&engine]);
        let export = |pages: usize| DmaBuf::export(Arc::new(Chunked(pages * PAGE)), LEN).unwrap();
        let (mut a, mut b) = (export(chunks.0), export(chunks.1));
        let (mut x, mut y) = (std::vec![0u8; LEN], std::vec![0u8; LEN]);
        for step in steps {
            match step {
                Step::Copy { to, from, len } => {
                    let len = len.min(LEN - to).min(LEN - from);
                    let transfer = copy_range(&bench.tx, &a, to, &b, from..from + len);
                    block_on(transfer.submit()).unwrap();
                    x[to..to + len].copy_from_slice(&y[from..from + len]);
                }
                Step::Fill { at, len, value } => {
                    let range = at..LEN.min(at + len);
                    let transfer = fill_range(&bench.tx, &a, range.clone(), value);
                    block_on(transfer.submit()).unwrap();
                    x[range].fill(value);
                }
                Step::Swap => {
                    core::mem::swap(&mut a, &mut b);
                    core::mem::swap(&mut x, &mut y);
                }
            }
        }
        engine.let_go();
        prop_assert_eq!(bytes(&a), Ok(x));
        prop_assert_eq!(bytes(&b), Ok(y));
    }
}

/// Fills, copies, CPU readers and writers, moves: whoever reads finds what one writer has written.
#[test]
fn nobody_ever_sees_a_buffer_half_written() {
    let bench = Bench::new(&[&Engine::eager()]);
    let list: Arc<Vec<DmaBuf>> = Arc::new((0..4).map(|_| buf()).collect());
    let rounds = if cfg!(miri) { 3 } else { 200 };
    let worker = |number: usize| {
        let (list, tx) = (list.clone(), bench.tx.clone());
        thread::spawn(move || {
            let mut seed = number as u64 + 1;
            let mut random = |limit: usize| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 33) as usize % limit
            };
            for round in 0..rounds {
                let at = random(4);
                let (one, other) = (&list[at], &list[(at + 1 + random(3)) % 4]);
                let value = (number * 40 + round % 40) as u8;
                match random(6) {
                    0 => drop(block_on(fill(&tx, one, value).submit()).unwrap()),
                    1 => drop(block_on(copy(&tx, one, other).submit()).unwrap()),
                    2 => {
                        let mut write = block_on(one.begin_cpu_write()).unwrap();
                        write.chunks_mut().for_each(|chunk| chunk.fill(value));
                    }
                    3 => block_on(one.evict(&tx)).unwrap(),
                    _ => {
                        let read = bytes(one).unwrap();
                        assert!(read.iter().all(|byte| *byte == read[0]), "half written");
                    }
                }
            }
        })
    };
    let workers: Vec<_> = (0..4).map(worker).collect();
    workers
        .into_iter()
        .for_each(|worker| worker.join().unwrap());
}
