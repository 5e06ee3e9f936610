//! Commands that show the machine.

use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::{CommandResult, no_arguments};
use crate::arch::x86_64::{apic, percpu};
use crate::cpus as hotplug;
use crate::mm::{PAGE, frames, heap};
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
        "clock: TSC at {}.{:03} MHz, measured against the {source}; up {} ms",
        khz / 1000,
        khz % 1000,
        clock::now_ns() / 1_000_000
    );
    Ok(())
}

pub(super) fn dmesg(args: &[String]) -> CommandResult {
    no_arguments(args)?;
    crate::print!("{}", logging::kept());
    Ok(())
}

pub(super) fn cpus(args: &[String]) -> CommandResult {
    no_arguments(args)?;
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
            cpu.apic_id,
            if up { "online" } else { "offline" },
        );
    }
    let mode = if apic::is_x2apic() { "x2apic" } else { "xapic" };
    crate::println!(
        "cpus: online={online} found={} mode={mode}",
        percpu::possible()
    );
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
    no_arguments(&args)?;
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
    crate::println!(
        "irqs: vectors={} timers={}",
        irq::bound(),
        timers::pending()
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
