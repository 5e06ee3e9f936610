//! Machine checks: the CPU's report that hardware has failed. Intel SDM volume 3, chapter 16.

use core::fmt;

use raw_cpuid::CpuId;
use x86_64::registers::model_specific::Msr;

use super::percpu;
use crate::machine_check::Error;

const MCG_CAP: u32 = 0x179;
const MCG_CTL: u32 = 0x17b;
const HAS_CTL: u64 = 1 << 8;
/// The first bank's control, status, address and misc; four more for each further bank.
const BANK: u32 = 0x400;
/// More banks have no registers here.
const BANKS_MAX: u64 = 32;

fn read(msr: u32) -> u64 {
    // SAFETY: the callers read registers that the CPU says it has; that has no side effect.
    unsafe { Msr::new(msr).read() }
}

fn write(msr: u32, value: u64) {
    // SAFETY: as above; what is written enables reporting or clears a report.
    unsafe { Msr::new(msr).write(value) };
}

/// How many banks this CPU has.
fn banks() -> u32 {
    let features = CpuId::new().get_feature_info();
    if !features.is_some_and(|f| f.has_mce() && f.has_mca()) {
        return 0;
    }
    (read(MCG_CAP) & 0xff).min(BANKS_MAX) as u32
}

/// The errors that this CPU's banks hold.
fn errors() -> impl Iterator<Item = Error> {
    (0..banks()).filter_map(|bank| Error::read(bank, |register| read(BANK + 4 * bank + register)))
}

/// Reports what this CPU's banks hold from before, clears them and lets all report.
pub fn init() {
    for error in errors() {
        log::warn!(
            "WARN machine check before this start, CPU {}, {error}",
            percpu::current().index()
        );
    }
    let count = banks();
    if count > 0 && read(MCG_CAP) & HAS_CTL != 0 {
        write(MCG_CTL, u64::MAX);
    }
    // On others than Intel's firmware knows what not to enable. Intel's first bank is the firmware's
    // on early models of the sixth family: SDM volume 3, 16.3.2.1.
    let cpuid = CpuId::new();
    let is_intel = cpuid
        .get_vendor_info()
        .is_some_and(|vendor| vendor.as_str() == "GenuineIntel");
    let early = cpuid
        .get_feature_info()
        .is_some_and(|f| f.family_id() == 6 && f.model_id() < 0x1a);
    for bank in 0..count {
        if is_intel && !(bank == 0 && early) {
            write(BANK + 4 * bank, u64::MAX);
        }
        write(BANK + 4 * bank + 1, 0);
    }
}

/// What this CPU's banks say, a line each, for the report of a machine check.
pub struct Report;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("machine check")?;
        let mut told = false;
        for error in errors() {
            write!(f, "\n  {error}")?;
            told = true;
        }
        if told {
            Ok(())
        } else {
            f.write_str(", of which this CPU's banks say nothing")
        }
    }
}

/// Whether this CPU's banks say why there is a machine check: all CPUs get it, and one or two know.
pub fn is_told_here() -> bool {
    errors().next().is_some()
}
