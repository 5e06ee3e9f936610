//! From the entry to the first task.

use core::arch::asm;
use core::sync::atomic::Ordering;

use hal::time::Duration;
use spin::Once;
use x86_64::instructions::interrupts;
use x86_64::instructions::port::Port;

use crate::acpi::tables::{self, platform};
use crate::arch::x86_64::{self as arch, apic, gdt, ioapic, machine_check, percpu, smp, traps};
use crate::boot_info::BootInfo;
use crate::command_line::{ConsolePort, Options};
use crate::console::input::Input;
use crate::console::shell;
use crate::mm::{self, stack::Stack};
use crate::stages::{self, Stage};
use crate::time::clock;
use crate::{drivers, iommu, logging, pci, screen, serial, task};

struct Boot {
    info: BootInfo,
    options: Options,
}

static BOOT: Once<Boot> = Once::new();

/// The protocol by which the loader started us.
pub fn boot_protocol() -> &'static str {
    BOOT.get().map_or("", |boot| boot.info.protocol)
}

/// What the loader told; `None` before it is looked at.
pub fn boot_info() -> Option<&'static BootInfo> {
    BOOT.get().map(|boot| &boot.info)
}

/// Bytes of memory that the loader called usable.
pub fn usable_memory() -> u64 {
    BOOT.get().map_or(0, |boot| {
        boot.info.usable().map(|(start, end)| end - start).sum()
    })
}

/// Starts the kernel: called once, by the image, on the boot CPU, with interrupts off and the
/// first 4 GiB mapped one to one.
pub fn start(info: BootInfo) -> ! {
    clock::start();
    percpu::init_boot();
    gdt::load_early();
    traps::init();
    traps::load();
    serial::init(ConsolePort::Auto);
    arch::enable_features();
    // SAFETY: once, on the loader's tables, as required of the caller.
    if unsafe { mm::boot::init(&info) }.is_err() {
        panic!("no usable memory in the map that the loader gave");
    }
    let options = Options::parse(info.command_line());
    BOOT.call_once(|| Boot { info, options });
    let Some(stack) = Stack::new() else {
        panic!("no memory for the first stack")
    };
    percpu::current()
        .stack_bottom
        .store(stack.bottom() as usize, Ordering::Relaxed);
    // SAFETY: a fresh stack; nothing of the old one is used after the jump. The zero ends
    // backtraces.
    unsafe {
        asm!("mov rsp, {stack}", "xor ebp, ebp", "push 0", "jmp {main}",
            stack = in(reg) stack.leak(), main = sym on_own_stack, options(noreturn));
    }
}

extern "C" fn on_own_stack() -> ! {
    let Some(boot) = BOOT.get() else {
        panic!("started without boot information")
    };
    let Boot { info, options } = boot;
    serial::init(options.console);
    logging::init(options.log_level);
    screen::console::init(info);
    log::info!(
        "longshore {} by {}",
        env!("CARGO_PKG_VERSION"),
        info.protocol
    );
    for complaint in &options.complaints {
        log::warn!("command line: {complaint}");
    }
    if let Some(what) = info.malformed {
        log::warn!("WARN what the loader left is malformed: {what}");
    }
    if info.regions_dropped() > 0 {
        log::warn!(
            "{} regions of the memory map found no room",
            info.regions_dropped()
        );
    }
    gdt::init();
    machine_check::init();
    mm::copy::choose();
    let stall = options.stall.as_deref();
    silence_8259();
    apic::init();
    percpu::current().set_apic_id(apic::id());
    // For the watchdog: nothing else is let through yet.
    apic::set_priority(traps::LAST_DEVICE);
    interrupts::enable();
    stages::enter(Stage::Tables, stall);
    tables::init(options.acpi_rsdp.or(info.rsdp), info);
    if let Some(spcr) = &platform().spcr {
        serial::follow(spcr, options.console);
    }
    start_cpus(options);
    drivers::machine::install();
    stages::enter(Stage::Pci, stall);
    pci::bus::init(info);
    if options.iommu {
        stages::enter(Stage::Iommu, stall);
        iommu::init(info);
    }
    apic::set_priority(0);
    // It takes work from here on, and does it below.
    percpu::current().online.store(true, Ordering::Release);
    task::spawn("start", None, first_task(options)).detach();
    task::run(percpu::current())
}

fn start_cpus(options: &Options) {
    let platform = platform();
    stages::enter(Stage::Clock, options.stall.as_deref());
    clock::init(platform.hpet, platform.fadt.pm_timer);
    stages::enter(Stage::Cpus, options.stall.as_deref());
    let Some(madt) = &platform.madt else {
        log::warn!("no MADT: one CPU, message-signalled interrupts alone");
        return;
    };
    ioapic::init(&madt.io_apics);
    let others = || madt.cpus.iter().copied().filter(|&id| id != apic::id());
    // Messages to APIC ID 255 go to all.
    let reach = if apic::is_x2apic() { u32::MAX } else { 254 };
    let beyond = others().filter(|&id| id > reach).count();
    if beyond > 0 {
        log::warn!("WARN {beyond} CPUs left out: no x2APIC, and APIC IDs above {reach}");
    }
    let wanted = options.cpus.saturating_sub(1);
    let within = others().filter(|&id| id <= reach).take(wanted);
    let started = if smp::has_trampoline() {
        smp::start_all(within, stages::progress)
    } else {
        log::warn!("WARN no usable page below 640 KiB on which CPUs could start: one CPU");
        0
    };
    log::info!("{} CPUs", started + 1);
}

/// Masks the legacy interrupt controllers and moves them off the exceptions' vectors, where a
/// spurious interrupt would be taken for one. Intel 8259A datasheet.
fn silence_8259() {
    const SEQUENCE: [(u16, u8); 10] = [
        (0x20, 0x11),
        (0xa0, 0x11),
        (0x21, 0x20),
        (0xa1, 0x28),
        (0x21, 4),
        (0xa1, 2),
        (0x21, 1),
        (0xa1, 1),
        (0x21, 0xff),
        (0xa1, 0xff),
    ];
    for (port, value) in SEQUENCE {
        // SAFETY: the controllers' ports on a PC; writes to absent ones vanish.
        unsafe { Port::<u8>::new(port).write(value) };
    }
}

/// Starts drivers, then the console.
async fn first_task(options: &'static Options) {
    stages::enter(Stage::Drivers, options.stall.as_deref());
    iommu::serve();
    drivers::probe_all().await;
    drivers::hotplug::start(Duration::from_millis(options.hotplug_window_ms));
    stages::enter(Stage::Up, None);
    match options.run.as_deref() {
        Some(line) => shell::batch(line).await,
        None => match Input::open() {
            Some(input) => shell::interactive(input).await,
            None => log::error!(
                "no input: no serial port and no PS/2 keyboard (USB keyboards are not supported)"
            ),
        },
    }
}
