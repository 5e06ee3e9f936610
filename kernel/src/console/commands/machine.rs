//! Commands that show the machine.

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::Ordering;

use raw_cpuid::cpuid;
use x86_64::registers::control::{Cr0, Cr4};
use x86_64::registers::model_specific::Efer;

use super::{CommandResult, flag, no_arguments};
use crate::acpi::tables::{self, platform};
use crate::arch::x86_64::{self as arch, apic, percpu};
use crate::boot_info::RegionKind;
use crate::cpus as hotplug;
use crate::mm::{PAGE, copy, frames, heap};
use crate::time::{clock, timers};
use crate::{irq, logging, numa, power, task};

pub(super) fn version(args: &[String]) -> CommandResult {
    no_arguments(args)?;
    let (source, khz) = clock::describe();
    crate::println!(
        "longshore {} (x86_64, {})",
        env!("CARGO_PKG_VERSION"),
        crate::boot_protocol()
    );
    crate::println!(
        "clock: TSC at {}.{:03} MHz{}, measured against {source}; up {} ms",
        khz / 1000,
        khz % 1000,
        if arch::has_invariant_tsc() {
            ""
        } else {
            " (not said to be invariant)"
        },
        clock::now_ns() / 1_000_000
    );
    if let Some(boot) = crate::boot_info() {
        crate::println!("command line: {}", boot.command_line());
    }
    Ok(())
}

pub(super) fn dmesg(args: &[String]) -> CommandResult {
    no_arguments(args)?;
    crate::print!("{}", logging::kept());
    Ok(())
}

pub(super) fn cpus(args: &[String]) -> CommandResult {
    if flag(args, "-v")? {
        features();
    }
    let mut online = 0;
    for cpu in percpu::all() {
        let (polls, sleeps) = task::activity(cpu.index());
        let up = cpu.online.load(Ordering::Relaxed);
        online += usize::from(up);
        let node =
            numa::of_cpu(cpu.index()).map_or_else(String::new, |n| alloc::format!(" node={n}"));
        crate::println!(
            "cpu{} apic={:#x}{node} {} polls={polls} sleeps={sleeps}",
            cpu.index(),
            cpu.apic_id(),
            if up { "online" } else { "offline" },
        );
    }
    let features: Vec<_> = arch::features().collect();
    crate::println!(
        "cpus: features={} copies={}",
        features.join(","),
        copy::unit()
    );
    let mode = if apic::is_x2apic() { "x2apic" } else { "xapic" };
    crate::println!(
        "cpus: online={online} found={} mode={mode}",
        percpu::possible()
    );
    Ok(())
}

/// What this CPU is and has, and what of that is used.
fn features() {
    let brand = (2..=4).map(|leaf| cpuid!(0x8000_0000u32 + leaf));
    let brand: Vec<u8> = brand
        .flat_map(|words| [words.eax, words.ebx, words.ecx, words.edx])
        .flat_map(u32::to_le_bytes)
        .collect();
    let brand = core::str::from_utf8(&brand).unwrap_or("unreadable");
    crate::println!("cpu: {}", brand.trim_matches(['\0', ' ']));
    const LEAVES: [u32; 8] = [0, 1, 7, 0xb, 0x15, 0x8000_0001, 0x8000_0007, 0x8000_0008];
    for leaf in LEAVES {
        let words = cpuid!(leaf, 0);
        crate::println!(
            "cpu: cpuid {leaf:#x} {:08x} {:08x} {:08x} {:08x}",
            words.eax,
            words.ebx,
            words.ecx,
            words.edx
        );
    }
    crate::println!(
        "cpu: used: cr0={:#x} cr4={:#x} efer={:#x}",
        Cr0::read_raw(),
        Cr4::read_raw(),
        Efer::read_raw()
    );
}

/// The tables whose contents are worth their length.
const DUMPED: [&[u8; 4]; 8] = [
    b"APIC", b"MCFG", b"SRAT", b"DMAR", b"SPCR", b"FACP", b"HPET", b"SLIT",
];
/// As much as is dumped of a table: a MADT of 512 CPUs fits.
const DUMPED_MAX: usize = 8 << 10;

pub(super) fn acpi(args: &[String]) -> CommandResult {
    let dump = flag(args, "-x")?;
    let tables = &platform().list;
    for (signature, at, len) in tables {
        tables::look(*at, &mut |bytes| {
            // ACPI 6.5, 5.2.6: revision, then the names of who wrote it, at 10 and 16.
            let text = |range: Range<usize>| bytes.get(range).unwrap_or_default().escape_ascii();
            crate::println!(
                "acpi: {} at {at:#x} len={len} revision={} oem={} table={}",
                signature.escape_ascii(),
                bytes.get(8).copied().unwrap_or(0),
                text(10..16),
                text(16..24)
            );
            if dump && DUMPED.contains(&signature) {
                super::hex(&bytes[..bytes.len().min(DUMPED_MAX)]);
            }
        });
    }
    crate::println!("acpi: tables={}", tables.len());
    Ok(())
}

pub(super) async fn cpu(args: Vec<String>) -> CommandResult {
    let [what, number] = &args[..] else {
        return Err("wants offline or online, and a CPU".into());
    };
    let number = number
        .parse()
        .map_err(|_| alloc::format!("{number:?} is no number"))?;
    match what.as_str() {
        "offline" => hotplug::offline(number).await,
        "online" => hotplug::online(number).await,
        _ => Err(alloc::format!("offline or online, not {what:?}")),
    }
}

pub(super) async fn mem(args: Vec<String>) -> CommandResult {
    if flag(&args, "-v")? {
        map();
    }
    // What CPUs keep for themselves is not in use.
    for cpu in hal::cpu::online() {
        task::spawn("mem", Some(cpu), async { heap::share() }).await;
    }
    let usable: u64 = crate::usable_memory();
    let (total, used) = {
        let frames = frames::FRAMES.lock();
        (frames.total(), frames.used())
    };
    let free = total - used;
    let (heap_used, heap_size) = heap::usage();
    crate::println!(
        "mem: total={} KiB used={} KiB free={} KiB heap={} KiB",
        usable >> 10,
        (usable - free) >> 10,
        free >> 10,
        heap_used >> 10
    );
    crate::println!(
        "mem: frames in use={} heap size={} KiB buffers={}",
        used / PAGE as u64,
        heap_size >> 10,
        crate::drivers::machine::buffers()
    );
    Ok(())
}

/// The loader's memory map, and which node has what of it.
fn map() {
    for region in crate::boot_info().map_or(&[][..], |boot| boot.regions()) {
        let kind = match region.kind {
            RegionKind::Usable => "usable",
            RegionKind::AcpiReclaimable => "acpi tables",
            RegionKind::AcpiNvs => "acpi nvs",
            RegionKind::Reserved => "reserved",
        };
        let end = region.start + region.len - 1;
        crate::println!("map: {:#x}-{end:#x} {kind}", region.start);
    }
    for range in &platform().srat.memory {
        let end = range.base.saturating_add(range.len);
        crate::println!("map: {:#x}-{end:#x} node={}", range.base, range.node);
    }
}

pub(super) fn irqs(args: &[String]) -> CommandResult {
    no_arguments(args)?;
    for line in irq::list() {
        let vector = line.vector;
        crate::print!(
            "vector={:#x} cpu={} count={} {}",
            vector.vector,
            vector.cpu,
            line.arrivals,
            line.name
        );
        match line.gsi {
            Some(gsi) => crate::println!(" gsi={gsi}"),
            None => crate::println!(" message"),
        }
    }
    let unasked = irq::unasked();
    crate::println!(
        "irqs: vectors={} timers={} spurious={} unowned={} errors={} nmi={}",
        irq::bound(),
        timers::pending(),
        unasked.spurious,
        unasked.unowned,
        unasked.errors,
        unasked.nmi
    );
    Ok(())
}

pub(super) fn tasks(args: &[String]) -> CommandResult {
    no_arguments(args)?;
    let tasks = task::list();
    for task in &tasks {
        crate::println!("task {} cpu={} {}", task.id, task.cpu(), task.name);
    }
    crate::println!("tasks: {}", tasks.len());
    Ok(())
}

pub(super) fn reboot(args: &[String]) -> CommandResult {
    no_arguments(args)?;
    power::restart()
}

pub(super) fn poweroff(args: &[String]) -> CommandResult {
    no_arguments(args)?;
    power::off()
}
