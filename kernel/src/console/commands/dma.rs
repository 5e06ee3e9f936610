//! Commands that show DMA devices, and test them.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use dmaengine::{dmatest, registry};

use super::{CommandResult, no_arguments};
use crate::drivers;

pub(super) fn dma(args: &[String]) -> CommandResult {
    no_arguments(args)?;
    for device in registry().devices() {
        crate::println!("{device}");
        for channel in device.channels() {
            crate::println!("{channel}");
        }
    }
    crate::println!("{}", registry().cpu());
    crate::println!("dma: devices={}", registry().devices().len());
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

pub(super) fn audit(args: &[String]) -> CommandResult {
    no_arguments(args)?;
    let audit = drivers::audit::now();
    crate::machine_line!("{audit}");
    match audit.leaked {
        0 => Ok(()),
        leaked => Err(format!("{leaked} leaked")),
    }
}
