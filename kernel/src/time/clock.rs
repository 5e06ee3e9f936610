//! The clock: the time-stamp counter, measured once against a timer of known rate.
//!
//! References, best first: HPET (IA-PC HPET 1.0a, 2.3), the ACPI PM timer (ACPI 6.5, 4.8.3.3), the
//! PIT's channel 2, which every PC has. Where none of them runs, what CPUID says of the TSC is
//! believed, or a guess.
//!
//! All CPUs' counters are taken for one: a CPU whose counter differs noticeably is left out when it
//! starts (`arch::smp`).

use core::ops::RangeInclusive;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use spin::Once;
use x86_64::instructions::port::Port;

use crate::arch::x86_64::{apic, tsc, tsc_khz};
use crate::mm::paging::Access;
use crate::mm::virt::PhysicalMapping;

/// A counter of known rate.
enum Reference {
    Hpet {
        page: PhysicalMapping,
        femtos: u64,
    },
    PmTimer {
        port: u16,
    },
    Pit,
    /// The TSC itself, as somebody says.
    Tsc {
        khz: u64,
        who: &'static str,
    },
}

const PM_TIMER_HZ: u64 = 3_579_545;
const PIT_HZ: u64 = 1_193_182;
const MEASURE: Duration = Duration::from_millis(10);
/// Nanoseconds in 2^32 ticks of a TSC that runs at 50 MHz to 50 GHz: no other is known.
const PLAUSIBLE: RangeInclusive<u128> = (1 << 32) / 50..=20 << 32;

static BASE: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds at [`BASE`].
static OFFSET: AtomicU64 = AtomicU64::new(0);
/// The rate of the TSC that is taken until it is measured, and where it cannot be.
const GUESS_KHZ: u64 = 2_000_000;
/// CPUID may say what is off by one in so many: it names rounded frequencies as well.
const AGREEMENT: u64 = 20;
/// Nanoseconds in 2^32 ticks.
static NANOS: AtomicU64 = AtomicU64::new((1_000_000 << 32) / GUESS_KHZ);
static SOURCE: Once<&'static str> = Once::new();

impl Reference {
    /// The HPET at physical address `phys`, where one runs there.
    fn hpet(phys: Option<u64>) -> Option<Self> {
        let page = PhysicalMapping::new(phys?, 0x400, Access::Device).ok()?;
        // Capabilities at 0, configuration at 0x10. At most 100 ns a tick are allowed, and no
        // revision 0.
        let capabilities = page.read::<u64>(0);
        let femtos = capabilities >> 32;
        if !(1..=100_000_000).contains(&femtos) || capabilities & 0xff == 0 {
            log::warn!("no HPET at {:#x}", phys?);
            return None;
        }
        page.write(0x10, page.read::<u64>(0x10) | 1); // let the counter run
        Some(Self::Hpet { page, femtos })
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Hpet { .. } => "the HPET",
            Self::PmTimer { .. } => "the ACPI PM timer",
            Self::Pit => "the PIT",
            Self::Tsc { who, .. } => who,
        }
    }

    /// Waits at least `duration` by the reference and returns the nanoseconds that passed. `None`
    /// where the reference stands still: it is given 2^32 ticks of the TSC.
    fn wait(&self, duration: Duration) -> Option<u64> {
        let nanos = duration.as_nanos() as u64;
        let give_up = tsc().wrapping_add(1 << 32);
        let expired = || (tsc().wrapping_sub(give_up) as i64) > 0;
        let passed = match self {
            Self::Hpet { page, femtos } => {
                let read = || page.read::<u32>(0xf0);
                let passed = |start: u32| {
                    (u128::from(read().wrapping_sub(start)) * u128::from(*femtos) / 1_000_000)
                        as u64
                };
                let start = read();
                while passed(start) < nanos && !expired() {
                    core::hint::spin_loop();
                }
                passed(start)
            }
            Self::PmTimer { port } => {
                let mut port = Port::<u32>::new(*port);
                // SAFETY: the port that the FADT names; 24 bits are always there.
                let mut read = || (unsafe { port.read() }) & 0xff_ffff;
                let start = read();
                loop {
                    let ticks = u64::from(read().wrapping_sub(start) & 0xff_ffff);
                    let passed = ticks * 1_000_000_000 / PM_TIMER_HZ;
                    if passed >= nanos || expired() {
                        break passed;
                    }
                    core::hint::spin_loop();
                }
            }
            Self::Pit => {
                let ticks = (nanos * PIT_HZ / 1_000_000_000).min(0xffff);
                let (mut gate, mut command, mut channel) = (
                    Port::<u8>::new(0x61),
                    Port::<u8>::new(0x43),
                    Port::<u8>::new(0x42),
                );
                // SAFETY: the PIT of a PC: channel 2, gate on, speaker off, mode 0, low then high.
                unsafe {
                    let value = gate.read();
                    gate.write((value & !2) | 1);
                    command.write(0b1011_0000);
                    channel.write(ticks as u8);
                    channel.write((ticks >> 8) as u8);
                    // It falls when the mode is set: where it is high, there is no PIT.
                    if gate.read() & 0x20 != 0 {
                        return None;
                    }
                    while gate.read() & 0x20 == 0 && !expired() {
                        core::hint::spin_loop();
                    }
                }
                ticks * 1_000_000_000 / PIT_HZ
            }
            Self::Tsc { khz, .. } => {
                let start = tsc();
                let passed = || {
                    let ticks = u128::from(tsc().wrapping_sub(start));
                    (ticks * 1_000_000 / u128::from((*khz).max(1))) as u64
                };
                while passed() < nanos && !expired() {
                    core::hint::spin_loop();
                }
                passed()
            }
        };
        (!expired()).then_some(passed)
    }
}

/// Starts the clock, at a rate that is guessed until [`init`]. First of all.
pub fn start() {
    BASE.store(tsc(), Ordering::Relaxed);
}

/// Measures the TSC and the local APIC's timer. Once, on the boot CPU.
pub fn init(hpet: Option<u64>, pm_timer: Option<u16>) {
    let said = tsc_khz();
    let references = [
        Reference::hpet(hpet),
        pm_timer.map(|port| Reference::PmTimer { port }),
        Some(Reference::Pit),
        said.map(|khz| Reference::Tsc {
            khz,
            who: "what CPUID says",
        }),
        Some(Reference::Tsc {
            khz: GUESS_KHZ,
            who: "nothing: it is a guess",
        }),
    ];
    for reference in references.into_iter().flatten() {
        let start = tsc();
        let passed = apic::calibrate(|| reference.wait(MEASURE));
        let ticks = tsc().wrapping_sub(start).max(1);
        let nanos = (u128::from(passed.unwrap_or(0)) << 32) / u128::from(ticks);
        if !PLAUSIBLE.contains(&nanos) {
            log::warn!("{}: does not keep time", reference.name());
            continue;
        }
        // The time that was told so far, at a guessed rate, stands: the clock never goes back.
        OFFSET.store(now_ns(), Ordering::Relaxed);
        BASE.store(tsc(), Ordering::Relaxed);
        NANOS.store(
            u64::try_from(nanos).unwrap_or(u64::MAX).max(1),
            Ordering::Relaxed,
        );
        SOURCE.call_once(|| reference.name());
        check(&reference, said);
        return;
    }
}

/// Says what is odd about the rate that was measured.
fn check(reference: &Reference, said: Option<u64>) {
    if let Reference::Tsc { who, .. } = reference {
        log::warn!("WARN no timer runs on this machine: the clock's rate is {who}");
    }
    let (name, khz) = describe();
    if let Some(said) = said.filter(|&said| khz.abs_diff(said) > said / AGREEMENT) {
        log::warn!("WARN the TSC runs at {khz} kHz by {name}, CPUID says {said} kHz");
    }
}

/// What the TSC was measured against, and its rate in kHz.
pub fn describe() -> (&'static str, u64) {
    let khz = (1_000_000u64 << 32) / NANOS.load(Ordering::Relaxed).max(1);
    (SOURCE.get().copied().unwrap_or("nothing yet"), khz)
}

/// Nanoseconds since [`start`]. Any context.
pub fn now_ns() -> u64 {
    let ticks = tsc().wrapping_sub(BASE.load(Ordering::Relaxed));
    OFFSET.load(Ordering::Relaxed) + ticks_to_ns(ticks)
}

/// The nanoseconds in so many ticks of the TSC.
pub fn ticks_to_ns(ticks: u64) -> u64 {
    ((u128::from(ticks) * u128::from(NANOS.load(Ordering::Relaxed))) >> 32) as u64
}

/// Waits without giving the CPU away.
pub fn spin_for(duration: Duration) {
    spin_until(duration, || false);
}

/// Asks `done` until it says yes or `limit` has passed; says whether it did. Does not give the CPU
/// away, nor interrupts.
pub fn spin_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = now_ns().saturating_add(limit.as_nanos() as u64);
    loop {
        if done() {
            return true;
        }
        if now_ns() >= deadline {
            return done();
        }
        core::hint::spin_loop();
    }
}
