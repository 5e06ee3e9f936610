//! x86-64: descriptor tables, traps, APICs, per-CPU data, starting CPUs.

pub mod apic;
pub mod gdt;
pub mod ioapic;
pub mod machine_check;
pub mod percpu;
pub mod smp;
pub mod traps;

use core::ptr::NonNull;

use raw_cpuid::CpuId;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::registers::model_specific::Msr;

/// The most CPUs that are started; more are reported and left out.
pub const MAX_CPUS: usize = 256;

/// The time-stamp counter, in its own ticks.
#[inline(always)]
pub fn tsc() -> u64 {
    // SAFETY: RDTSC has no side effect.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Writes what is cached of `len` bytes from `start` on to memory, before later stores. Intel SDM
/// volume 2, CLFLUSH, which orders itself among stores to the same lines; the fence does the rest.
pub fn write_back(start: NonNull<u8>, len: usize) {
    const LINE: usize = 64;
    let first = start.as_ptr() as usize & !(LINE - 1);
    for line in (first..start.as_ptr() as usize + len).step_by(LINE) {
        // SAFETY: every x86-64 CPU has both; a line that is written back has the same contents.
        unsafe { core::arch::x86_64::_mm_clflush(line as *const u8) };
    }
    // SAFETY: as above.
    unsafe { core::arch::x86_64::_mm_mfence() };
}

/// Turns on what this CPU offers and the kernel relies on or profits from: write protection in
/// ring 0, no-execute, machine-check exceptions, SMEP, SMAP, UMIP. Runs once on each CPU.
pub fn enable_features() {
    combine_writes();
    let cpuid = CpuId::new();
    let features = cpuid.get_extended_feature_info();
    let mut cr4 = Cr4Flags::empty();
    if cpuid.get_feature_info().is_some_and(|f| f.has_mce()) {
        cr4 |= Cr4Flags::MACHINE_CHECK_EXCEPTION;
    }
    if features.as_ref().is_some_and(|f| f.has_smep()) {
        cr4 |= Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION;
    }
    if features.as_ref().is_some_and(|f| f.has_smap()) {
        cr4 |= Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION;
    }
    if features.as_ref().is_some_and(|f| f.has_umip()) {
        cr4 |= Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION;
    }
    // SAFETY: the bits are offered by this CPU; the kernel has no user-mode mappings, so that
    // SMEP and SMAP forbid nothing that it does; write protection only forbids.
    unsafe {
        Cr4::update(|flags| *flags |= cr4);
        Cr0::update(|flags| *flags |= Cr0Flags::WRITE_PROTECT);
    }
    if has_no_execute() {
        // SAFETY: offered by this CPU.
        unsafe { Efer::update(|flags| *flags |= EferFlags::NO_EXECUTE_ENABLE) };
    }
}

/// Has pages of [`Access::Combine`](crate::mm::paging::Access::Combine) combine writes, by entry 1
/// of the page attribute table, which no other page uses; without such a table they write through.
/// Intel SDM volume 3, 13.12. On each CPU, before it uses such a page.
fn combine_writes() {
    const IA32_PAT: u32 = 0x277;
    const WRITE_COMBINING: u64 = 1;
    if CpuId::new().get_feature_info().is_some_and(|f| f.has_pat()) {
        let mut pat = Msr::new(IA32_PAT);
        // SAFETY: there, as the CPU says; no page is mapped with this entry yet.
        unsafe {
            let entries = pat.read();
            pat.write(entries & !0xff00 | WRITE_COMBINING << 8);
        }
    }
}

/// What of this CPU is in use, as far as not every x86-64 CPU has it.
pub fn features() -> impl Iterator<Item = &'static str> {
    const IN_CR4: [(Cr4Flags, &str); 4] = [
        (Cr4Flags::MACHINE_CHECK_EXCEPTION, "mce"),
        (Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION, "smep"),
        (Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, "smap"),
        (Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION, "umip"),
    ];
    let cr4 = Cr4::read();
    let others = [
        (has_no_execute(), "nx"),
        (has_gib_pages(), "1gib-pages"),
        (apic::is_x2apic(), "x2apic"),
        (has_invariant_tsc(), "invariant-tsc"),
    ];
    let in_cr4 = IN_CR4
        .into_iter()
        .map(move |(flag, name)| (cr4.contains(flag), name));
    let all = in_cr4.chain(others);
    all.filter_map(|(used, name)| used.then_some(name))
}

/// Whether the time-stamp counter runs at one rate, whatever the CPU does.
pub fn has_invariant_tsc() -> bool {
    CpuId::new()
        .get_advanced_power_mgmt_info()
        .is_some_and(|info| info.has_invariant_tsc())
}

/// The rate of the time-stamp counter in kHz, where CPUID tells: exactly, or as the base frequency.
pub fn tsc_khz() -> Option<u64> {
    let cpuid = CpuId::new();
    let exact = cpuid
        .get_tsc_info()
        .and_then(|info| info.tsc_frequency())
        .map(|hz| hz / 1000);
    let base = || {
        let info = cpuid.get_processor_frequency_info()?;
        Some(u64::from(info.processor_base_frequency()) * 1000)
    };
    exact.or_else(base).filter(|&khz| khz > 0)
}

/// How many bits a physical address has.
pub fn physical_address_bits() -> u32 {
    let info = CpuId::new().get_processor_capacity_feature_info();
    info.map_or(36, |info| u32::from(info.physical_address_bits()))
        .clamp(36, 52)
}

/// Whether pages can be marked as not executable.
pub fn has_no_execute() -> bool {
    CpuId::new()
        .get_extended_processor_and_feature_identifiers()
        .is_some_and(|f| f.has_execute_disable())
}

/// Whether pages of 1 GiB exist.
pub fn has_gib_pages() -> bool {
    CpuId::new()
        .get_extended_processor_and_feature_identifiers()
        .is_some_and(|f| f.has_1gib_pages())
}

/// Stops this CPU for good.
pub fn halt_forever() -> ! {
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}
