//! QEMU's command line for a machine.
//!
//! Every engine sits behind a root port of its own, or in the root complex, and one more port stays
//! empty; an i440fx has no such ports, and engines on its one bus. Slots are PCIe native: by default q35
//! routes them through ACPI and their registers stay untouched. Guest memory is a shared memfd, so that
//! engines can map it.

use std::ops::Range;
use std::path::Path;

use serde_json::{Value, json};

use crate::passthrough;
use crate::run_dir::RunDir;
use crate::settings::{ACPI_AT, Accel, Chipset, Firmware, Serial, Settings};

/// The IOMMU, which must come before the devices behind it. In caching mode the guest says what it
/// maps anew too, without which QEMU could not tell the engines.
pub const IOMMU_DEVICE: &str = "intel-iommu,caching-mode=on,intremap=on";

/// QEMU's id of an engine.
pub fn engine_id(engine: u32) -> String {
    format!("ioat{engine}")
}

/// QEMU's id of an engine's root port.
pub fn port_id(engine: u32) -> String {
    format!("port{engine}")
}

/// The bus of the root complex.
const ROOT_BUS: &str = "pcie.0";

/// What `-device` and `device_add` take for an engine: behind its port, or in the root complex where
/// Xeons have theirs, as functions of device 4. Its option for the answer's time is one of
/// those that QEMU calls experimental.
pub fn engine_device(settings: &Settings, engine: u32, socket: &Path) -> Value {
    let mut device = json!({
        "driver": "vfio-user-pci",
        "id": engine_id(engine),
        "bus": match settings.chipset {
            Chipset::Q35 => port_id(engine),
            Chipset::I440fx => "pci.0".into(),
        },
        "socket": { "type": "unix", "path": socket.to_string_lossy() },
    });
    if settings.root {
        device["bus"] = ROOT_BUS.into();
        device["addr"] = format!("{:x}.{}", 4 + engine / 8, engine % 8).into();
        device["multifunction"] = true.into();
    }
    if let Some(answer) = settings.answer_ms_of(engine) {
        device["x-msg-timeout"] = answer.into();
    }
    device
}

/// A path inside a QEMU option: commas are doubled.
pub(crate) fn option_path(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// What one of `parts` gets of `whole`, as evenly as it goes.
fn share(whole: u64, part: u32, parts: u32) -> Range<u64> {
    let start = |part: u32| whole * u64::from(part) / u64::from(parts);
    start(part)..start(part + 1)
}

/// All arguments of QEMU; `for_gdb` stops the machine before its first instruction.
pub fn arguments(settings: &Settings, run_dir: &RunDir, for_gdb: bool) -> Vec<String> {
    let mut args: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| args.extend(words.iter().map(|word| word.to_string()));
    let mem = settings.mem_mib;
    add(&[
        "-no-user-config",
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
    ]);
    // With KVM, interrupts are remapped where its I/O APIC is QEMU's own.
    let split = if settings.iommu && settings.accel == Accel::Kvm {
        ",kernel-irqchip=split"
    } else {
        ""
    };
    let chipset = match settings.chipset {
        Chipset::Q35 => "q35",
        Chipset::I440fx => "pc",
    };
    let memory = if settings.nodes == 1 {
        ",memory-backend=mem"
    } else {
        ""
    };
    let hpet = if settings.hpet { "" } else { ",hpet=off" };
    add(&["-machine", &format!("{chipset}{memory}{hpet}{split}")]);
    let (accel, model) = match settings.accel {
        Accel::Tcg => ("tcg", "max"),
        Accel::Kvm => ("kvm", "host"),
    };
    let model = settings.cpu.as_deref().unwrap_or(model);
    let x2apic = match settings.x2apic {
        // QEMU cannot count across accesses to x2APIC registers: "Bad icount read".
        _ if settings.icount => ",-x2apic",
        Some(false) => ",-x2apic",
        Some(true) => ",+x2apic",
        None => "",
    };
    add(&["-accel", accel, "-cpu", &format!("{model}{x2apic}")]);
    if settings.icount {
        add(&["-icount", "shift=0"]);
    }
    add(&["-smp", &settings.cpus.to_string(), "-m", &format!("{mem}M")]);
    let memory =
        |id: &str, size: u64| format!("memory-backend-memfd,id={id},size={size}M,share=on");
    match settings.nodes {
        1 => add(&["-object", &memory("mem", mem)]),
        nodes => {
            for node in 0..nodes {
                let (id, cpus) = (
                    format!("mem{node}"),
                    share(settings.cpus.into(), node, nodes),
                );
                let size = share(mem, node, nodes);
                add(&["-object", &memory(&id, size.end - size.start)]);
                add(&[
                    "-numa",
                    &format!(
                        "node,nodeid={node},memdev={id},cpus={}-{}",
                        cpus.start,
                        cpus.end - 1
                    ),
                ]);
            }
            // What tells the guest a device's node without AML.
            for engine in 0..settings.engines {
                let (id, node) = (engine_id(engine), engine % nodes);
                add(&[
                    "-object",
                    &format!("acpi-generic-initiator,id=near{engine},pci-dev={id},node={node}"),
                ]);
            }
        }
    }
    if settings.chipset == Chipset::Q35 {
        add(&[
            "-global",
            "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
        ]);
    }
    if settings.firmware == Firmware::Direct {
        add(&[
            "-kernel",
            &settings.kernel,
            "-append",
            &settings.command_line(),
        ]);
    }
    if let Some(bios) = &settings.bios {
        add(&["-bios", bios]);
    }
    if let Some(tables) = &settings.acpi {
        let file = option_path(Path::new(tables));
        add(&[
            "-device",
            &format!("loader,file={file},addr={ACPI_AT:#x},force-raw=on"),
        ]);
    }
    match settings.serial {
        // Monitor and console share the terminal; Ctrl-C goes to the guest.
        Serial::Terminal => add(&["-serial", "mon:stdio"]),
        Serial::Socket => {
            let path = option_path(&run_dir.serial());
            add(&[
                "-chardev",
                &format!("socket,id=console,path={path},server=on,wait=off"),
            ]);
            add(&["-serial", "chardev:console"]);
        }
        Serial::None => {}
    }
    if settings.serial != Serial::None {
        let machine = option_path(&run_dir.machine());
        add(&[
            "-chardev",
            &format!("socket,id=machine,path={machine},server=on,wait=off"),
        ]);
        add(&["-serial", "chardev:machine"]);
    }
    if settings.screen {
        add(&["-device", "VGA"]);
    }
    let qmp = option_path(&run_dir.qmp());
    add(&["-qmp", &format!("unix:{qmp},server=on,wait=off")]);

    if settings.iommu {
        add(&["-device", IOMMU_DEVICE]);
    }
    let first = if settings.root { settings.engines } else { 0 };
    let last = settings.engines + u32::from(settings.passthrough.is_some());
    let ports = match settings.chipset {
        Chipset::Q35 => first..last + 1,
        Chipset::I440fx => 0..0,
    };
    for port in ports {
        let (id, slot) = (port_id(port), port + 1);
        add(&[
            "-device",
            &format!("pcie-root-port,id={id},chassis={slot},slot={slot}"),
        ]);
    }
    for engine in 0..settings.engines {
        let device = engine_device(settings, engine, &run_dir.engine_socket(engine));
        add(&["-device", &device.to_string()]);
    }
    if let Some(address) = &settings.passthrough {
        let port = port_id(last);
        let bus = if settings.root { ROOT_BUS } else { &port };
        add(&["-device", &passthrough::device(address, bus).to_string()]);
    }
    for device in 0..settings.edu {
        add(&["-device", &format!("edu,id=edu{device}")]);
    }
    if for_gdb {
        add(&[
            "-S",
            "-gdb",
            &format!("tcp:127.0.0.1:{}", settings.gdb_port),
        ]);
    }
    args
}

/// A command line as a person would type it into a shell.
pub fn shell_line(program: &str, args: &[String]) -> String {
    let quote = |word: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=,:+@%".contains(&byte);
        if !word.is_empty() && word.bytes().all(plain) {
            word.to_string()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    std::iter::once(program)
        .chain(args.iter().map(String::as_str))
        .map(quote)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(settings: &Settings) -> String {
        arguments(settings, &RunDir::new("build/run"), false).join(" ")
    }

    #[test]
    fn engines_stand_behind_ports_and_one_port_stays_empty() {
        let line = line(&Settings {
            engines: 2,
            ..Settings::default()
        });
        for part in [
            "pcie-root-port,id=port0,chassis=1,slot=1",
            "pcie-root-port,id=port2,chassis=3,slot=3",
            r#""bus":"port1""#,
            r#""id":"ioat1""#,
            r#""path":"build/run/ioat1.sock""#,
            "acpi-pci-hotplug-with-bridge-support=off",
            "memory-backend-memfd,id=mem,size=512M,share=on",
            "unix:build/run/qmp.sock",
            "path=build/run/machine.sock",
        ] {
            assert!(line.contains(part), "{part} not in {line}");
        }
        assert!(!line.contains("port3") && !line.contains("ioat2"));
        assert!(!line.contains("-gdb") && !line.contains("serial.sock"));
    }

    #[test]
    fn the_iommu_stands_before_the_devices_behind_it() {
        assert!(!line(&Settings::default()).contains("iommu"));
        let line = line(&Settings {
            iommu: true,
            ..Settings::default()
        });
        let iommu = line.find("-device intel-iommu,caching-mode=on");
        assert!(
            iommu.is_some() && iommu < line.find("pcie-root-port"),
            "{line}"
        );
    }

    #[test]
    fn instructions_are_counted_on_demand() {
        assert!(!line(&Settings::default()).contains("icount"));
        let counted = line(&Settings {
            icount: true,
            ..Settings::default()
        });
        assert!(counted.contains("-cpu max,-x2apic -icount shift=0"));
    }

    #[test]
    fn other_boards_and_processors() {
        let other = line(&Settings {
            chipset: Chipset::I440fx,
            cpu: Some("Opteron_G1".into()),
            x2apic: Some(false),
            hpet: false,
            ..Settings::default()
        });
        for part in [
            "-machine pc,memory-backend=mem,hpet=off -accel tcg -cpu Opteron_G1,-x2apic ",
            r#""bus":"pci.0""#,
            "-kernel build/longshore.elf",
        ] {
            assert!(other.contains(part), "{part} not in {other}");
        }
        assert!(!other.contains("pcie-root-port") && !other.contains("ICH9"));
        let firmware = line(&Settings {
            firmware: Firmware::Bios,
            ..Settings::default()
        });
        assert!(!firmware.contains("-kernel") && firmware.contains("-cpu max "));
    }

    #[test]
    fn nodes_share_cpus_memory_and_engines() {
        let line = line(&Settings {
            nodes: 3,
            cpus: 4,
            mem_mib: 512,
            ..Settings::default()
        });
        for part in [
            "-machine q35 ",
            "id=mem0,size=170M,share=on -numa node,nodeid=0,memdev=mem0,cpus=0-0 ",
            "id=mem1,size=171M,share=on -numa node,nodeid=1,memdev=mem1,cpus=1-1 ",
            "id=mem2,size=171M,share=on -numa node,nodeid=2,memdev=mem2,cpus=2-3 ",
            "acpi-generic-initiator,id=near1,pci-dev=ioat1,node=1 ",
        ] {
            assert!(line.contains(part), "{part} not in {line}");
        }
    }

    #[test]
    fn educational_devices_stand_on_the_root_bus() {
        assert!(!line(&Settings::default()).contains("edu"));
        let two = line(&Settings {
            edu: 2,
            ..Settings::default()
        });
        assert!(two.contains("-device edu,id=edu0 -device edu,id=edu1"));
    }

    #[test]
    fn engines_in_the_root_complex_are_functions_of_one_device() {
        let line = line(&Settings {
            engines: 9,
            root: true,
            ..Settings::default()
        });
        for part in [
            r#""addr":"4.0","bus":"pcie.0""#,
            r#""addr":"4.7","bus":"pcie.0""#,
            r#""addr":"5.0","bus":"pcie.0""#,
            r#""multifunction":true"#,
            "id=port9,chassis=10,slot=10",
        ] {
            assert!(line.contains(part), "{part} not in {line}");
        }
        assert_eq!(line.matches("pcie-root-port").count(), 1, "{line}");
    }

    #[test]
    fn a_real_engine_has_a_port_of_its_own() {
        let mut settings = Settings {
            passthrough: Some("00:04.0".into()),
            accel: Accel::Kvm,
            ..Settings::default()
        };
        let behind = line(&settings);
        let device = |bus: &str| {
            format!(
                r#"-device {{"bus":"{bus}","driver":"vfio-pci","host":"0000:00:04.0","id":"real0"}}"#
            )
        };
        for part in ["-accel kvm", "pcie-root-port,id=port3,", &device("port3")] {
            assert!(behind.contains(part), "{part} not in {behind}");
        }
        settings.root = true;
        let root = line(&settings);
        assert!(root.contains(&device("pcie.0")), "{root}");
        assert!(!line(&Settings::default()).contains("vfio-pci"));
    }

    #[test]
    fn screens_come_and_serial_ports_go_on_demand() {
        let usual = line(&Settings::default());
        assert!(!usual.contains("VGA") && usual.contains("-serial chardev:machine"));
        let other = line(&Settings {
            screen: true,
            serial: Serial::None,
            ..Settings::default()
        });
        assert!(other.contains("-device VGA") && !other.contains("-serial"));
    }

    #[test]
    fn the_kernel_gets_its_commands() {
        let settings = Settings {
            commands: Some("dma; audit".into()),
            ..Settings::default()
        };
        assert!(line(&settings).contains("-append run=\"dma; audit\""));
    }

    #[test]
    fn tables_of_ones_own_lie_where_the_kernel_is_told() {
        let line = line(&Settings {
            acpi: Some("a.bin".into()),
            ..Settings::default()
        });
        assert!(line.contains("-append acpi_rsdp=0x90000"));
        assert!(line.contains("-device loader,file=a.bin,addr=0x90000,force-raw=on"));
    }

    #[test]
    fn commas_in_paths_do_not_end_an_option() {
        let args = arguments(&Settings::default(), &RunDir::new("/a,b"), false).join(" ");
        assert!(args.contains("unix:/a,,b/qmp.sock,server=on"));
        assert!(args.contains(r#""path":"/a,b/ioat0.sock""#));
    }

    #[test]
    fn shell_lines_can_be_pasted() {
        let args = [
            "-append".to_string(),
            "run=\"it's\"".to_string(),
            String::new(),
        ];
        assert_eq!(
            shell_line("qemu", &args),
            r#"qemu -append 'run="it'\''s"' ''"#
        );
    }
}
