//! The local APIC, in x2APIC mode where the CPU has it. Intel SDM volume 3, chapter 11.

use core::sync::atomic::{AtomicU64, Ordering};

use raw_cpuid::CpuId;
use spin::Once;
use x86_64::registers::model_specific::Msr;

use super::{traps, tsc};
use crate::mm::PAGE as PAGE_SIZE;
use crate::mm::paging::Access;
use crate::mm::virt::PhysicalMapping;

const IA32_APIC_BASE: u32 = 0x1b;
const BASE_ENABLE: u64 = 1 << 11;
const BASE_X2APIC: u64 = 1 << 10;
const X2APIC_MSRS: u32 = 0x800;

/// Register offsets in xAPIC's page; x2APIC's MSR number is the offset divided by 16.
mod reg {
    pub(super) const ID: u32 = 0x20;
    pub(super) const PRIORITY: u32 = 0x80;
    pub(super) const EOI: u32 = 0xb0;
    pub(super) const SPURIOUS: u32 = 0xf0;
    pub(super) const ERROR: u32 = 0x280;
    pub(super) const COMMAND: u32 = 0x300;
    pub(super) const COMMAND_HIGH: u32 = 0x310;
    pub(super) const TIMER: u32 = 0x320;
    pub(super) const LINT0: u32 = 0x350;
    pub(super) const LINT1: u32 = 0x360;
    pub(super) const ERROR_VECTOR: u32 = 0x370;
    pub(super) const TIMER_INITIAL: u32 = 0x380;
    pub(super) const TIMER_CURRENT: u32 = 0x390;
    pub(super) const TIMER_DIVIDE: u32 = 0x3e0;
}

const MASKED: u32 = 1 << 16;
const SOFTWARE_ENABLE: u32 = 1 << 8;
const DIVIDE_BY_16: u32 = 0b0011;
const COMMAND_PENDING: u32 = 1 << 12;

/// The registers' page; without one, they are reached by MSR: x2APIC mode.
static PAGE: Once<PhysicalMapping> = Once::new();
/// Timer ticks in 2^20 nanoseconds.
static TICKS: AtomicU64 = AtomicU64::new(0);

/// Whether registers are reached by MSR: [`init`] on the boot CPU decides.
pub fn is_x2apic() -> bool {
    !PAGE.is_completed()
}

fn read(register: u32) -> u32 {
    match PAGE.get() {
        Some(page) => page.read(register as usize),
        // SAFETY: an existing MSR of a CPU in x2APIC mode; reading has no side effect.
        None => (unsafe { Msr::new(X2APIC_MSRS + (register >> 4)).read() }) as u32,
    }
}

fn write(register: u32, value: u32) {
    match PAGE.get() {
        Some(page) => page.write(register as usize, value),
        // SAFETY: an existing MSR; the callers below write values that the architecture defines.
        None => unsafe { Msr::new(X2APIC_MSRS + (register >> 4)).write(value.into()) },
    }
}

/// Turns the local APIC on: on the boot CPU first, which decides on the mode.
///
/// # Panics
/// Where x2APIC mode is not to be had and there is no memory to map the page of registers.
pub fn init() {
    let mut base = Msr::new(IA32_APIC_BASE);
    // SAFETY: the MSR exists on every x86-64 CPU.
    let found = unsafe { base.read() };
    // From disabled to x2APIC mode is two steps, and none leads from there to the page of registers:
    // firmware that has gone there has decided. Intel SDM volume 3, 11.12.5.
    let mut value = found | BASE_ENABLE;
    if value != found {
        // SAFETY: enabling; no interrupt is expected yet.
        unsafe { base.write(value) };
    }
    let has_x2apic = CpuId::new()
        .get_feature_info()
        .is_some_and(|f| f.has_x2apic());
    if has_x2apic || found & BASE_X2APIC != 0 {
        value |= BASE_X2APIC;
    } else {
        let phys = value & 0x000f_ffff_ffff_f000;
        PAGE.call_once(
            || match PhysicalMapping::new(phys, PAGE_SIZE, Access::Device) {
                Ok(page) => page,
                Err(_) => panic!("no memory to map the local APIC"),
            },
        );
    }
    if value != found {
        // SAFETY: enabling, in a mode that the CPU offers; no interrupt is expected yet.
        unsafe { base.write(value) };
    }
    set_priority(0);
    write(reg::SPURIOUS, SOFTWARE_ENABLE | u32::from(traps::SPURIOUS));
    write(reg::ERROR_VECTOR, u32::from(traps::APIC_ERROR));
    write(reg::LINT0, MASKED);
    write(reg::LINT1, 0b100 << 8); // NMI, the usual wiring
    write(reg::TIMER, u32::from(traps::TIMER));
    write(reg::TIMER_DIVIDE, DIVIDE_BY_16);
}

/// Keeps away from this CPU what has a vector in or below the class of `vector`; 0 lets all through.
pub fn set_priority(vector: u8) {
    write(reg::PRIORITY, u32::from(vector & 0xf0));
}

/// This CPU's APIC ID.
pub fn id() -> u32 {
    if is_x2apic() {
        read(reg::ID)
    } else {
        read(reg::ID) >> 24
    }
}

/// Acknowledges the interrupt being handled.
#[inline]
pub fn end_of_interrupt() {
    write(reg::EOI, 0);
}

/// Reads and clears the error register.
pub fn take_errors() -> u32 {
    write(reg::ERROR, 0);
    read(reg::ERROR)
}

/// Measures the timer against `wait`, which returns how many nanoseconds it took; hands that on.
pub fn calibrate(wait: impl FnOnce() -> Option<u64>) -> Option<u64> {
    write(reg::TIMER, MASKED | u32::from(traps::TIMER));
    write(reg::TIMER_INITIAL, u32::MAX);
    let nanos = wait();
    let ticks = u64::from(u32::MAX - read(reg::TIMER_CURRENT));
    write(reg::TIMER_INITIAL, 0);
    write(reg::TIMER, u32::from(traps::TIMER));
    let nanos = nanos?.max(1);
    TICKS.store(((ticks << 20) / nanos).max(1), Ordering::Relaxed);
    Some(nanos)
}

/// What the timer counts before its rate is known: from a fifth of a second to ten.
const UNMEASURED: u32 = 1 << 24;

/// Raises [`traps::TIMER`] on this CPU in `nanos` from now, or as late as the timer can count; in a
/// while before its rate is known. `None` stops it.
pub fn set_timer(nanos: Option<u64>) {
    let count = match nanos {
        None => 0,
        Some(nanos) => match TICKS.load(Ordering::Relaxed) {
            0 => UNMEASURED,
            rate => {
                let ticks = (u128::from(nanos) * u128::from(rate)) >> 20;
                u32::try_from(ticks).unwrap_or(u32::MAX).max(1)
            }
        },
    };
    write(reg::TIMER_INITIAL, count);
}

/// Sends interrupt `vector` to the CPU with this APIC ID.
pub fn send(apic_id: u32, vector: u8) {
    send_command(apic_id, u32::from(vector));
}

/// Puts the CPU with this APIC ID into its reset state.
pub fn send_init(apic_id: u32) {
    send_command(apic_id, 0b101 << 8 | 1 << 14);
}

/// Starts the CPU with this APIC ID in real mode at `page` * 4096.
pub fn send_startup(apic_id: u32, page: u8) {
    send_command(apic_id, 0b110 << 8 | 1 << 14 | u32::from(page));
}

/// Interrupts the CPU with this APIC ID even where it has interrupts off.
pub fn send_nmi(apic_id: u32) {
    send_command(apic_id, 0b100 << 8 | 1 << 14);
}

fn send_command(apic_id: u32, command: u32) {
    if is_x2apic() {
        // WRMSR to the APIC is not ordered after earlier stores, which the receiver must see:
        // Intel SDM volume 3, 11.12.3.
        // SAFETY: fences have no other effect.
        unsafe {
            core::arch::x86_64::_mm_mfence();
            core::arch::x86_64::_mm_lfence();
        }
        let value = u64::from(apic_id) << 32 | u64::from(command);
        // SAFETY: the interrupt command register of a CPU in x2APIC mode.
        unsafe { Msr::new(X2APIC_MSRS + (reg::COMMAND >> 4)).write(value) };
        return;
    }
    x86_64::instructions::interrupts::without_interrupts(|| {
        write(reg::COMMAND_HIGH, apic_id << 24);
        write(reg::COMMAND, command);
        // Delivery takes microseconds; a local APIC that never delivers shows in the answers that
        // do not come.
        let start = tsc();
        while read(reg::COMMAND) & COMMAND_PENDING != 0 && tsc().wrapping_sub(start) < 1 << 30 {
            core::hint::spin_loop();
        }
    });
}
