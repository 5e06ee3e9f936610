//! Commands that show PCI.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use hal::pci::Address;

use super::{CommandResult, flag, hex, no_arguments};
use crate::drivers::{self, hotplug, removal};
use crate::pci::{assign, bus, names, slots as pci_slots};

pub(super) fn lspci(args: &[String]) -> CommandResult {
    if let [word, at] = args
        && word == "-x"
    {
        return dump(address(at)?);
    }
    let verbose = flag(args, "-v")?;
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

/// What is dumped of a configuration space: the standard part, and of the extended one as much as
/// engines use.
const DUMPED: usize = 0x200;

fn dump(at: Address) -> CommandResult {
    let devices = bus::devices();
    let device = devices.iter().find(|device| device.found.address == at);
    let config = &device
        .ok_or_else(|| format!("no function {at}"))?
        .found
        .config;
    // Each read of one that is gone may take long.
    if !config.is_present() {
        return Err(format!("{at} does not answer"));
    }
    let end = if config.has_extended() { DUMPED } else { 256 };
    let words = (0..end).step_by(4).map(|offset| config.read32(offset));
    let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    crate::println!("{at}: configuration space");
    hex(&bytes);
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
    let caps = list(caps.map(|(at, id)| format!("{id:02x}@{at:02x}")).collect());
    if !caps.is_empty() {
        crate::println!("        capabilities {caps}");
    }
    let caps = found.config.extended_capabilities();
    let caps = list(caps.map(|(at, id)| format!("{id:04x}@{at:03x}")).collect());
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
        match hotplug::state(slot.port) {
            Some(state) => crate::println!("{slot} state={state}"),
            None => crate::println!("{slot}"),
        }
    }
    if slots.iter().any(|slot| slot.hotplug) {
        crate::println!("slots: {}", hotplug::native());
    }
    crate::println!("slots: {}", slots.len());
    Ok(())
}

/// Reads `BB:DD.F`, with `SSSS:` before it for other segments than 0.
fn address(text: &str) -> Result<Address, String> {
    let wrong = || format!("{text:?} is no address: BB:DD.F, as lspci prints");
    let hex = |digits: &str, max: u16| {
        u16::from_str_radix(digits, 16)
            .ok()
            .filter(|&number| number <= max)
            .ok_or_else(wrong)
    };
    let (place, function) = text.rsplit_once('.').ok_or_else(wrong)?;
    let (buses, device) = place.rsplit_once(':').ok_or_else(wrong)?;
    let (segment, bus) = buses.split_once(':').unwrap_or(("0", buses));
    Ok(Address {
        segment: hex(segment, u16::MAX)?,
        bus: hex(bus, 0xff)? as u8,
        device: hex(device, 31)? as u8,
        function: hex(function, 7)? as u8,
    })
}

pub(super) async fn pci(args: Vec<String>) -> CommandResult {
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["remove", at] => {
            let at = address(at)?;
            // Nothing is cut off that is in use: what is farthest behind a port goes first.
            for behind in bus::behind(at).into_iter().rev() {
                remove(behind).await?;
            }
            remove(at).await
        }
        ["rescan"] => {
            let new = bus::rescan();
            crate::println!("pci: found={}", new.len());
            hotplug::serve_new(&new);
            for at in new.into_iter().filter(|&at| drivers::knows(at)) {
                removal::bind(at)
                    .await
                    .map_err(|error| format!("{at}: {error}"))?;
            }
            Ok(())
        }
        _ => Err("wants remove BB:DD.F, or rescan".into()),
    }
}

async fn remove(at: Address) -> CommandResult {
    if drivers::describe(at).is_some() {
        removal::unbind(at).await?;
    }
    hotplug::stop(at).await;
    if bus::forget(at) {
        Ok(())
    } else {
        Err(format!("no function {at}"))
    }
}

pub(super) async fn unbind(args: Vec<String>) -> CommandResult {
    let [at] = &args[..] else {
        return Err("wants BB:DD.F".into());
    };
    removal::unbind(address(at)?).await.map(drop)
}

pub(super) async fn bind(args: Vec<String>) -> CommandResult {
    let [at, driver] = &args[..] else {
        return Err("wants BB:DD.F and a driver".into());
    };
    let at = address(at)?;
    if drivers::name(at) != Some(driver.as_str()) {
        return Err(format!("no driver {driver:?} for {at}"));
    }
    removal::bind(at).await
}
