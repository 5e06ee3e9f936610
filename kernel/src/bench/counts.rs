//! What happened on the whole machine while something was measured.

use alloc::boxed::Box;
use core::fmt;
use core::ops::Sub;
use core::sync::atomic::Ordering;

use super::{Benchmark, Run};
use crate::arch::x86_64::percpu;
use crate::arch::x86_64::traps::{FIRST_DEVICE, LAST_DEVICE, TIMER, WAKE};
use crate::drivers;
use crate::events::{self, Event};

/// For whoever compares with what the engines have counted: no more than a look.
pub(super) const TOTALS: Benchmark = Benchmark {
    name: "totals",
    usage: "",
    run: |params| -> Run {
        Box::pin(async {
            params.finish()?;
            crate::machine_line!("bench: totals {}", Counts::now());
            Ok(())
        })
    },
};

/// Totals since the start, or the difference of two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) mmio_reads: u64,
    pub(super) mmio_writes: u64,
    /// By the drivers' own count.
    pub(super) doorbells: u64,
    /// Interrupts of devices.
    pub(super) interrupts: u64,
    /// Wake-ups of other CPUs.
    pub(super) wakes: u64,
    /// Expired timers.
    pub(super) timers: u64,
    pub(super) allocations: u64,
}

impl Counts {
    pub(super) fn now() -> Self {
        let arrivals = |vectors: core::ops::RangeInclusive<u8>| {
            let of_cpu = |cpu: &percpu::PerCpu| {
                let range = usize::from(*vectors.start())..=usize::from(*vectors.end());
                let counts = cpu.arrivals[range].iter();
                counts.map(|n| n.load(Ordering::Relaxed)).sum::<u64>()
            };
            percpu::all().map(of_cpu).sum()
        };
        Self {
            mmio_reads: events::total(Event::MmioRead),
            mmio_writes: events::total(Event::MmioWrite),
            doorbells: drivers::doorbells(),
            interrupts: arrivals(FIRST_DEVICE..=LAST_DEVICE),
            wakes: arrivals(WAKE..=WAKE),
            timers: arrivals(TIMER..=TIMER),
            allocations: events::total(Event::Allocation),
        }
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            mmio_reads: self.mmio_reads.saturating_sub(earlier.mmio_reads),
            mmio_writes: self.mmio_writes.saturating_sub(earlier.mmio_writes),
            doorbells: self.doorbells.saturating_sub(earlier.doorbells),
            interrupts: self.interrupts.saturating_sub(earlier.interrupts),
            wakes: self.wakes.saturating_sub(earlier.wakes),
            timers: self.timers.saturating_sub(earlier.timers),
            allocations: self.allocations.saturating_sub(earlier.allocations),
        }
    }
}

/// Words for machines.
impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            mmio_reads,
            mmio_writes,
            doorbells,
            interrupts,
            wakes,
            timers,
            allocations,
        } = self;
        write!(
            f,
            "mmio_reads={mmio_reads} mmio_writes={mmio_writes} doorbells={doorbells} \
             irqs={interrupts} wakes={wakes} timers={timers} allocs={allocations}"
        )
    }
}
