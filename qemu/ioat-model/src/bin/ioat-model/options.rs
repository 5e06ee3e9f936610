//! The command line.

use std::path::PathBuf;

use clap::Parser;
use clap::error::ErrorKind;
use ioat_model::{EngineConfig, FAULT_HELP, Fault, Irq, MAX_CHANNELS, Way};
use ioat_spec::CbVer;
use log::LevelFilter;

/// An Intel I/OAT DMA engine in software. Serves one vfio-user client (QEMU's vfio-user-pci) on a
/// UNIX socket, and ends when it disconnects.
#[derive(Debug, Parser)]
#[command(name = "ioat-model", version, after_help = after_help())]
pub(crate) struct Options {
    /// The socket to serve; a stale one is replaced
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: PathBuf,
    /// DMA channels
    #[arg(long, value_name = "N", default_value = "4", value_parser = channels)]
    channels: usize,
    /// Version: 3.2, 3.3 or 3.4
    #[arg(long, value_name = "VERSION", default_value = "3.2", value_parser = cbver)]
    cbver: CbVer,
    /// PCI device ID in hex [default: 2021 for 3.2, 6f50 for 3.3, 0b00 for 3.4]
    #[arg(long, value_name = "HEX", value_parser = device_id)]
    device_id: Option<u16>,
    /// Interrupt capability: msi, msix or intx. QEMU cannot hot-remove a device with msix
    #[arg(long, value_name = "KIND", default_value = "msi", value_parser = irq)]
    irq: Irq,
    /// Misbehave; may be given several times
    #[arg(long = "fault", value_name = "SPEC")]
    faults: Vec<Fault>,
    /// Write the statistics there, as JSON, at disconnect and on SIGTERM
    #[arg(long, value_name = "FILE")]
    pub(crate) stats: Option<PathBuf>,
    /// Write the ranges of guest addresses that are mapped there, whenever they change
    #[arg(long, value_name = "FILE")]
    pub(crate) iovas: Option<PathBuf>,
    /// Let strays to another engine's addresses take them from there: the --iovas of that engine
    #[arg(long, value_name = "FILE")]
    pub(crate) foreign: Option<PathBuf>,
    /// Log level on standard error: off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "warn", value_parser = level)]
    pub(crate) log: LevelFilter,
}

fn after_help() -> String {
    let faults: String = FAULT_HELP
        .lines()
        .map(|line| format!("  {line}\n"))
        .collect();
    format!(
        "Faults; data descriptors are copies and fills, counted over all channels from 1:\n\
         {faults}\n\
         Signals:\n  \
         SIGTERM, SIGINT  write the statistics, remove the socket, end\n  \
         SIGUSR1          the engine is gone: registers read all ones, DMA stops, and accesses\n  \
         \x20                are still counted (mmio_after_gone)\n  \
         SIGUSR2          the engine freezes: channels stop in the middle of what they do, and no\n  \
         \x20                request is answered any more, until SIGUSR1; only a signal ends it then\n\n\
         Statistics: mmio_reads mmio_writes mmio_after_gone config_after_gone doorbells interrupts\n\
         descriptors completions bytes faults, and for each kind of strays stray_AIM_WAY_attempted,\n\
         _landed, _refused, _unanswered and _remapped (in what was mapped anew meanwhile).\n\n\
         Exit status: 0 after the client has disconnected or a signal, 1 if it could not serve,\n\
         2 for a bad option."
    )
}

impl Options {
    /// The command line's options; ends the program where it asks for help, or is wrong, with one
    /// line that says how.
    pub(crate) fn from_command_line() -> Self {
        Self::try_parse().unwrap_or_else(|error| match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => error.exit(),
            _ => {
                eprintln!("ioat-model: {}", one_line(&error.to_string()));
                std::process::exit(2);
            }
        })
    }

    /// The engine that they ask for.
    pub(crate) fn engine(&self) -> EngineConfig {
        let part = EngineConfig::new(self.cbver);
        EngineConfig {
            channels: self.channels,
            device_id: self.device_id.unwrap_or(part.device_id),
            irq: self.irq,
            faults: self.faults.clone(),
            ..part
        }
    }

    /// Whether nothing shall be answered.
    pub(crate) fn silent(&self) -> bool {
        self.faults.contains(&Fault::Silent)
    }

    /// Whether memory is reached by messages alone.
    pub(crate) fn dma_by_messages(&self) -> bool {
        self.faults.contains(&Fault::Messages)
    }

    /// Whether the client is asked for accesses.
    pub(crate) fn sends_messages(&self) -> bool {
        let by_message =
            |fault: &Fault| matches!(fault, Fault::Stray(stray) if stray.way != Way::Mapped);
        self.dma_by_messages() || self.faults.iter().any(by_message)
    }
}

/// The first paragraph of clap's message, without its heading.
fn one_line(message: &str) -> String {
    let paragraph = message.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = paragraph.split_whitespace().collect();
    words.join(" ").trim_start_matches("error: ").to_string()
}

fn channels(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|n| (1..=MAX_CHANNELS).contains(n))
        .ok_or_else(|| format!("1 to {MAX_CHANNELS}"))
}

fn cbver(text: &str) -> Result<CbVer, &'static str> {
    match text {
        "3.2" => Ok(CbVer::V3_2),
        "3.3" => Ok(CbVer::V3_3),
        "3.4" => Ok(CbVer::V3_4),
        _ => Err("3.2, 3.3 or 3.4"),
    }
}

fn device_id(text: &str) -> Result<u16, &'static str> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u16::from_str_radix(digits, 16).map_err(|_| "up to four hex digits")
}

fn level(text: &str) -> Result<LevelFilter, &'static str> {
    text.parse()
        .map_err(|_| "off, error, warn, info, debug or trace")
}

fn irq(text: &str) -> Result<Irq, &'static str> {
    match text {
        "msi" => Ok(Irq::Msi),
        "msix" => Ok(Irq::MsiX),
        "intx" => Ok(Irq::Intx),
        _ => Err("msi, msix or intx"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, String> {
        Options::try_parse_from([&["ioat-model"], args].concat())
            .map_err(|error| one_line(&error.to_string()))
    }

    #[test]
    fn defaults_are_those_of_the_interface() {
        let options = parse(&["--socket", "s"]).unwrap();
        let engine = options.engine();
        assert_eq!((engine.channels, engine.irq), (4, Irq::Msi));
        assert_eq!((engine.cbver, engine.device_id), (CbVer::V3_2, 0x2021));
        assert_eq!(options.log, LevelFilter::Warn);
        for (cbver, id) in [("3.3", 0x6f50), ("3.4", 0x0b00)] {
            let options = parse(&["--socket", "s", "--cbver", cbver]).unwrap();
            assert_eq!(options.engine().device_id, id);
        }
    }

    #[test]
    fn options_arrive() {
        let options = parse(&[
            "--socket",
            "s",
            "--channels",
            "8",
            "--device-id",
            "0x6f20",
            "--irq",
            "msix",
            "--fault",
            "hang@3",
            "--fault",
            "silent",
            "--log",
            "debug",
            "--stats",
            "f",
        ])
        .unwrap();
        let engine = options.engine();
        assert_eq!((engine.channels, engine.device_id), (8, 0x6f20));
        assert_eq!(engine.irq, Irq::MsiX);
        assert_eq!(engine.faults, [Fault::Hang(3), Fault::Silent]);
        assert!(options.silent());
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        for (args, says) in [
            (vec![], "--socket"),
            (vec!["--socket", "s", "--channels", "0"], "1 to 8"),
            (vec!["--socket", "s", "--channels", "9"], "1 to 8"),
            (vec!["--socket", "s", "--cbver", "3.1"], "3.2, 3.3 or 3.4"),
            (vec!["--socket", "s", "--device-id", "xyz"], "hex"),
            (vec!["--socket", "s", "--irq", "smoke"], "msi, msix or intx"),
            (vec!["--socket", "s", "--fault", "gremlin"], "gremlin"),
            (vec!["--socket", "s", "--log", "loud"], "loud"),
            (vec!["--socket", "s", "--speed", "1"], "--speed"),
        ] {
            let message = parse(&args).unwrap_err();
            assert!(message.contains(says), "{message:?}");
            assert!(!message.contains('\n') && !message.starts_with("error"));
        }
    }
}
