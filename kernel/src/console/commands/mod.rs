//! The commands, and how they are found.

mod bench;
mod buffers;
mod crash;
mod dma;
mod guard;
mod iommu;
mod machine;
mod pci;
mod report;
mod test;
mod vcm;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use core::future::Future;
use core::pin::Pin;

use super::jobs;

/// Success, or what went wrong, in one line.
pub type CommandResult = Result<(), String>;
/// A command on its way. Dropping it stops it.
pub type CommandFuture = Pin<Box<dyn Future<Output = CommandResult> + Send>>;

/// A command.
pub struct Command {
    /// What to type.
    pub name: &'static str,
    /// Its arguments.
    pub usage: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// Runs it with its arguments.
    pub run: fn(Vec<String>) -> CommandFuture,
}

/// A command, asynchronous or one that needs no waiting.
macro_rules! command {
    ($name:literal, $usage:literal, $about:literal, async $run:path) => {
        Command {
            name: $name,
            usage: $usage,
            about: $about,
            run: |args| Box::pin($run(args)),
        }
    };
    ($name:literal, $usage:literal, $about:literal, $run:path) => {
        Command {
            name: $name,
            usage: $usage,
            about: $about,
            run: |args| Box::pin(async move { $run(&args) }),
        }
    };
}

static COMMANDS: &[Command] = &[
    command!(
        "help",
        "[NAME]",
        "lists the commands, or explains one",
        help
    ),
    command!(
        "version",
        "",
        "this kernel, and how it was started",
        machine::version
    ),
    command!("dmesg", "", "the log", machine::dmesg),
    command!(
        "cpus",
        "[-v]",
        "the CPUs and what they have done; -v shows what they are",
        machine::cpus
    ),
    command!("cpu", "offline|online N", "parks a CPU, or starts it again", async machine::cpu),
    command!("mem", "[-v]", "memory in use; -v shows the map of it", async machine::mem),
    command!("irqs", "", "vectors and who owns them", machine::irqs),
    command!("tasks", "", "the tasks", machine::tasks),
    command!(
        "acpi",
        "[-x]",
        "firmware's tables; -x dumps those that matter",
        machine::acpi
    ),
    command!(
        "lspci",
        "[-v|-x BB:DD.F]",
        "PCI functions; -v shows their resources, -x dumps one",
        pci::lspci
    ),
    command!("slots", "", "PCI Express slots and their state", pci::slots),
    command!("pci", "remove BB:DD.F|rescan", "takes a function away; finds them", async pci::pci),
    command!("unbind", "BB:DD.F", "takes an engine from its driver", async pci::unbind),
    command!("bind", "BB:DD.F DRIVER", "gives it back", async pci::bind),
    command!("regs", "", "the registers of all engines", dma::regs),
    command!(
        "dma",
        "",
        "DMA devices, their channels and what they did",
        dma::dma
    ),
    command!("dmatest", "KEY=VALUE...", "tests channels as Linux does", async dma::test),
    command!(
        "dmabuf",
        "",
        "the shared buffers there are",
        buffers::dmabuf
    ),
    command!(
        "fences",
        "",
        "the fences of shared buffers",
        buffers::fences
    ),
    command!(
        "iommu",
        "",
        "units, what each device reaches, and who strayed",
        iommu::iommu
    ),
    command!(
        "resv",
        "",
        "tickets: what they hold and wait for",
        buffers::resv
    ),
    command!(
        "vcm",
        "[new SIZE|ref N|bind N [CHUNK]|unbind N|unreserve N|copy SIZE CHUNK]",
        "contiguous addresses, who has reserved them; makes some to try, copies what is scattered",
        async vcm::vcm
    ),
    command!(
        "audit",
        "",
        "what exists against what there is reason for",
        async dma::audit
    ),
    command!("bench", "[NAME KEY=VALUE...]", "measures; without a name, lists what", async bench::bench),
    command!(
        "report",
        "",
        "all that a maintainer needs from this machine; docs/hardware.md",
        async report::report
    ),
    command!("jobs", "", "commands in the background", list_jobs),
    command!("stop", "N", "stops a command in the background", stop),
    command!(
        "test",
        "[SUITE]",
        "the test suites in the kernel, as fences, resv, pipeline",
        async test::test
    ),
    command!("guard", "fill|check", "marks free memory; sees whether anybody wrote there", async guard::guard),
    command!(
        "crash",
        "panic|stack|fault",
        "fails on purpose, to show the report",
        crash::crash
    ),
    command!("reboot", "", "restarts the machine", machine::reboot),
    command!("poweroff", "", "turns the machine off", machine::poweroff),
];

/// The command of this name.
pub fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

/// The names that start with `word`.
pub fn complete(word: &str) -> Vec<&'static str> {
    COMMANDS
        .iter()
        .map(|command| command.name)
        .filter(|name| name.starts_with(word))
        .collect()
}

/// Refuses arguments where there are none to give.
fn no_arguments(args: &[String]) -> CommandResult {
    args.first().map_or(Ok(()), |word| {
        Err(format!("takes no argument, not {word:?}"))
    })
}

/// Whether the one argument `flag` is given.
fn flag(args: &[String], flag: &str) -> Result<bool, String> {
    match args {
        [] => Ok(false),
        [word] if word == flag => Ok(true),
        [word, ..] => Err(format!("takes {flag} alone, not {word:?}")),
    }
}

/// Bytes in rows of 16, each after the offset of its first.
fn hex(bytes: &[u8]) {
    for (row, bytes) in bytes.chunks(16).enumerate() {
        let mut line = format!("        {:03x}:", 16 * row);
        // Writing to a string cannot fail.
        let _ = bytes
            .iter()
            .try_for_each(|byte| write!(line, " {byte:02x}"));
        crate::println!("{line}");
    }
}

fn help(args: &[String]) -> CommandResult {
    match args {
        [] => {
            for command in COMMANDS {
                let call = format!("{} {}", command.name, command.usage);
                crate::println!("{call:28} {}", command.about);
            }
            crate::println!(
                "{:28} {}",
                "COMMAND &",
                "runs it in the background; Ctrl-C stops one"
            );
            Ok(())
        }
        [name] => {
            let command = find(name).ok_or_else(|| format!("no command {name:?}"))?;
            crate::println!("{} {}: {}", command.name, command.usage, command.about);
            Ok(())
        }
        _ => Err("one name at most".into()),
    }
}

fn list_jobs(args: &[String]) -> CommandResult {
    no_arguments(args)?;
    for (number, text) in jobs::list() {
        crate::println!("[{number}] {text}");
    }
    Ok(())
}

fn stop(args: &[String]) -> CommandResult {
    let [number] = args else {
        return Err("wants the number of a job".into());
    };
    let number = number
        .parse()
        .map_err(|_| format!("{number:?} is no number"))?;
    if jobs::stop(number) {
        Ok(())
    } else {
        Err(format!("no job {number}"))
    }
}
