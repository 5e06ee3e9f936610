//! Commands that show PCI.

use alloc::string::String;
use alloc::vec::Vec;

use super::{CommandResult, no_arguments};
use crate::drivers;
use crate::pci::{assign, bus, names, slots as pci_slots};

pub(super) fn lspci(args: &[String]) -> CommandResult {
    let verbose = match args {
        [] => false,
        [flag] if flag == "-v" => true,
        [word, ..] => return Err(alloc::format!("takes -v alone, not {word:?}")),
    };
    let devices = bus::devices();
    for device in &devices {
        let found = &device.found;
        let id = found.identity;
        crate::println!(
            "{} {}: {:04x}:{:04x} {} (rev {:02x})",
            found.address,
            names::class(id.class),
            id.vendor,
            id.device,
            names::device(&id).unwrap_or("unknown"),
            id.revision
        );
        if verbose {
            details(device);
        }
    }
    crate::println!("lspci: functions={}", devices.len());
    Ok(())
}

fn details(device: &bus::Device) {
    let found = &device.found;
    if let Some(buses) = found.bridge {
        crate::println!(
            "        buses {:02x}-{:02x}",
            buses.secondary,
            buses.subordinate
        );
        for window in assign::bridge_windows(&found.config) {
            crate::println!(
                "        window {:#x}-{:#x}{}",
                window.range.start,
                window.range.end - 1,
                if window.prefetchable {
                    " prefetchable"
                } else {
                    ""
                }
            );
        }
    }
    for bar in &device.bars {
        crate::print!("        BAR {}: {} KiB", bar.index, bar.size >> 10);
        match bar.address {
            0 => crate::println!(" without an address"),
            at => crate::println!(" at {at:#x}"),
        }
    }
    if let Some(engine) = drivers::describe(found.address) {
        crate::println!("        {engine}");
    }
    let list = |ids: Vec<String>| ids.join(" ");
    let caps = found.config.capabilities();
    let caps = list(
        caps.map(|(at, id)| alloc::format!("{id:02x}@{at:02x}"))
            .collect(),
    );
    if !caps.is_empty() {
        crate::println!("        capabilities {caps}");
    }
    let caps = found.config.extended_capabilities();
    let caps = list(
        caps.map(|(at, id)| alloc::format!("{id:04x}@{at:03x}"))
            .collect(),
    );
    if !caps.is_empty() {
        crate::println!("        extended capabilities {caps}");
    }
}

pub(super) fn slots(args: &[String]) -> CommandResult {
    no_arguments(args)?;
    let found: Vec<_> = bus::devices()
        .into_iter()
        .map(|device| device.found)
        .collect();
    let slots = pci_slots::list(&found);
    for slot in &slots {
        crate::println!("{slot}");
    }
    crate::println!("slots: {}", slots.len());
    Ok(())
}
