//! The kernel command line: `name=value` words, a value in double quotes where it has spaces.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use log::LevelFilter;

/// Which serial port the console is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConsolePort {
    /// Port 0x3f8, or the one that the firmware's tables name.
    #[default]
    Auto,
    /// Port 0x3f8.
    Com1,
    /// Port 0x2f8.
    Com2,
}

/// What the command line asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `run=`: console commands to run, then power off.
    pub run: Option<String>,
    /// `loglevel=`: what is printed; everything down to `debug` is kept for `dmesg`.
    pub log_level: LevelFilter,
    /// `console=`.
    pub console: ConsolePort,
    /// `cpus=`: start at most this many.
    pub cpus: usize,
    /// `iommu=`.
    pub iommu: bool,
    /// `hotplug_window=`: milliseconds between the attention button and the removal.
    pub hotplug_window_ms: u64,
    /// `acpi_rsdp=`: where the ACPI root pointer lies.
    pub acpi_rsdp: Option<u64>,
    /// `stall=`: the stage of the boot that is to stand still until that is noticed.
    pub stall: Option<String>,
    /// What was not understood, to be reported once.
    pub complaints: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            run: None,
            log_level: LevelFilter::Info,
            console: ConsolePort::Auto,
            cpus: usize::MAX,
            iommu: false,
            hotplug_window_ms: 5000,
            acpi_rsdp: None,
            stall: None,
            complaints: Vec::new(),
        }
    }
}

impl Options {
    /// Reads a command line. Never fails: what it does not understand becomes a complaint.
    pub fn parse(line: &str) -> Self {
        let mut options = Self::default();
        for word in words(line) {
            let (name, value) = word.split_once('=').unwrap_or((&word, ""));
            if let Err(reason) = options.set(name, value) {
                options.complaints.push(match reason {
                    Complaint::Unknown => alloc::format!("unknown word {word:?} ignored"),
                    Complaint::Value(wanted) => {
                        alloc::format!("bad value in {word:?} ignored: wants {wanted}")
                    }
                });
            }
        }
        options
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Complaint> {
        match name {
            "run" => self.run = Some(value.to_string()),
            "loglevel" => {
                self.log_level = match value {
                    "error" => LevelFilter::Error,
                    "warn" => LevelFilter::Warn,
                    "info" => LevelFilter::Info,
                    "debug" => LevelFilter::Debug,
                    "trace" => LevelFilter::Trace,
                    _ => return Err(Complaint::Value("error, warn, info, debug or trace")),
                }
            }
            "stall" => self.stall = Some(value.to_string()),
            "console" => {
                self.console = match value {
                    "com1" => ConsolePort::Com1,
                    "com2" => ConsolePort::Com2,
                    "auto" => ConsolePort::Auto,
                    _ => return Err(Complaint::Value("com1, com2 or auto")),
                }
            }
            "cpus" => match value.parse() {
                Ok(cpus) if cpus > 0 => self.cpus = cpus,
                _ => return Err(Complaint::Value("a number above 0")),
            },
            "iommu" => {
                self.iommu = match value {
                    "on" => true,
                    "off" => false,
                    _ => return Err(Complaint::Value("on or off")),
                }
            }
            "hotplug_window" => {
                self.hotplug_window_ms = value
                    .parse()
                    .map_err(|_| Complaint::Value("milliseconds"))?;
            }
            "acpi_rsdp" => {
                let hex = value
                    .strip_prefix("0x")
                    .ok_or(Complaint::Value("0x and hex digits"))?;
                let address = u64::from_str_radix(hex, 16);
                self.acpi_rsdp = Some(address.map_err(|_| Complaint::Value("0x and hex digits"))?);
            }
            _ => return Err(Complaint::Unknown),
        }
        Ok(())
    }
}

enum Complaint {
    Unknown,
    Value(&'static str),
}

/// Splits at white space outside of double quotes; the quotes go. An open quote ends with the line. A
/// quote or a backslash behind a backslash stands for itself: so GRUB passes them on.
pub fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let (mut quoted, mut started) = (false, false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        let escaped = (c == '\\')
            .then(|| chars.next_if(|next| matches!(next, '\\' | '"' | '\'')))
            .flatten();
        match escaped.unwrap_or(c) {
            '"' if escaped.is_none() => {
                quoted = !quoted;
                started = true;
            }
            c if c.is_whitespace() && !quoted => {
                if started {
                    words.push(core::mem::take(&mut word));
                }
                started = false;
            }
            c => {
                word.push(c);
                started = true;
            }
        }
    }
    if started {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_the_contract_is_understood() {
        let options = Options::parse(
            "run=\"version; cpus\" loglevel=debug console=com2 cpus=3 iommu=on \
             hotplug_window=100 acpi_rsdp=0xE0000 stall=pci",
        );
        assert_eq!(options.run.as_deref(), Some("version; cpus"));
        assert_eq!(options.log_level, LevelFilter::Debug);
        assert_eq!(options.console, ConsolePort::Com2);
        assert_eq!(
            (options.cpus, options.iommu, options.hotplug_window_ms),
            (3, true, 100)
        );
        assert_eq!(options.acpi_rsdp, Some(0xe0000));
        assert_eq!(options.stall.as_deref(), Some("pci"));
        assert!(options.complaints.is_empty());
    }

    #[test]
    fn nonsense_is_reported_and_ignored() {
        for word in [
            "bogus",
            "loglevel=loud",
            "cpus=0",
            "cpus=many",
            "iommu=",
            "acpi_rsdp=12",
            "=",
        ] {
            let options = Options::parse(word);
            assert_eq!(options.complaints.len(), 1, "{word}");
            assert_eq!(
                Options {
                    complaints: Vec::new(),
                    ..options
                },
                Options::default()
            );
        }
    }

    #[test]
    fn quotes_may_stay_open() {
        assert_eq!(words("a \"b c\" d\"e f"), ["a", "b c", "de f"]);
        assert_eq!(words("  "), [""; 0]);
    }

    #[test]
    fn words_are_what_they_were_before_grub_quoted_them() {
        assert_eq!(
            words(r#""run=a; b" c=\"d\" e=\'f\' g=\\h i=\j \"#),
            ["run=a; b", "c=\"d\"", "e='f'", "g=\\h", "i=\\j", "\\"]
        );
    }
}
