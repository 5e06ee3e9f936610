//! Parking CPUs and starting them again.
//!
//! A CPU that is parked takes no work: its tasks, timers and interrupts move to others and it leaves
//! the tables of channels; then it halts with interrupts off. It starts again from reset. What it
//! counted stays counted.

use alloc::format;
use alloc::string::String;
use core::sync::atomic::{AtomicBool, Ordering};

use dmaengine::registry;
use hal::time::{Duration, poll_until};

use crate::arch::x86_64::{apic, percpu, smp, traps};
use crate::irq;

/// How long a CPU may take to let go: as long as one of its tasks may run without a pause.
const LIMIT: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(1);

/// One change at a time.
static BUSY: AtomicBool = AtomicBool::new(false);

struct Busy;

impl Busy {
    fn begin() -> Result<Self, String> {
        match BUSY.swap(true, Ordering::Acquire) {
            false => Ok(Self),
            true => Err("another CPU is changing".into()),
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.store(false, Ordering::Release);
    }
}

fn find(number: usize) -> Result<&'static percpu::PerCpu, String> {
    percpu::get(number).ok_or_else(|| format!("no CPU {number}"))
}

/// Parks CPU `number`. The boot CPU stays.
pub async fn offline(number: usize) -> Result<(), String> {
    let cpu = find(number)?;
    let _busy = Busy::begin()?;
    if number == 0 {
        return Err("the boot CPU stays".into());
    }
    if !cpu.online.swap(false, Ordering::SeqCst) {
        return Err(format!("CPU {number} is not online"));
    }
    let moved = irq::move_away(number);
    registry().rebalance();
    apic::send(cpu.apic_id(), traps::WAKE);
    let parked = poll_until(LIMIT, STEP, || !cpu.running.load(Ordering::Acquire)).await;
    irq::look_again(&moved);
    // One that is late parks all the same when its task lets it.
    parked.map_err(|_| format!("CPU {number} takes long to park"))
}

/// Starts CPU `number` again.
pub async fn online(number: usize) -> Result<(), String> {
    let cpu = find(number)?;
    let _busy = Busy::begin()?;
    if cpu.running.load(Ordering::Acquire) {
        return Err(format!("CPU {number} is running"));
    }
    if !smp::start(cpu) {
        return Err(format!("CPU {number} does not start"));
    }
    registry().rebalance();
    Ok(())
}
