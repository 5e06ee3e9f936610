//! Copies and fills that succeed, by every interrupt and none.

use std::sync::{Arc, Mutex};

use dmaengine::{Flags, SubmitReason, dmatest};
use hal::dma::{Destination, Memory, PAGE, Source};
use hal::host::block_on;
use hal::irq::IrqKind;
use hal::time::Instant;
use ioat::{Interrupt, Options};
use ioat_model::{EngineConfig, Irq};
use ioat_spec::CbVer;
use proptest::prelude::*;

use crate::buffers::{Random, Target, finish, noise, poll, submit};
use crate::rig::{Driven, config};

/// Runs dmatest and gives its lines.
fn run_dmatest(driven: &Driven, words: &str) -> (dmatest::Summary, Vec<String>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = lines.clone();
    let out: dmatest::Output = Arc::new(move |line| sink.lock().unwrap().push(line.to_string()));
    let words = words.split_whitespace();
    let summary = block_on(dmatest::run(&driven.rig.registry, words, &out)).unwrap();
    let lines = lines.lock().unwrap().clone();
    (summary, lines)
}

fn dmatest_passes(config: EngineConfig, options: Options, kind: Option<IrqKind>) {
    let driven = Driven::new(config, options);
    assert_eq!(driven.driver.interrupt(), kind);
    for words in [
        "iterations=60",
        "iterations=60 polled=1 threads_per_chan=3",
        "iterations=40 dmatest=1",
    ] {
        let (summary, lines) = run_dmatest(&driven, words);
        assert_eq!(summary.failures, 0, "{words}: {lines:#?}");
        assert_eq!(
            summary.tests as usize,
            summary.threads * if words.contains("dmatest") { 40 } else { 60 }
        );
    }
    let shown = driven.driver.to_string();
    assert!(
        shown.contains(" recoveries=0") && !shown.contains("recoveries=1"),
        "{shown}"
    );
    driven.remove();
}

#[test]
fn msi_serves_all_versions() {
    for version in [CbVer::V3_2, CbVer::V3_3, CbVer::V3_4] {
        dmatest_passes(
            config(version, Irq::Msi),
            Options::default(),
            Some(IrqKind::Msi),
        );
    }
}

#[test]
fn msix_serves_all_versions() {
    for version in [CbVer::V3_2, CbVer::V3_3, CbVer::V3_4] {
        dmatest_passes(
            config(version, Irq::MsiX),
            Options::default(),
            Some(IrqKind::MsiX),
        );
    }
}

#[test]
fn intx_serves_all_versions() {
    for version in [CbVer::V3_2, CbVer::V3_3, CbVer::V3_4] {
        dmatest_passes(
            config(version, Irq::Intx),
            Options::default(),
            Some(IrqKind::Intx),
        );
    }
}

#[test]
fn an_engine_without_interrupts_is_polled() {
    let options = Options {
        interrupt: Interrupt::Polling,
        ..Options::default()
    };
    dmatest_passes(EngineConfig::default(), options, None);
}

#[test]
fn the_steady_state_reads_no_register() {
    for irq in [Irq::Msi, Irq::MsiX, Irq::Intx] {
        let driven = Driven::new(config(CbVer::V3_2, irq), Options::default());
        let channel = block_on(driven.chan(0).request()).unwrap();
        let src = noise(1 << 16, 1);
        let mut targets = [Target::new(1 << 16, 2)];
        let before = driven.rig.engine.statistics();
        let start = Instant::now();
        block_on(async {
            for i in 0..200 {
                let flags = if i % 2 == 0 {
                    Flags::INTERRUPT
                } else {
                    Flags::empty()
                };
                let place = (i, 2 * i, 1000 + i);
                let pending = submit(&channel, &mut targets, 0, &src, place, flags).await;
                channel.issue_pending();
                if i % 2 == 1 {
                    poll(&channel, pending.submitted()).await;
                }
                finish(&mut targets, pending).await;
            }
        });
        let after = driven.rig.engine.statistics();
        // The watchdog alone reads, once in 100 ms of a host that starves the engine.
        let stalls = start.elapsed().as_millis() as u64 / 100;
        let reads = after.mmio_reads - before.mmio_reads;
        assert!(reads <= stalls, "{irq:?}: {reads}");
        assert_eq!(after.descriptors - before.descriptors, 200);
        assert_eq!(after.doorbells - before.doorbells, 200);
        let bytes: usize = (0..200).map(|i| 1000 + i).sum();
        assert_eq!(after.bytes - before.bytes, bytes as u64);
        let interrupts = after.interrupts - before.interrupts;
        assert!(
            (1..=100).contains(&interrupts),
            "polled ones do not interrupt: {interrupts}"
        );
        block_on(channel.release());
        driven.remove();
    }
}

#[test]
fn a_batch_takes_one_doorbell() {
    let driven = Driven::new(EngineConfig::default(), Options::default());
    let channel = block_on(driven.chan(1).request()).unwrap();
    let src = noise(4096, 1);
    let mut targets: Vec<_> = (0..64).map(|i| Target::new(4096, i)).collect();
    let before = driven.rig.engine.statistics().doorbells;
    block_on(async {
        let mut batch = Vec::new();
        for index in 0..targets.len() {
            let place = (index, 64, 64 + index);
            batch.push(submit(&channel, &mut targets, index, &src, place, Flags::INTERRUPT).await);
        }
        channel.issue_pending();
        for pending in batch {
            finish(&mut targets, pending).await;
        }
    });
    assert_eq!(driven.rig.engine.statistics().doorbells - before, 1);
    targets.iter().for_each(Target::check);
}

#[test]
fn long_copies_are_split() {
    let config = EngineConfig {
        xfercap_log2: 12,
        ..EngineConfig::default()
    };
    let driven = Driven::new(config, Options::default());
    let channel = block_on(driven.chan(0).request()).unwrap();
    let src = noise(1 << 20, 3);
    let mut targets = [Target::new(1 << 20, 4)];
    let before = driven.rig.engine.statistics();
    block_on(async {
        let place = (1, 3, 1_000_000);
        let pending = submit(&channel, &mut targets, 0, &src, place, Flags::INTERRUPT).await;
        channel.issue_pending();
        finish(&mut targets, pending).await;
    });
    targets[0].check();
    let after = driven.rig.engine.statistics();
    assert_eq!(
        after.descriptors - before.descriptors,
        1_000_000_u64.div_ceil(4096)
    );
    assert_eq!(
        after.completions - before.completions,
        1,
        "the last one reports"
    );
    assert_eq!(after.interrupts - before.interrupts, 1);
}

#[test]
fn a_copy_longer_than_the_ring_is_refused() {
    let config = EngineConfig {
        xfercap_log2: 12,
        ..EngineConfig::default()
    };
    let options = Options {
        ring_order: 4,
        ..Options::default()
    };
    let driven = Driven::new(config, options);
    let limit = 15 * 4096;
    assert_eq!(driven.driver.device().info().max_transfer, limit);
    let channel = block_on(driven.chan(0).request()).unwrap();
    let dst = Destination::new(Memory::new(limit + 1).unwrap(), 0..limit + 1).unwrap();
    let error = channel.prep_memset(dst, 1, Flags::empty()).unwrap_err();
    assert_eq!(error.reason, dmaengine::PrepReason::TooLong { limit });
    let (dst, len) = (error.buffers.into_memory(), limit);
    let dst = Destination::new(dst, 0..len).unwrap();
    let fill = channel.prep_memset(dst, 0x5a, Flags::INTERRUPT).unwrap();
    let fill = channel.submit(fill).unwrap();
    channel.issue_pending();
    let memory = block_on(fill.finish()).buffers.unwrap().into_memory();
    assert!(memory[..limit].iter().all(|&byte| byte == 0x5a));
    assert_eq!(memory[limit], 0);
}

/// The bytes of `memory`, in pieces.
fn scattered(memory: &[u8], chunk: usize) -> Memory {
    let mut new = Memory::scattered(memory.len(), chunk).unwrap();
    new.copy_from_slice(memory);
    new
}

#[test]
fn scattered_memory_is_copied_piece_by_piece() {
    let driven = Driven::new(EngineConfig::default(), Options::default());
    let channel = block_on(driven.chan(0).request()).unwrap();
    let src = Arc::new(scattered(&noise(40 * PAGE, 1), PAGE));
    let mut expected = noise(40 * PAGE, 2).to_vec();
    let mut memory = scattered(&expected, 4 * PAGE);
    for (from, to, len) in [(100, 5, 60_000), (0, 0, 40 * PAGE), (PAGE - 1, 3 * PAGE, 2)] {
        let before = driven.rig.engine.statistics().descriptors;
        let dst = Destination::new(memory, to..to + len).unwrap();
        let source = Source::new(src.clone(), from..from + len).unwrap();
        let copy = channel.prep_memcpy(dst, source, Flags::INTERRUPT).unwrap();
        let copy = channel.submit(copy).unwrap();
        channel.issue_pending();
        memory = block_on(copy.finish()).buffers.unwrap().0.into_memory();
        expected[to..to + len].copy_from_slice(&src[from..from + len]);
        assert!(memory[..] == expected[..]);
        let cut =
            |at: &usize| (from + at).is_multiple_of(PAGE) || (to + at).is_multiple_of(4 * PAGE);
        let descriptors = driven.rig.engine.statistics().descriptors - before;
        assert_eq!(descriptors, 1 + (1..len).filter(cut).count() as u64);
    }
}

#[test]
fn more_pieces_than_the_ring_has_slots_are_refused() {
    let options = Options {
        ring_order: 3,
        ..Options::default()
    };
    let driven = Driven::new(EngineConfig::default(), options);
    let channel = block_on(driven.chan(0).request()).unwrap();
    let fill = |pages: usize| {
        let memory = Memory::scattered(pages * PAGE, PAGE).unwrap();
        let dst = Destination::new(memory, 0..pages * PAGE).unwrap();
        channel.submit(channel.prep_memset(dst, 0x5a, Flags::INTERRUPT).unwrap())
    };
    assert_eq!(fill(8).unwrap_err().reason, SubmitReason::TooLarge);
    let most = fill(7).unwrap();
    channel.issue_pending();
    let memory = block_on(most.finish()).buffers.unwrap().into_memory();
    assert!(memory.iter().all(|&byte| byte == 0x5a));
}

/// One copy of a batch: lengths are mostly small, with a tail to 4 MiB.
fn a_copy() -> impl Strategy<Value = (usize, usize, usize)> {
    let len = prop_oneof![
        8 => 1usize..200,
        4 => 200usize..9000,
        2 => 9000usize..300_000,
        1 => 300_000usize..=4 << 20,
    ];
    (0usize..5000, 0usize..5000, len)
}

const LONGEST: usize = (4 << 20) + 5000;

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// A small ring, so that batches wrap around and fill it.
    #[test]
    fn batches_arrive_whole(
        batches in prop::collection::vec(prop::collection::vec(a_copy(), 1..6), 1..12),
        irq in prop_oneof![Just(Irq::Msi), Just(Irq::MsiX), Just(Irq::Intx)],
        version in prop_oneof![Just(CbVer::V3_2), Just(CbVer::V3_3), Just(CbVer::V3_4)],
        ring_order in 3u32..6,
        polled in any::<bool>(),
    ) {
        let options = Options { ring_order, ..Options::default() };
        let driven = Driven::new(config(version, irq), options);
        let channel = block_on(driven.chan(2).request()).unwrap();
        let src = noise(LONGEST, 7);
        let mut targets: Vec<_> = (0..5).map(|i| Target::new(LONGEST, i)).collect();
        block_on(async {
            for batch in batches {
                let flags = if polled { Flags::empty() } else { Flags::INTERRUPT };
                let mut pending = Vec::new();
                for (index, place) in batch.into_iter().enumerate() {
                    pending.push(submit(&channel, &mut targets, index, &src, place, flags).await);
                }
                channel.issue_pending();
                for pending in pending {
                    if polled {
                        poll(&channel, pending.submitted()).await;
                    }
                    finish(&mut targets, pending).await;
                }
            }
        });
        targets.iter().for_each(Target::check);
        block_on(channel.release());
        driven.remove();
    }
}

#[test]
fn a_hundred_thousand_random_copies() {
    const COPIES: usize = 100_000;
    const BATCH: usize = 16;
    let driven = Driven::new(EngineConfig::default(), Options::default());
    let seed = 0x1234_5678_9abc_def1;
    let threads: Vec<_> = (0..2)
        .map(|thread| {
            let chan = driven.chan(thread);
            std::thread::spawn(move || {
                let mut random = Random(seed + thread as u64);
                let channel = block_on(chan.request()).unwrap();
                let src = noise(LONGEST, 9);
                let mut targets: Vec<_> = (0..BATCH)
                    .map(|i| Target::new(LONGEST / 2, i as u64))
                    .collect();
                // One buffer takes the longest copies: many of that size would be slow to make.
                targets[0] = Target::new(LONGEST, 99);
                block_on(async {
                    let mut done = 0;
                    while done < COPIES / 2 {
                        let mut batch = Vec::new();
                        for index in 0..BATCH.min(COPIES / 2 - done) {
                            let longest = if index == 0 { 4 << 20 } else { 2 << 20 };
                            let most = match random.below(2000) {
                                0 => longest,
                                1..20 => 100_000,
                                20..400 => 8192,
                                _ => 256,
                            };
                            let len = 1 + random.below(most);
                            let place = (random.below(5000), random.below(2000), len);
                            let flags = if index % 4 == 3 {
                                Flags::INTERRUPT
                            } else {
                                Flags::empty()
                            };
                            batch.push(
                                submit(&channel, &mut targets, index, &src, place, flags).await,
                            );
                        }
                        channel.issue_pending();
                        if let Some(last) = batch.last() {
                            poll(&channel, last.submitted()).await;
                        }
                        done += batch.len();
                        for pending in batch {
                            finish(&mut targets, pending).await;
                        }
                    }
                });
                targets.iter().for_each(Target::check);
                channel.counters().copies
            })
        })
        .collect();
    let copies: u64 = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .sum();
    assert_eq!(copies, COPIES as u64);
    assert!(driven.rig.engine.statistics().descriptors >= COPIES as u64);
    driven.remove();
}
