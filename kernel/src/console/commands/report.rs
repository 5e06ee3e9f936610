//! `report`: what a maintainer needs from a machine that nobody here has seen.
//!
//! It runs other commands, each with a limit of time, between two lines that a program can find, and
//! goes on whatever becomes of them. It takes engines away and brings them back, those that nobody
//! else uses; it writes to nothing but memory of its own. Where a screen is all that there is it comes
//! in pages, and looking at them is not counted as time.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use hal::pci::Address;
use hal::time::{Duration, timeout};

use super::{CommandResult, find, no_arguments};
use crate::console::pages::Pages;
use crate::drivers;
use crate::pci::bus;

/// Seconds that a command may take: longer than anything takes that will still end.
const LIMIT: u64 = 30;

/// What is said of the machine before its engines are tried, and after.
const BEFORE: [&str; 12] = [
    "version", "cpus -v", "mem -v", "acpi -x", "lspci -v", "slots", "irqs", "iommu", "dma", "regs",
    "audit", "tasks",
];
const AFTER: [&str; 4] = ["regs", "iommu", "audit", "dmesg"];

/// A command, or what stands in its place: that there is none, and why.
struct Section {
    line: String,
    result: CommandResult,
    /// The command is to try the engine that has come back here, by the number that it has then.
    again: Option<Address>,
}

pub(super) async fn report(args: Vec<String>) -> CommandResult {
    no_arguments(&args)?;
    let plan = plan();
    let (sections, mut failed) = (plan.len(), 0);
    let mut pages = Pages::new();
    let version = env!("CARGO_PKG_VERSION");
    let begin = format!("=== longshore report begin {version} ===");
    pages.print(&begin).await;
    for section in plan {
        let Section {
            line, mut result, ..
        } = section.now();
        pages.print(&format!("--- {line}")).await;
        let mut words = line.split(' ').map(String::from);
        let command = words.next().and_then(|name| find(&name));
        if let Some(command) = command {
            let run = (command.run)(words.collect());
            let late = || Err(format!("not done after {LIMIT} s"));
            let limited = pages.run(timeout(Duration::from_secs(LIMIT), run)).await;
            result = limited.unwrap_or_else(|_| late());
        }
        if let Err(what) = result {
            failed += 1;
            let why = format!("--- {line} failed: {what}");
            pages.print(&why).await;
        }
    }
    let end = format!("=== longshore report end sections={sections} failed={failed} ===");
    pages.print(&end).await;
    Ok(())
}

impl Section {
    fn now(mut self) -> Self {
        let Some(at) = self.again else {
            return self;
        };
        let all = drivers::all();
        let device = all.iter().find(|(back, _)| *back == at);
        match device.and_then(|(_, device)| device.channels().next()) {
            Some(chan) => self.line = dmatest(chan.name()),
            None => self.result = Err("it has not come back".into()),
        }
        self
    }
}

/// Once in the image, though there are many calls.
#[inline(never)]
fn add(plan: &mut Vec<Section>, line: fmt::Arguments<'_>, result: CommandResult) {
    plan.push(Section {
        line: line.to_string(),
        result,
        again: None,
    });
}

/// Twenty random copies by one channel.
#[inline(never)]
fn dmatest(channel: &str) -> String {
    format!("dmatest channel={channel} iterations=20 timeout=2000")
}

/// All that is to be done, in order.
#[inline(never)]
fn plan() -> Vec<Section> {
    let plan = &mut Vec::new();
    for line in BEFORE {
        add(plan, format_args!("{line}"), Ok(()));
    }
    // The configuration spaces of engines and of what is above them, each once.
    let mut places = Vec::new();
    for device in bus::devices() {
        let at = device.found.address;
        if !drivers::knows(at) {
            continue;
        }
        if drivers::describe(at).is_none() {
            let why = "no driver has it, see dmesg".into();
            add(plan, format_args!("engine {at}"), Err(why));
        }
        for at in device.found.above.into_iter().chain([at]) {
            if !places.contains(&at) {
                places.push(at);
                add(plan, format_args!("lspci -x {at}"), Ok(()));
            }
        }
    }
    for (at, device) in drivers::all() {
        let channels: Vec<_> = device.channels().collect();
        let clients: usize = channels.iter().map(|chan| chan.clients()).sum();
        let Some(first) = channels.first().filter(|_| clients == 0) else {
            let why = format!("in use by {clients} clients, left alone");
            add(plan, format_args!("engine {at}"), Err(why));
            continue;
        };
        for chan in &channels {
            add(plan, format_args!("{}", dmatest(chan.name())), Ok(()));
        }
        let first = first.name();
        let bench = "bench copy sizes=64,4096,262144 batches=1,8 ms=20 via=";
        add(plan, format_args!("{bench}{first},cpu"), Ok(()));
        add(plan, format_args!("pci remove {at}"), Ok(()));
        add(plan, format_args!("audit"), Ok(()));
        add(plan, format_args!("pci rescan"), Ok(()));
        plan.push(Section {
            line: format!("engine {at}"),
            result: Ok(()),
            again: Some(at),
        });
    }
    for line in AFTER {
        add(plan, format_args!("{line}"), Ok(()));
    }
    core::mem::take(plan)
}
