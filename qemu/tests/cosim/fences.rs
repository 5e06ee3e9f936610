//! Fences of operations: who waits for them, and what that costs the engine.

use std::future::IntoFuture;
use std::sync::Arc;

use dma_buf::{DmaBuf, Pipeline, copy, fill};
use dma_fence::Fence;
use dmaengine::{AsyncTx, Channel, Client, Flags, Memcpy, Submitted};
use hal::host::block_on;
use ioat::Options;
use ioat_model::{EngineConfig, Irq};
use ioat_spec::CbVer;

use crate::buffers::{Target, filled, finish, noise, poll, submit};
use crate::rig::{Driven, config};

#[test]
fn s4_34_what_nobody_waits_for_does_not_interrupt() {
    for irq in [Irq::Msi, Irq::MsiX, Irq::Intx] {
        let driven = Driven::new(config(CbVer::V3_2, irq), Options::default());
        let channel = block_on(driven.chan(0).request()).unwrap();
        let src = noise(1 << 16, 1);
        let mut targets = [Target::new(1 << 16, 2)];
        let mut copies = |count: usize, waits: bool| {
            let before = driven.rig.engine.statistics();
            block_on(async {
                for i in 0..count {
                    let place = (i, 2 * i, 1000 + i);
                    let flags = Flags::empty();
                    let pending = submit(&channel, &mut targets, 0, &src, place, flags).await;
                    channel.issue_pending();
                    if !waits {
                        poll(&channel, pending.submitted()).await;
                    }
                    finish(&mut targets, pending).await;
                }
            });
            let after = driven.rig.engine.statistics();
            let null = after.descriptors - before.descriptors - count as u64;
            (null, after.interrupts - before.interrupts)
        };
        assert_eq!(copies(200, false), (0, 0), "{irq:?}");
        // The watchdog may be first where the host starves the engine; what follows has to
        // interrupt all the same, once.
        let (null, interrupts) = copies(20, true);
        assert!((1..=20).contains(&null), "{irq:?}: {null}");
        assert!(
            interrupts > 0 && interrupts <= null,
            "{irq:?}: {interrupts}"
        );
        block_on(channel.release());
        driven.remove();
    }
}

#[test]
fn s4_34_who_waits_late_is_told_by_an_interrupt() {
    let driven = Driven::new(EngineConfig::default(), Options::default());
    let channel = block_on(driven.chan(0).request()).unwrap();
    let before = driven.rig.engine.statistics();
    let batch = chain(&channel, Flags::FENCE, 8);
    channel.issue_pending();
    let fences: Vec<Fence> = batch.iter().map(|copy| copy.fence().clone()).collect();
    let all = Fence::all(fences);
    assert_eq!(block_on(all.wait()), Ok(()));
    let after = driven.rig.engine.statistics();
    let null = after.descriptors - before.descriptors - 8;
    // One for all, if any is needed still.
    assert!(null <= 1, "{null}");
    assert!(after.interrupts - before.interrupts <= null);
}

/// So many small copies, not issued, each after the one before it.
fn chain(channel: &Channel, flags: Flags, count: usize) -> Vec<Submitted<Memcpy>> {
    let mut copies: Vec<Submitted<Memcpy>> = Vec::new();
    for i in 0..count {
        let (dst, src) = filled(64, i as u8);
        let mut descriptor = channel.prep_memcpy(dst, src, flags).unwrap();
        if let Some(last) = copies.last() {
            descriptor = descriptor.after(last.fence());
        }
        copies.push(channel.submit(descriptor).unwrap());
    }
    copies
}

#[test]
fn s4_37_dependencies_on_one_channel_need_no_cpu() {
    for irq in [Irq::Msi, Irq::MsiX, Irq::Intx] {
        let driven = Driven::new(config(CbVer::V3_2, irq), Options::default());
        let channel = block_on(driven.chan(0).request()).unwrap();
        let before = driven.rig.engine.statistics();
        let copies = chain(&channel, Flags::FENCE, 32);
        assert_eq!((channel.waiting(), channel.in_flight()), (0, 32));
        channel.issue_pending();
        block_on(poll(&channel, copies.last().unwrap()));
        for (i, copy) in copies.into_iter().enumerate() {
            let finished = copy.try_finish().unwrap();
            let memory = finished.buffers.unwrap().0.into_memory();
            assert!(memory.iter().all(|byte| *byte == i as u8));
        }
        let after = driven.rig.engine.statistics();
        assert_eq!(after.interrupts - before.interrupts, 0, "{irq:?}");
        assert_eq!(after.doorbells - before.doorbells, 1);
        assert_eq!(after.descriptors - before.descriptors, 32);
        block_on(channel.release());
        driven.remove();
    }
}

/// Copies of copies between buffers that others may use as well: what the CPU does in between is nothing.
#[test]
fn s4_37_a_chain_of_shared_buffers_on_one_channel_costs_one_interrupt() {
    const COPIES: u64 = 32;
    for irq in [Irq::Msi, Irq::MsiX, Irq::Intx] {
        let driven = Driven::new(config(CbVer::V3_2, irq), Options::default());
        let (client, chan) = (Client::new("chain"), driven.chan(0));
        let tx = block_on(AsyncTx::new(&driven.rig.registry, &client, Some(&chan)));
        let tx = Arc::new(tx.unwrap());
        let list: Vec<_> = (0..=COPIES).map(|_| DmaBuf::new(4096).unwrap()).collect();
        block_on(fill(&tx, &list[0], 0xa5).into_future()).unwrap();
        let mut chain = Pipeline::new();
        for pair in list.windows(2) {
            chain = chain.then(copy(&tx, &pair[1], &pair[0]));
        }
        let before = driven.rig.engine.statistics();
        let fences = block_on(chain.submit()).unwrap();
        assert_eq!(block_on(fences[COPIES as usize - 1].wait()), Ok(()));
        let after = driven.rig.engine.statistics();
        // None where the host starves the engine's interrupt, and the watchdog was first.
        assert!(after.interrupts - before.interrupts <= 1, "{irq:?}");
        assert_eq!(after.doorbells - before.doorbells, 1, "{irq:?}");
        assert_eq!(after.descriptors - before.descriptors, COPIES, "{irq:?}");
        for buf in &list {
            let read = block_on(buf.begin_cpu_read()).unwrap();
            assert!(read.chunks().flatten().all(|byte| *byte == 0xa5));
        }
        drop(tx);
        driven.remove();
    }
}

#[test]
fn s4_37_dependencies_between_channels_are_handed_over_by_interrupts() {
    let driven = Driven::new(EngineConfig::default(), Options::default());
    let channels = [0, 1].map(|index| block_on(driven.chan(index).request()).unwrap());
    let mut last: Option<Submitted<Memcpy>> = None;
    for i in 0..16 {
        let channel = &channels[i % 2];
        let (dst, src) = filled(64, i as u8);
        let mut descriptor = channel.prep_memcpy(dst, src, Flags::empty()).unwrap();
        if let Some(last) = &last {
            descriptor = descriptor.after(last.fence());
        }
        last = Some(channel.submit(descriptor).unwrap());
    }
    channels[0].issue_pending();
    let finished = block_on(last.unwrap().finish());
    assert_eq!(finished.result, Ok(()));
    assert!(driven.rig.engine.statistics().interrupts > 0);
}
