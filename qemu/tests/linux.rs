//! A driver that we did not write, on our engine: Debian's unmodified kernel with its ioatdma.
//!
//! The driver tests itself before it registers its channels: it starts the first channel, copies
//! 2,000 bytes and compares them. So a channel that Linux shows is one on which that has passed.

#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use longshore_qemu::child::Spawner;
use longshore_qemu::linux::{Errand, Host, Linux};
use longshore_qemu::run_dir::RunDir;
use longshore_qemu::settings::{Irq, Settings};
use longshore_qemu::{qemu, scenario};

/// Linux is off after four seconds where nothing else runs.
const PATIENCE: Duration = Duration::from_secs(180);

struct Expected {
    cbver: &'static str,
    irq: Irq,
    iommu: bool,
    id: &'static str,
    /// How many interrupts each function then has.
    interrupts: usize,
}

/// Boots Linux with two engines of four channels, and looks at what its driver has made of them,
/// before and after unbinding and binding it.
fn linux_drives(name: &str, expected: &Expected) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the repository");
    // Looked for once: where there is none, looking takes its time.
    static LINUX: OnceLock<Result<Linux, String>> = OnceLock::new();
    let linux = match LINUX.get_or_init(|| Linux::find(root)) {
        Ok(linux) => linux,
        Err(reason) => return scenario::skip(name, reason),
    };
    let qemu = qemu::find(root, None).expect("a QEMU");
    let settings = Settings {
        cpus: 2,
        engines: 2,
        cbver: expected.cbver.into(),
        irq: expected.irq,
        iommu: expected.iommu,
        ..Settings::default()
    };
    let dir = std::env::temp_dir().join(format!("longshore-{name}-{}", std::process::id()));
    let run_dir = RunDir::new(&dir);
    let console = linux
        .boot(
            Host {
                qemu: &qemu,
                engine: &root.join("build/ioat-model"),
                spawner: &Spawner::new(env!("CARGO_BIN_EXE_longshore-qemu")),
                run_dir: &run_dir,
            },
            &settings,
            &Errand::show(),
            PATIENCE,
        )
        .unwrap_or_else(|failure| panic!("{failure}"));
    let lines: Vec<&str> = console
        .lines()
        .filter_map(|line| line.split_once("engine: ").map(|(_, line)| line))
        .collect();
    let count = |start: &str| lines.iter().filter(|line| line.starts_with(start)).count();

    assert_eq!(count("done"), 1, "{console}");
    for when in ["first", "again"] {
        let id = format!("id={}", expected.id);
        let devices = lines
            .iter()
            .filter(|line| line.starts_with(&format!("{when} device")) && line.ends_with(&id));
        assert_eq!(devices.count(), 2, "{when}\n{console}");
        let channels: Vec<_> = lines
            .iter()
            .filter(|line| line.starts_with(&format!("{when} channel")))
            .collect();
        assert_eq!(channels.len(), 8, "{when}\n{console}");
        let version = format!("version={}", expected.cbver);
        let whole = |line: &&&&str| line.contains(&version) && line.contains("copy");
        assert_eq!(channels.iter().filter(whole).count(), 8, "{console}");
        // Domains of this type translate; without an IOMMU there are no groups.
        let groups = lines
            .iter()
            .filter(|line| line.starts_with(&format!("{when} group")));
        let translated = groups.clone().filter(|line| line.contains("type=DMA"));
        let confined = if expected.iommu { 2 } else { 0 };
        assert_eq!(
            (groups.count(), translated.count()),
            (confined, confined),
            "{when}\n{console}"
        );
    }
    assert_eq!(count("unbound"), 2, "{console}");
    assert_eq!(count("interrupt"), 2 * expected.interrupts, "{console}");
    for bad in [
        "Self-test",
        "failed",
        "Oops",
        "BUG",
        "WARNING:",
        "Call Trace",
        "ioatdma: probe",
        "fault addr",
    ] {
        let said = console
            .lines()
            .find(|line| line.contains(bad) && (bad != "failed" || line.contains("ioat")));
        assert_eq!(said, None, "{console}");
    }
    for engine in 0..2 {
        let text = std::fs::read_to_string(run_dir.engine_stats(engine)).expect("statistics");
        let stats: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let number = |name: &str| stats[name].as_u64().expect(name);
        // Two self-tests, and a null descriptor at each start of a channel.
        assert!(number("bytes") >= 2 * 2000, "{text}");
        assert!(number("interrupts") >= 2, "{text}");
        assert_eq!(number("faults"), 0, "{text}");
    }
    println!("Linux {}\n{}", linux.version(), lines.join("\n"));
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn linux_drives_a_3_2_engine_by_msi() {
    linux_drives(
        "linux_drives_a_3_2_engine_by_msi",
        &Expected {
            cbver: "3.2",
            irq: Irq::Msi,
            iommu: false,
            id: "0x2021",
            interrupts: 1,
        },
    );
}

#[test]
fn linux_drives_a_3_4_engine_by_msix() {
    linux_drives(
        "linux_drives_a_3_4_engine_by_msix",
        &Expected {
            cbver: "3.4",
            irq: Irq::Msix,
            iommu: false,
            id: "0x0b00",
            interrupts: 4,
        },
    );
}

/// RESET of these parts loses MSI-X; the driver saves and restores it.
#[test]
fn linux_drives_a_3_3_engine_by_msix() {
    linux_drives(
        "linux_drives_a_3_3_engine_by_msix",
        &Expected {
            cbver: "3.3",
            irq: Irq::Msix,
            iommu: false,
            id: "0x6f50",
            interrupts: 4,
        },
    );
}

#[test]
fn linux_drives_a_3_2_engine_by_the_pin() {
    linux_drives(
        "linux_drives_a_3_2_engine_by_the_pin",
        &Expected {
            cbver: "3.2",
            irq: Irq::Intx,
            iommu: false,
            id: "0x2021",
            interrupts: 1,
        },
    );
}

/// Every buffer, ring and completion word is mapped before the engine sees its address, and the
/// IOMMU has nothing to complain of.
#[test]
fn linux_with_its_iommu_on_drives_our_engine() {
    linux_drives(
        "linux_with_its_iommu_on_drives_our_engine",
        &Expected {
            cbver: "3.2",
            irq: Irq::Msi,
            iommu: true,
            id: "0x2021",
            interrupts: 1,
        },
    );
}
