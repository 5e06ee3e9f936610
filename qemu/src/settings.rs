//! The variables of `make run`, checked: a bad value is one clear line and exit status 2.

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::iso::ISO;
use crate::passthrough;

/// How an engine interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Irq {
    /// One message; the only kind with which QEMU survives a removal.
    Msi,
    /// A message per channel.
    Msix,
    /// The wire.
    Intx,
}

impl Irq {
    /// As in `IRQ=` and in the engine's `--irq`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Msi => "msi",
            Self::Msix => "msix",
            Self::Intx => "intx",
        }
    }
}

/// What executes guest code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// QEMU's translator: runs everywhere.
    Tcg,
    /// The host's virtualisation, for those who have it.
    Kvm,
}

/// What boots the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// QEMU itself hands the image over, by PVH.
    Direct,
    /// SeaBIOS boots the bootable image.
    Bios,
    /// OVMF does.
    Uefi,
}

/// What the bootable image is to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Media {
    /// A CD.
    Cd,
    /// A USB stick.
    Usb,
}

/// The board.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Chipset {
    /// PCI Express, with a slot for each engine.
    Q35,
    /// One bus, and configuration space by ports.
    I440fx,
}

/// Where the guest's first serial port goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Serial {
    /// This terminal, with QEMU's monitor behind Ctrl-A.
    Terminal,
    /// A socket in the run directory.
    Socket,
    /// Nowhere: the machine has no serial ports.
    None,
}

/// A machine and its engines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// `CPUS`
    pub cpus: u32,
    /// `MEM` in MiB
    pub mem_mib: u64,
    /// `IOAT`: engines, each behind a root port of its own
    pub engines: u32,
    /// `NUMA`: nodes, over which CPUs, memory and engines are spread
    pub nodes: u32,
    /// `CHANNELS` of each engine
    pub channels: u32,
    /// `WHERE=root`: engines in the root complex, as Xeons have them, and not behind ports
    pub root: bool,
    /// `PASSTHROUGH`: a real engine of this host, beside the others
    pub passthrough: Option<String>,
    /// `EDU`: QEMU's educational devices, on the root bus
    pub edu: u32,
    /// `CBVER`
    pub cbver: String,
    /// `IRQ`
    pub irq: Irq,
    /// `ACCEL`
    pub accel: Accel,
    /// `FIRMWARE`
    pub firmware: Firmware,
    /// `MEDIA`
    pub media: Media,
    /// `MACHINE`
    pub chipset: Chipset,
    /// `CPU`: a model of QEMU's, or nothing for all that it has
    pub cpu: Option<String>,
    /// `X2APIC`; nothing for what the model has
    pub x2apic: Option<bool>,
    /// `HPET`
    pub hpet: bool,
    /// `ICOUNT=1`: an instruction takes a nanosecond
    pub icount: bool,
    /// `IOMMU`: engines reach memory through QEMU's intel-iommu
    pub iommu: bool,
    /// `SERIAL`
    pub serial: Serial,
    /// `SCREEN=on`: a VGA adapter, on whose picture the kernel writes where firmware leaves it one
    pub screen: bool,
    /// `KERNEL`: the image, a PVH ELF
    pub kernel: String,
    /// `BIOS`: another firmware, as QEMU's `-bios` takes it
    pub bios: Option<String>,
    /// `ACPI`: tables in place of the firmware's, as they are to lie from [`ACPI_AT`] on
    pub acpi: Option<String>,
    /// `QEMU`: a path, or nothing to find one
    pub qemu: Option<String>,
    /// `ENGINE`: a path, or nothing for `build/ioat-model`
    pub engine: Option<String>,
    /// `FAULT`: what each engine gets as `--fault`; with the engine's number, for that one alone
    pub faults: Vec<(Option<u32>, String)>,
    /// `ANSWER`: milliseconds that QEMU waits for an engine's answer; nothing for its own default
    pub answer_ms: Option<u32>,
    /// `CMD`: console commands to run, then power off
    pub commands: Option<String>,
    /// `APPEND`: more words for the kernel command line
    pub append: String,
    /// `TIMEOUT`: seconds that `CMD` may take
    pub timeout_s: u64,
    /// `GDB`: TCP port of `make debug`
    pub gdb_port: u16,
    /// `V=1`: print the command lines first
    pub verbose: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cpus: 4,
            mem_mib: 512,
            engines: 2,
            nodes: 1,
            channels: 4,
            root: false,
            passthrough: None,
            edu: 0,
            cbver: "3.2".into(),
            irq: Irq::Msi,
            accel: Accel::Tcg,
            firmware: Firmware::Direct,
            media: Media::Cd,
            chipset: Chipset::Q35,
            cpu: None,
            x2apic: None,
            hpet: true,
            icount: false,
            iommu: false,
            serial: Serial::Terminal,
            screen: false,
            kernel: "build/longshore.elf".into(),
            bios: None,
            acpi: None,
            qemu: None,
            engine: None,
            faults: Vec::new(),
            answer_ms: None,
            commands: None,
            append: String::new(),
            timeout_s: 600,
            gdb_port: 1234,
            verbose: false,
        }
    }
}

/// For how long QEMU waits for the answer of an engine that is to freeze, unless `ANSWER` says: a
/// CPU of the guest stands still meanwhile, by QEMU's own default for 5 s. Not much less: QEMU ends
/// itself some time after an answer that came too late, as from an engine on a busy host.
const FREEZE_ANSWER_MS: u32 = 500;

/// Where tables of one's own lie, their root pointer first: memory that neither firmware nor loader nor
/// kernel uses. There is room for 56 KiB.
pub const ACPI_AT: u64 = 0x9_0000;

/// Longest kernel command line that the kernel keeps, in bytes.
const COMMAND_LINE_LIMIT: usize = 2048;

impl Settings {
    /// Reads all variables; `get` gives a variable's value. An empty value means the default.
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let vars = Variables { get };
        let default = Self::default();
        let passthrough = vars.get("PASSTHROUGH");
        if let Some(address) = &passthrough {
            if !passthrough::is_address(address) {
                return Err(bad("PASSTHROUGH", address, "BB:DD.F, as lspci prints"));
            }
            if vars.get("ACCEL").is_some_and(|accel| accel == "tcg") {
                return Err(Failure::usage(format!(
                    "PASSTHROUGH={address} goes by KVM: leave ACCEL=tcg out"
                )));
            }
        }
        let settings = Self {
            cpus: vars.number("CPUS", default.cpus, 1, 255)?,
            mem_mib: vars
                .get("MEM")
                .map_or(Ok(default.mem_mib), |value| memory(&value))?,
            engines: vars.number("IOAT", default.engines, 0, 16)?,
            nodes: vars.number("NUMA", default.nodes, 1, 64)?,
            channels: vars.number("CHANNELS", default.channels, 1, 8)?,
            root: vars.one_of("WHERE", &["port", "root"])? == "root",
            edu: vars.number("EDU", default.edu, 0, 16)?,
            iommu: vars.one_of("IOMMU", &["off", "on"])? == "on",
            cbver: vars.one_of("CBVER", &["3.2", "3.3", "3.4"])?.to_string(),
            irq: match vars.one_of("IRQ", &["msi", "msix", "intx"])? {
                "msix" => Irq::Msix,
                "intx" => Irq::Intx,
                _ => Irq::Msi,
            },
            accel: match vars.one_of("ACCEL", &["tcg", "kvm"])? {
                "tcg" if passthrough.is_none() => Accel::Tcg,
                _ => Accel::Kvm,
            },
            passthrough,
            firmware: match vars.one_of("FIRMWARE", &["direct", "bios", "uefi"])? {
                "bios" => Firmware::Bios,
                "uefi" => Firmware::Uefi,
                _ => Firmware::Direct,
            },
            media: match vars.one_of("MEDIA", &["cd", "usb"])? {
                "usb" => Media::Usb,
                _ => Media::Cd,
            },
            chipset: match vars.one_of("MACHINE", &["q35", "pc"])? {
                "pc" => Chipset::I440fx,
                _ => Chipset::Q35,
            },
            cpu: vars.cpu()?,
            x2apic: match vars.one_of("X2APIC", &["", "on", "off"])? {
                "on" => Some(true),
                "off" => Some(false),
                _ => None,
            },
            hpet: vars.one_of("HPET", &["on", "off"])? == "on",
            icount: vars.one_of("ICOUNT", &["0", "1"])? == "1",
            serial: match vars.one_of("SERIAL", &["terminal", "socket", "none"])? {
                "socket" => Serial::Socket,
                "none" => Serial::None,
                _ => Serial::Terminal,
            },
            screen: vars.one_of("SCREEN", &["off", "on"])? == "on",
            kernel: vars.get("KERNEL").unwrap_or(default.kernel),
            bios: vars.get("BIOS"),
            acpi: vars.get("ACPI"),
            qemu: vars.get("QEMU"),
            engine: vars.get("ENGINE"),
            faults: vars.faults()?,
            answer_ms: match vars.get("ANSWER") {
                Some(_) => Some(vars.number("ANSWER", 0, 1, 60_000)?),
                None => None,
            },
            commands: vars.get("CMD"),
            append: vars.get("APPEND").unwrap_or_default(),
            timeout_s: vars.number("TIMEOUT", default.timeout_s, 1, 1_000_000)?,
            gdb_port: vars.number("GDB", default.gdb_port, 1, u16::MAX)?,
            verbose: vars.one_of("V", &["0", "1"])? == "1",
        };
        settings.check()?;
        if settings.firmware != Firmware::Direct && vars.get("KERNEL").is_some() {
            return Err(Failure::usage(format!(
                "FIRMWARE boots {ISO}, which holds a kernel: leave KERNEL out"
            )));
        }
        Ok(settings)
    }

    /// What single values do not show.
    fn check(&self) -> Result<(), Failure> {
        if let Some(commands) = &self.commands {
            if commands.contains(['"', '\n', '\r']) {
                return Err(Failure::usage(
                    "CMD=…: no double quotes and no line breaks in it",
                ));
            }
            if self.serial != Serial::Terminal {
                return Err(Failure::usage(
                    "CMD=… reads the console itself: leave SERIAL out",
                ));
            }
        }
        let contradictions = [
            (
                self.icount && self.accel == Accel::Kvm,
                "ICOUNT=1 needs ACCEL=tcg",
            ),
            (
                self.icount && self.x2apic == Some(true),
                "ICOUNT=1 needs X2APIC=off",
            ),
            (
                self.media == Media::Usb && self.firmware == Firmware::Direct,
                "MEDIA=usb needs FIRMWARE=bios or uefi",
            ),
            (
                self.bios.is_some() && self.firmware == Firmware::Uefi,
                "FIRMWARE=uefi brings its own: leave BIOS out",
            ),
            (
                self.iommu && self.chipset == Chipset::I440fx,
                "MACHINE=pc has no IOMMU: IOMMU=on needs q35",
            ),
            (
                (self.root || self.passthrough.is_some()) && self.chipset == Chipset::I440fx,
                "MACHINE=pc has one bus: WHERE=root and PASSTHROUGH need q35",
            ),
        ];
        if let Some((_, message)) = contradictions.iter().find(|(found, _)| *found) {
            return Err(Failure::usage(*message));
        }
        if self.nodes > self.cpus {
            return Err(Failure::usage(format!(
                "NUMA={}: a node without a CPU, of which there are {}",
                self.nodes, self.cpus
            )));
        }
        let line = self.command_line().len();
        if line > COMMAND_LINE_LIMIT {
            return Err(Failure::usage(format!(
                "CMD and APPEND make a kernel command line of {line} bytes: at most {COMMAND_LINE_LIMIT}"
            )));
        }
        for engine in self.faults.iter().filter_map(|(engine, _)| *engine) {
            if engine >= self.engines {
                return Err(Failure::usage(format!(
                    "FAULT names ioat{engine}, and there are {} engines",
                    self.engines
                )));
            }
        }
        Ok(())
    }

    /// The kernel command line.
    pub fn command_line(&self) -> String {
        let run = self
            .commands
            .as_ref()
            .map(|commands| format!("run=\"{commands}\""));
        let iommu = self.iommu.then(|| "iommu=on".into());
        let acpi = self
            .acpi
            .as_ref()
            .map(|_| format!("acpi_rsdp={ACPI_AT:#x}"));
        let append = (!self.append.is_empty()).then(|| self.append.clone());
        run.into_iter()
            .chain(iommu)
            .chain(acpi)
            .chain(append)
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// The `--fault` values of one engine.
    pub fn faults_of(&self, engine: u32) -> impl Iterator<Item = &str> {
        self.faults
            .iter()
            .filter(move |(only, _)| only.is_none_or(|only| only == engine))
            .map(|(_, spec)| spec.as_str())
    }
}

impl Settings {
    /// For how many milliseconds QEMU waits for an answer of this engine, where not by its default.
    pub fn answer_ms_of(&self, engine: u32) -> Option<u32> {
        let freezes = self
            .faults_of(engine)
            .any(|spec| spec.starts_with("freeze@"));
        self.answer_ms.or(freezes.then_some(FREEZE_ANSWER_MS))
    }
}

struct Variables<G> {
    get: G,
}

impl<G: Fn(&str) -> Option<String>> Variables<G> {
    fn get(&self, name: &str) -> Option<String> {
        (self.get)(name)
            .map(|value| value.trim().to_string())
            .filter(|value| !value.is_empty())
    }

    fn number<N>(&self, name: &str, default: N, min: N, max: N) -> Result<N, Failure>
    where
        N: std::str::FromStr + PartialOrd + std::fmt::Display,
    {
        let Some(value) = self.get(name) else {
            return Ok(default);
        };
        match value.parse::<N>() {
            Ok(number) if number >= min && number <= max => Ok(number),
            _ => Err(bad(name, &value, &format!("a number from {min} to {max}"))),
        }
    }

    /// One of `allowed`, the first of which is the default.
    fn one_of(&self, name: &str, allowed: &[&'static str]) -> Result<&'static str, Failure> {
        let Some(value) = self.get(name) else {
            return Ok(allowed[0]);
        };
        let known = allowed.iter().find(|known| **known == value);
        let named = allowed.iter().filter(|name| !name.is_empty()).copied();
        known
            .copied()
            .ok_or_else(|| bad(name, &value, &named.collect::<Vec<_>>().join(", ")))
    }

    /// The name of a model: a word.
    fn cpu(&self) -> Result<Option<String>, Failure> {
        let model = self.get("CPU");
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        match &model {
            Some(name) if !name.chars().all(plain) => Err(bad("CPU", name, "the name of a model")),
            _ => Ok(model),
        }
    }

    /// Words `SPEC` or `ioatN:SPEC`.
    fn faults(&self) -> Result<Vec<(Option<u32>, String)>, Failure> {
        let value = self.get("FAULT").unwrap_or_default();
        let mut faults = Vec::new();
        for word in value.split_whitespace() {
            let fault = match word
                .strip_prefix("ioat")
                .and_then(|rest| rest.split_once(':'))
            {
                Some((number, spec)) => {
                    let engine = number.parse().map_err(|_| {
                        bad(
                            "FAULT",
                            word,
                            "SPEC or ioatN:SPEC, see build/ioat-model --help",
                        )
                    })?;
                    (Some(engine), spec.to_string())
                }
                None => (None, word.to_string()),
            };
            faults.push(fault);
        }
        Ok(faults)
    }
}

fn bad(name: &str, value: &str, wanted: &str) -> Failure {
    Failure::usage(format!("{name}={value}: wants {wanted}"))
}

/// `256M` or `6G`, in MiB.
fn memory(value: &str) -> Result<u64, Failure> {
    let number = |text: &str| text.parse::<u64>().ok();
    let mib = match (value.strip_suffix('M'), value.strip_suffix('G')) {
        (Some(mib), _) => number(mib),
        (_, Some(gib)) => number(gib).and_then(|gib| gib.checked_mul(1024)),
        _ => None,
    };
    mib.filter(|mib| (64..=1024 * 1024).contains(mib))
        .ok_or_else(|| bad("MEM", value, "64M to 1024G, as in 512M or 6G"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Settings, Failure> {
        Settings::from_variables(|name| {
            vars.iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn nothing_said_means_the_contracts_defaults() {
        let settings = read(&[]).unwrap();
        assert_eq!(settings, Settings::default());
        assert_eq!(
            (settings.cpus, settings.mem_mib, settings.engines),
            (4, 512, 2)
        );
        assert_eq!((settings.channels, settings.cbver.as_str()), (4, "3.2"));
        assert_eq!((settings.irq, settings.accel), (Irq::Msi, Accel::Tcg));
        assert_eq!(read(&[("CPUS", ""), ("QEMU", " ")]).unwrap(), settings);
        assert_eq!(settings.command_line(), "");
    }

    #[test]
    fn good_values_arrive() {
        let settings = read(&[
            ("CPUS", "16"),
            ("MEM", "6G"),
            ("IOAT", "0"),
            ("CHANNELS", "1"),
            ("CBVER", "3.4"),
            ("IRQ", "intx"),
            ("ACCEL", "kvm"),
            ("V", "1"),
            ("CMD", "version; cpus"),
            ("APPEND", "loglevel=debug"),
            ("IOMMU", "on"),
            ("NUMA", "2"),
            ("EDU", "1"),
            ("SCREEN", "on"),
            ("FIRMWARE", "uefi"),
            ("MEDIA", "usb"),
            ("CPU", "Skylake-Server-v4"),
            ("X2APIC", "on"),
            ("HPET", "off"),
        ])
        .unwrap();
        assert_eq!(
            (settings.firmware, settings.media),
            (Firmware::Uefi, Media::Usb)
        );
        assert_eq!(settings.cpu.as_deref(), Some("Skylake-Server-v4"));
        assert_eq!((settings.x2apic, settings.hpet), (Some(true), false));
        assert_eq!(
            (settings.cpus, settings.mem_mib, settings.engines),
            (16, 6144, 0)
        );
        assert_eq!((settings.cbver.as_str(), settings.irq), ("3.4", Irq::Intx));
        assert_eq!((settings.accel, settings.verbose), (Accel::Kvm, true));
        assert_eq!((settings.edu, settings.nodes), (1, 2));
        assert!(settings.iommu && settings.screen);
        assert_eq!(
            settings.command_line(),
            "run=\"version; cpus\" iommu=on loglevel=debug"
        );
    }

    #[test]
    fn bad_values_are_one_line_and_status_2() {
        let long = "x".repeat(2048);
        let bad = [
            ("CPUS", "0"),
            ("CPUS", "256"),
            ("CPUS", "four"),
            ("CPUS", "-1"),
            ("MEM", "6"),
            ("MEM", "6T"),
            ("MEM", "G"),
            ("MEM", "1M"),
            ("MEM", "99999999999999999999G"),
            ("MEM", "18014398509481985G"),
            ("IOAT", "17"),
            ("CHANNELS", "0"),
            ("CBVER", "3"),
            ("IRQ", "MSI"),
            ("ACCEL", "xen"),
            ("ICOUNT", "2"),
            ("SERIAL", "pipe"),
            ("SCREEN", "big"),
            ("V", "yes"),
            ("TIMEOUT", "0"),
            ("GDB", "65536"),
            ("ANSWER", "0"),
            ("ANSWER", "soon"),
            ("IOMMU", "maybe"),
            ("FIRMWARE", "openfirmware"),
            ("MEDIA", "floppy"),
            ("MEDIA", "usb"),
            ("MACHINE", "isapc"),
            ("CPU", "max,+x2apic"),
            ("X2APIC", "1"),
            ("HPET", "no"),
            ("NUMA", "0"),
            ("NUMA", "5"),
            ("NUMA", "65"),
            ("NUMA", "x"),
            ("EDU", "17"),
            ("PASSTHROUGH", "00:04.8"),
            ("WHERE", "slot"),
            ("PASSTHROUGH", "all"),
            ("CMD", "echo \"x\""),
            ("CMD", "a\nb"),
            ("CMD", long.as_str()),
            ("FAULT", "ioatx:chancnt=0"),
            ("FAULT", "ioat2:chancnt=0"),
        ];
        for (name, value) in bad {
            let failure = read(&[(name, value)]).unwrap_err();
            assert_eq!(failure.status, 2, "{name}={value}");
            assert!(failure.message.contains(name), "{}", failure.message);
            assert!(!failure.message.trim_end().contains('\n') || value.contains('\n'));
        }
        for together in [
            [("CMD", "x"), ("SERIAL", "socket")],
            [("CMD", "x"), ("SERIAL", "none")],
            [("ICOUNT", "1"), ("ACCEL", "kvm")],
            [("ICOUNT", "1"), ("X2APIC", "on")],
            [("FIRMWARE", "uefi"), ("BIOS", "qboot.rom")],
            [("FIRMWARE", "bios"), ("KERNEL", "build/longshore-test.elf")],
            [("MACHINE", "pc"), ("IOMMU", "on")],
            [("MACHINE", "pc"), ("WHERE", "root")],
        ] {
            let failure = read(&together).unwrap_err();
            assert_eq!(failure.status, 2, "{together:?}");
        }
    }

    #[test]
    fn a_real_engine_goes_by_kvm() {
        let settings = read(&[("PASSTHROUGH", "00:04.0"), ("WHERE", "root")]).unwrap();
        assert_eq!(settings.accel, Accel::Kvm);
        assert_eq!(settings.passthrough.as_deref(), Some("00:04.0"));
        assert!(settings.root);
        let failure = read(&[("PASSTHROUGH", "00:04.0"), ("ACCEL", "tcg")]).unwrap_err();
        assert!(failure.status == 2 && failure.message.contains("KVM"));
        assert!(read(&[("PASSTHROUGH", "00:04.0"), ("ICOUNT", "1")]).is_err());
    }

    #[test]
    fn faults_go_to_all_engines_or_to_one() {
        let settings = read(&[("FAULT", "chancnt=0 ioat1:hang@100")]).unwrap();
        assert_eq!(settings.faults_of(0).collect::<Vec<_>>(), ["chancnt=0"]);
        assert_eq!(
            settings.faults_of(1).collect::<Vec<_>>(),
            ["chancnt=0", "hang@100"]
        );
    }

    #[test]
    fn an_engine_that_is_to_freeze_is_not_waited_for_long() {
        let settings = read(&[("FAULT", "ioat1:freeze@100")]).unwrap();
        let answers = [0, 1].map(|engine| settings.answer_ms_of(engine));
        assert_eq!(answers, [None, Some(FREEZE_ANSWER_MS)]);
        let settings = read(&[("FAULT", "ioat1:freeze@100"), ("ANSWER", "900")]).unwrap();
        let answers = [0, 1].map(|engine| settings.answer_ms_of(engine));
        assert_eq!(answers, [Some(900); 2]);
    }
}
