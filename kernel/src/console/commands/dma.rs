//! Commands that show DMA devices, and test them.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use dmaengine::{Transaction, dmatest, registry};
use hal::time::Duration;

use super::{CommandResult, no_arguments};
use crate::drivers::{self, audit};

pub(super) fn dma(args: &[String]) -> CommandResult {
    no_arguments(args)?;
    for device in registry().devices() {
        crate::println!("{device}");
        for channel in device.channels() {
            crate::println!("{channel}");
        }
    }
    crate::println!("{}", registry().cpu());
    tables();
    crate::println!("dma: devices={}", registry().devices().len());
    Ok(())
}

/// The per-CPU table of public channels, a row a CPU, while somebody is interested in them.
fn tables() {
    crate::println!(
        "table: interest={} rebuilds={}",
        registry().interest(),
        registry().rebuilds()
    );
    for cpu in hal::cpu::online() {
        let entries = Transaction::ALL.into_iter().filter_map(|transaction| {
            let chan = registry().table_entry(cpu, transaction)?;
            Some(format!(" {transaction}={}", chan.name()))
        });
        let entries: String = entries.collect();
        if !entries.is_empty() {
            crate::println!("table: cpu{cpu}{entries}");
        }
    }
}

pub(super) fn regs(args: &[String]) -> CommandResult {
    no_arguments(args)?;
    for (at, _) in drivers::all() {
        if let Some(registers) = drivers::registers(at) {
            crate::println!("{registers}");
        }
        let errata = drivers::errata(at);
        if !errata.is_empty() {
            crate::println!("regs: {at} errata: {errata}");
        }
    }
    Ok(())
}

pub(super) async fn test(args: Vec<String>) -> CommandResult {
    let out: dmatest::Output = Arc::new(|line| crate::println!("{line}"));
    let words = args.iter().map(String::as_str);
    let summary = dmatest::run(registry(), words, &out)
        .await
        .map_err(|error| format!("{error}"))?;
    match summary.failures {
        0 => Ok(()),
        failures => Err(format!("{failures} of {} tests failed", summary.tests)),
    }
}

/// For how long the audit looks again before it speaks of a leak.
const SETTLE: Duration = Duration::from_secs(10);

pub(super) async fn audit(args: Vec<String>) -> CommandResult {
    no_arguments(&args)?;
    let audit = audit::settled(SETTLE, audit::now).await;
    crate::machine_line!("{audit}");
    match audit.leaked {
        0 => Ok(()),
        leaked => Err(format!("{leaked} leaked")),
    }
}
