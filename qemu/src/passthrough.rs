//! `PASSTHROUGH=BB:DD.F`: a real engine of this host, handed to QEMU by VFIO.
//!
//! Everything is checked before QEMU starts, whose own words would not tell what to do. Nothing of
//! the host is changed: binding the engine to vfio-pci takes root, and is left to its owner.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ioat_spec::pci::{PARTS, VENDOR_INTEL};
use rustix::process::{Resource, geteuid, getrlimit};
use serde_json::{Value, json};

use crate::failure::Failure;

/// QEMU's id of the real engine.
pub const ID: &str = "real0";

/// `BB:DD.F`, each part of that many hexadecimal digits.
pub fn is_address(text: &str) -> bool {
    let hex = |part: &str, last: u8| {
        let number = u8::from_str_radix(part, 16);
        part.len() == 2 && !part.starts_with('+') && number.is_ok_and(|number| number <= last)
    };
    text.split_once(':').is_some_and(|(bus, rest)| {
        hex(bus, 0xff)
            && rest.split_once('.').is_some_and(|(device, function)| {
                hex(device, 31) && matches!(function.as_bytes(), [b'0'..=b'7'])
            })
    })
}

/// What `-device` takes for the engine at `address`, on `bus`.
pub fn device(address: &str, bus: &str) -> Value {
    json!({ "driver": "vfio-pci", "id": ID, "host": full(address), "bus": bus })
}

/// As sysfs and QEMU name it.
fn full(address: &str) -> String {
    format!("0000:{}", address.to_ascii_lowercase())
}

/// Where the host tells of its devices.
pub struct Host {
    /// `/sys`
    pub sys: PathBuf,
    /// `/dev`
    pub dev: PathBuf,
    /// Bytes of memory that a child may lock; `None` for no limit.
    pub lockable: Option<u64>,
}

impl Default for Host {
    fn default() -> Self {
        let limit = getrlimit(Resource::Memlock).current;
        Self {
            sys: "/sys".into(),
            dev: "/dev".into(),
            lockable: limit.filter(|_| !geteuid().is_root()),
        }
    }
}

impl Host {
    /// Whether QEMU can have the engine at `address` for a guest of `mem_mib` MiB; if not, why, and
    /// what to do.
    pub fn check(&self, address: &str, mem_mib: u64) -> Result<(), Failure> {
        let no = |why: String| Failure::run(format!("PASSTHROUGH={address}: {why}"));
        let name = full(address);
        let device = self.device(&name);
        if !device.is_dir() {
            return Err(no(format!("this machine has no PCI function {name}")));
        }
        let id = |file| read_hex(&device.join(file)).unwrap_or(0);
        let (vendor, part) = (id("vendor"), id("device"));
        let known = PARTS.iter().any(|known| u32::from(known.device) == part);
        if vendor != u32::from(VENDOR_INTEL) || !known {
            return Err(no(format!(
                "{vendor:04x}:{part:04x} is no engine that Longshore drives"
            )));
        }
        let Some(group) = link(&device.join("iommu_group")) else {
            return Err(no(
                "it is in no IOMMU group: turn VT-d on in the firmware, and boot this machine with \
                 intel_iommu=on"
                    .into(),
            ));
        };
        // A group is handed out as a whole: nobody else may drive what is in it.
        let members = self.members(&group).unwrap_or_else(|| vec![name.clone()]);
        let foreign: Vec<_> = members
            .iter()
            .filter(|member| !self.is_free(member, **member == name))
            .collect();
        if !foreign.is_empty() {
            let mut why = format!("vfio-pci does not have all of IOMMU group {group}; as root:");
            why += "\n  modprobe vfio-pci";
            for member in foreign {
                let sys = format!("/sys/bus/pci/devices/{member}");
                why += &format!("\n  echo vfio-pci >{sys}/driver_override");
                if self.driver(member).is_some() {
                    why += &format!("\n  echo {member} >{sys}/driver/unbind");
                }
                why += &format!("\n  echo {member} >/sys/bus/pci/drivers_probe");
            }
            return Err(no(why));
        }
        for (file, hint) in [
            ("vfio/vfio".into(), "load the module vfio".to_string()),
            (
                format!("vfio/{group}"),
                format!("chown $USER /dev/vfio/{group}, as root"),
            ),
            (
                "kvm".into(),
                "KVM is needed, and the right to use it".into(),
            ),
        ] {
            open(&self.dev.join(&file)).map_err(|error| {
                no(match error {
                    ErrorKind::NotFound => format!("there is no /dev/{file}: {hint}"),
                    _ => format!("/dev/{file} cannot be opened ({error}): {hint}"),
                })
            })?;
        }
        // An engine reaches memory that stays where it is.
        match self.lockable {
            Some(bytes) if bytes >> 20 <= mem_mib => Err(no(format!(
                "VFIO locks the guest's {mem_mib} MiB, and `ulimit -l` allows {} KiB",
                bytes >> 10
            ))),
            _ => Ok(()),
        }
    }

    fn device(&self, name: &str) -> PathBuf {
        self.sys.join("bus/pci/devices").join(name)
    }

    fn driver(&self, name: &str) -> Option<String> {
        link(&self.device(name).join("driver"))
    }

    fn members(&self, group: &str) -> Option<Vec<String>> {
        let dir = self.sys.join("kernel/iommu_groups").join(group);
        let entries = fs::read_dir(dir.join("devices")).ok()?;
        let names = entries.flatten().map(|entry| entry.file_name());
        let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into()).collect();
        names.sort();
        Some(names)
    }

    /// Whether nothing stands against handing `name` out: its own driver must be vfio-pci where it is
    /// the one that is `wanted`; beside it nobody's, and bridges stay where they are.
    fn is_free(&self, name: &str, wanted: bool) -> bool {
        const BRIDGE: u32 = 0x0604;
        let is_bridge = || {
            let class = read_hex(&self.device(name).join("class"));
            class.is_some_and(|class| class >> 8 == BRIDGE)
        };
        match self.driver(name).as_deref() {
            Some("vfio-pci") => true,
            Some("pci-stub") | None => !wanted,
            Some(_) => !wanted && is_bridge(),
        }
    }
}

fn read_hex(path: &Path) -> Option<u32> {
    let text = fs::read_to_string(path).ok()?;
    u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

/// The last part of where a symbolic link leads.
fn link(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    Some(target.file_name()?.to_string_lossy().into())
}

fn open(path: &Path) -> Result<(), ErrorKind> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map(drop).map_err(|error| error.kind())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const AT: &str = "00:04.0";

    /// A host of files, gone when it is dropped.
    struct Fake {
        root: PathBuf,
        host: Host,
    }

    impl Fake {
        fn new() -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("longshore-host-{}-{number}", std::process::id());
            let root = std::env::temp_dir().join(name);
            let host = Host {
                sys: root.join("sys"),
                dev: root.join("dev"),
                lockable: Some(8 << 20),
            };
            Self { root, host }
        }

        fn write(&self, path: &Path, text: &str) {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        /// A function in group 7.
        fn function(&self, name: &str, vendor: &str, device: &str, class: &str) {
            let dir = self.host.device(name);
            self.write(&dir.join("vendor"), &format!("{vendor}\n"));
            self.write(&dir.join("device"), &format!("{device}\n"));
            self.write(&dir.join("class"), &format!("{class}\n"));
            let group = self.host.sys.join("kernel/iommu_groups/7/devices");
            fs::create_dir_all(&group).unwrap();
            fs::write(group.join(name), "").unwrap();
            symlink(group.parent().unwrap(), dir.join("iommu_group")).unwrap();
        }

        fn engine(&self, name: &str) {
            self.function(name, "0x8086", "0x2021", "0x088000");
        }

        fn bind(&self, name: &str, driver: &str) {
            let link = self.host.device(name).join("driver");
            let _ = fs::remove_file(&link);
            symlink(Path::new("../../drivers").join(driver), link).unwrap();
        }

        fn dev(&self, file: &str) {
            self.write(&self.host.dev.join(file), "");
        }

        /// The line that says why not.
        fn refused(&self) -> String {
            let failure = self.host.check(AT, 512).unwrap_err();
            assert_eq!(failure.status, 1);
            let start = "PASSTHROUGH=00:04.0: ";
            failure.message.strip_prefix(start).unwrap().into()
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.root);
        }
    }

    #[test]
    fn addresses_are_as_lspci_prints_them() {
        for good in [AT, "ff:1f.7", "A0:04.0"] {
            assert!(is_address(good), "{good}");
        }
        for bad in [
            "",
            "all",
            "0:4.0",
            "00:04",
            "00:04.8",
            "00:20.0",
            "00:04.0.0",
            "0000:00:04.0",
            "+0:04.0",
            "00:04.00",
        ] {
            assert!(!is_address(bad), "{bad}");
        }
        let device = device("A0:04.0", "port3");
        assert_eq!(device["host"], "0000:a0:04.0");
        assert_eq!(
            (&device["driver"], &device["bus"]),
            (&json!("vfio-pci"), &json!("port3"))
        );
    }

    /// Step by step, as somebody gets there who does what he is told.
    #[test]
    fn what_is_missing_is_said_one_after_the_other() {
        let mut fake = Fake::new();
        assert!(fake.refused().contains("no PCI function 0000:00:04.0"));
        let name = "0000:00:04.0";
        fake.engine(name);
        let link = fake.host.device(name).join("iommu_group");
        let group = fs::read_link(&link).unwrap();
        fs::remove_file(&link).unwrap();
        assert!(fake.refused().contains("intel_iommu=on"));
        symlink(group, link).unwrap();
        fake.bind(name, "ioatdma");
        let why = fake.refused();
        let commands: Vec<_> = why.lines().skip(1).map(str::trim).collect();
        let sys = "/sys/bus/pci/devices/0000:00:04.0";
        assert_eq!(
            commands,
            [
                "modprobe vfio-pci".into(),
                format!("echo vfio-pci >{sys}/driver_override"),
                format!("echo 0000:00:04.0 >{sys}/driver/unbind"),
                "echo 0000:00:04.0 >/sys/bus/pci/drivers_probe".into(),
            ]
        );
        fs::remove_file(fake.host.device(name).join("driver")).unwrap();
        assert!(!fake.refused().contains("unbind"), "it has no driver");
        fake.bind(name, "vfio-pci");
        assert!(fake.refused().starts_with("there is no /dev/vfio/vfio"));
        fake.dev("vfio/vfio");
        assert!(fake.refused().starts_with("there is no /dev/vfio/7: chown"));
        fs::create_dir_all(fake.host.dev.join("vfio/7")).unwrap();
        assert!(fake.refused().starts_with("/dev/vfio/7 cannot be opened"));
        fs::remove_dir(fake.host.dev.join("vfio/7")).unwrap();
        fake.dev("vfio/7");
        assert!(fake.refused().starts_with("there is no /dev/kvm"));
        fake.dev("kvm");
        assert!(
            fake.refused()
                .contains("512 MiB, and `ulimit -l` allows 8192 KiB")
        );
        for enough in [Some(1 << 30), None] {
            fake.host.lockable = enough;
            assert_eq!(fake.host.check(AT, 512), Ok(()));
        }
    }

    #[test]
    fn what_is_no_engine_is_not_taken() {
        for (vendor, device) in [("0x8086", "0x10d3"), ("0x1af4", "0x2021"), ("", "")] {
            let fake = Fake::new();
            fake.function("0000:00:04.0", vendor, device, "0x020000");
            assert!(fake.refused().contains("no engine"), "{vendor}:{device}");
        }
    }

    #[test]
    fn nobody_else_may_drive_what_is_in_the_group() {
        let fake = Fake::new();
        let names = [0, 1, 2].map(|function| format!("0000:00:04.{function}"));
        for name in &names {
            fake.engine(name);
        }
        fake.bind(&names[0], "vfio-pci");
        fake.bind(&names[1], "ioatdma");
        fake.function("0000:00:1c.0", "0x8086", "0x1d10", "0x060400");
        fake.bind("0000:00:1c.0", "pcieport");
        let why = fake.refused();
        assert!(why.contains("0000:00:04.1/driver/unbind"), "{why}");
        assert!(!why.contains("04.2") && !why.contains("1c.0"), "{why}");
    }
}
