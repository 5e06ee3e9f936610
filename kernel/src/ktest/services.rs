//! Interrupts, and the audit's ledgers.

use alloc::sync::Arc;
use alloc::vec::Vec;

use dma_fence::{Fence, next_context};
use hal::dma::{Memory, Source};
use hal::irq::IrqEvent;
use hal::time::Duration;

use super::{Suite, TestResult, ensure, tests};
use crate::arch::x86_64::{apic, percpu};
use crate::drivers::{audit, dma};
use crate::irq;

pub(super) static SUITE: Suite = Suite {
    name: "services",
    tests: tests![
        a_message_reaches_its_owner_on_its_cpu,
        vectors_come_back,
        vectors_run_out_without_harm,
        the_audit_counts_fences_buffers_and_mappings,
        the_audit_tells_the_look_that_was_clean,
    ],
};

async fn a_message_reaches_its_owner_on_its_cpu() -> TestResult {
    let cpus = percpu::all().count();
    for _ in 0..cpus {
        let event = Arc::new(IrqEvent::default());
        let vector = irq::bind_message("test", event.clone(), None).ok_or("no vector")?;
        // What a device's message does: an interrupt of this vector on that CPU.
        apic::send(vector.apic_id, vector.vector);
        let limit = Duration::from_secs(10);
        let came = hal::time::timeout(limit, event.beyond(0)).await;
        irq::unbind(&event);
        ensure!(came == Ok(1), "CPU {}: {came:?}", vector.cpu);
    }
    Ok(())
}

async fn vectors_come_back() -> TestResult {
    let before = irq::bound();
    let event = Arc::new(IrqEvent::default());
    let first = irq::bind_message("test", event.clone(), None).ok_or("no vector")?;
    ensure!(
        irq::bound() == before + 1,
        "{} bound, {before} before",
        irq::bound()
    );
    irq::unbind(&event);
    ensure!(
        irq::bound() == before,
        "{} bound, {before} before",
        irq::bound()
    );
    let again = irq::bind_message("test", event.clone(), None).ok_or("no vector")?;
    irq::unbind(&event);
    ensure!(first.vector == again.vector, "{first:?}, then {again:?}");
    Ok(())
}

async fn vectors_run_out_without_harm() -> TestResult {
    let before = irq::bound();
    let events: Vec<_> = (0..256).map(|_| Arc::new(IrqEvent::default())).collect();
    let bound = events
        .iter()
        .filter(|event| irq::bind_message("test", (*event).clone(), None).is_some());
    let bound = bound.count();
    ensure!(bound < 256, "more vectors than there are");
    ensure!(
        irq::bind_message("test", Arc::default(), None).is_none(),
        "one more"
    );
    events.iter().for_each(irq::unbind);
    ensure!(
        irq::bound() == before,
        "{} bound, {before} before",
        irq::bound()
    );
    Ok(())
}

async fn the_audit_counts_fences_buffers_and_mappings() -> TestResult {
    let leaked = || audit::now().leaked;
    ensure!(leaked() == 0, "{} leaked before", audit::now());
    let (signaler, fence) = Fence::new(next_context(), 1);
    ensure!(leaked() == 1, "a fence: {}", audit::now());
    drop(signaler);
    ensure!(leaked() == 1, "an observer keeps it: {}", audit::now());
    drop(fence);
    let memory = Arc::new(Memory::new(64).map_err(|e| alloc::format!("{e}"))?);
    ensure!(leaked() == 1, "a buffer: {}", audit::now());
    let source = Source::new(memory, 0..64).ok_or("empty")?;
    let host_bridge = hal::pci::Address {
        segment: 0,
        bus: 0,
        device: 0,
        function: 0,
    };
    let space = hal::dma::DmaSpace::new(Arc::new(dma::Direct(host_bridge)));
    let mapping = space
        .map_source(&source)
        .map_err(|e| alloc::format!("{e}"))?;
    ensure!(leaked() == 2, "a buffer and a mapping: {}", audit::now());
    drop((mapping, source));
    ensure!(leaked() == 0, "{} after", audit::now());
    Ok(())
}

/// A client that goes between two looks leaves behind, for a moment, what was all right before and is
/// again afterwards.
async fn the_audit_tells_the_look_that_was_clean() -> TestResult {
    let with = |leaked| audit::Audit {
        leaked,
        ..audit::now()
    };
    let limit = Duration::from_millis(30);
    let mut looks = [2, 0, 1, 1, 1, 1, 1].into_iter();
    let told = audit::settled(limit, || with(looks.next().unwrap_or(1))).await;
    ensure!(told.leaked == 0, "{told}");
    let mut looks = 0;
    let stays = || {
        looks += 1;
        with(1)
    };
    let told = audit::settled(limit, stays).await;
    ensure!(told.leaked == 1 && looks > 2, "{told} after {looks} looks");
    Ok(())
}
