//! Firmware whose ACPI tables make no sense: what the kernel reads of them, on the host, and what it
//! does with it, on machines.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::sync::Once;
use std::time::{Duration, Instant};

use longshore::acpi::place;
use longshore::acpi::tables::{self, Memory, Platform};
use longshore::boot_info::{BootInfo, Region, RegionKind};
use longshore_qemu::scenario::{Bench, PATIENCE};
use longshore_qemu::settings::ACPI_AT;
use proptest::prelude::*;

#[path = "acpi/sets.rs"]
mod sets;

use sets::{KINDS, Kind, Random};

/// The memory map of a q35 with 512 MiB, as SeaBIOS gives it.
fn map() -> BootInfo {
    let mut info = BootInfo::new("test");
    for (start, end, kind) in [
        (0, 0x9_fc00, RegionKind::Usable),
        (0x9_fc00, 0xa_0000, RegionKind::Reserved),
        (0xf_0000, 0x10_0000, RegionKind::Reserved),
        (0x10_0000, 0x1ffd_f000, RegionKind::Usable),
        (0x1ffd_f000, 0x2000_0000, RegionKind::Reserved),
        (0xb000_0000, 0xc000_0000, RegionKind::Reserved),
        (0xfed1_c000, 0xfed2_0000, RegionKind::Reserved),
        (0xfffc_0000, 1 << 32, RegionKind::Reserved),
    ] {
        let len = end - start;
        info.add_region(Region { start, len, kind });
    }
    info
}

/// A set in memory; where nothing is, all bits are ones.
struct Image<'i>(&'i [u8], &'i BootInfo);

impl Memory for Image<'_> {
    type Bytes = Vec<u8>;

    fn bytes(&self, phys: u64, len: usize) -> Option<Vec<u8>> {
        if !place::holds_table(self.1, phys, len as u64) || phys >= 1 << 46 {
            return None;
        }
        let byte = |at: u64| {
            let at = at.checked_sub(ACPI_AT)?;
            self.0.get(at as usize).copied()
        };
        Some(
            (phys..phys + len as u64)
                .map(|at| byte(at).unwrap_or(0xff))
                .collect(),
        )
    }
}

thread_local! {
    static SAID: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Keeps what this thread logs.
struct Keep;

impl log::Log for Keep {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }

    fn log(&self, record: &log::Record) {
        SAID.with_borrow_mut(|said| said.push(record.args().to_string()));
    }

    fn flush(&self) {}
}

/// Reads a set; gives what it tells, and what was said of it. What it tells can be.
#[track_caller]
fn read(image: &[u8], rsdp: u64) -> (Platform, Vec<String>) {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        log::set_logger(&Keep).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
    });
    SAID.take();
    let info = map();
    let platform = tables::read(Some(rsdp), &Image(image, &info), &info);
    check(&platform, &info);
    let said = SAID.take();
    assert!(said.len() <= 18, "{said:#?}");
    (platform, said)
}

#[track_caller]
fn check(platform: &Platform, info: &BootInfo) {
    let registers = |at, len| {
        assert!(
            place::holds_registers(info, at, len),
            "{at:#x}\n{platform:#x?}"
        )
    };
    if let Some(at) = platform.hpet {
        registers(at, 0x400);
    }
    if let Some(madt) = &platform.madt {
        let unique = |ids: &[u64]| {
            let mut sorted = ids.to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), ids.len(), "{madt:#x?}");
        };
        let cpus: Vec<_> = madt.cpus.iter().copied().map(u64::from).collect();
        unique(&cpus);
        assert!(cpus.len() <= 512 && !cpus.contains(&0xff) && !cpus.contains(&0xffff_ffff));
        let io_apics: Vec<_> = madt.io_apics.iter().map(|found| found.address).collect();
        unique(&io_apics);
        for at in io_apics {
            registers(at, 0x20);
            assert!(at % 0x400 == 0);
        }
        assert!(madt.overrides.len() <= 16);
    }
    for (index, window) in platform.ecam.iter().enumerate() {
        let (at, len) = window.range();
        registers(at, len);
        assert!(at + len <= 1 << 52 && len <= 256 << 20);
        for other in &platform.ecam[..index] {
            assert!(!window.collides(other), "{:#x?}", platform.ecam);
        }
    }
    for range in platform.dmar.iter().flat_map(|dmar| &dmar.reserved) {
        assert!(
            place::is_firmwares(info, range.base, range.last),
            "{range:#x?}"
        );
    }
    assert!(platform.list.len() <= 512);
    for (index, table) in platform.list.iter().enumerate() {
        assert!(place::holds_table(info, table.1, table.2 as u64));
        assert!(
            platform.list[..index]
                .iter()
                .all(|other| other.1 != table.1)
        );
    }
}

#[test]
fn a_sound_set_is_read_without_a_word() {
    let (platform, said) = read(&sets::sound(), ACPI_AT);
    assert_eq!(said, [""; 0]);
    let madt = platform.madt.unwrap();
    assert_eq!(madt.cpus, [0, 1]);
    assert_eq!(
        (madt.io_apics.len(), madt.io_apics[0].address),
        (1, 0xfec0_0000)
    );
    assert_eq!(madt.isa(9).0, 9);
    assert_eq!(
        (platform.ecam.len(), platform.ecam[0].base),
        (1, 0xb000_0000)
    );
    assert_eq!(
        (platform.hpet, platform.s5),
        (Some(0xfed0_0000), Some((0, 0)))
    );
    assert_eq!(platform.fadt.pm_timer, Some(0x608));
    assert_eq!(platform.fadt.reset_port, Some(0xcf9));
    assert_eq!(platform.srat.cpu(1), Some(0));
    let dmar = platform.dmar.unwrap();
    assert_eq!((dmar.units.len(), dmar.complaints.len()), (1, 0));
    assert_eq!(platform.list.len(), 6);
}

/// Root pointers of the first revision are shorter, and may lie where memory in use begins.
#[test]
fn a_root_pointer_of_the_first_revision_needs_20_bytes() {
    struct Edge(Vec<u8>);
    impl Memory for Edge {
        type Bytes = Vec<u8>;

        fn bytes(&self, phys: u64, len: usize) -> Option<Vec<u8>> {
            let at = phys.checked_sub(ACPI_AT)? as usize;
            let beyond = at < 20 && at + len > 20;
            self.0.get(at..at + len).filter(|_| !beyond).map(Vec::from)
        }
    }
    let platform = tables::read(Some(ACPI_AT), &Edge(sets::first_revision()), &map());
    assert_eq!(platform.list.len(), 6);
}

/// Of every kind many; those of which one thing is wrong are said to be so.
#[test]
fn malformed_sets_are_told_and_survived() {
    const SETS: usize = 4_000;
    for number in 0..SETS {
        let begun = Instant::now();
        let (kind, image) = sets::set(number);
        let (_, said) = read(&image, ACPI_AT);
        let all = said.join("\n");
        if number < 2 * KINDS.len() {
            assert!(
                all.contains(kind.says),
                "set {number}, {}:\n{all}",
                kind.name
            );
        }
        let took = begun.elapsed();
        assert!(
            took < Duration::from_secs(10),
            "set {number}, {}: {took:?}",
            kind.name
        );
    }
    println!("{SETS} sets of {} kinds", KINDS.len());
}

/// What lists sixty tables of 16 MiB is not read for minutes.
#[test]
fn tables_without_end_are_given_up() {
    struct Endless;
    impl Memory for Endless {
        type Bytes = Vec<u8>;

        fn bytes(&self, phys: u64, len: usize) -> Option<Vec<u8>> {
            // Everything is a table of 16 MiB, and all of them lists of others.
            let mut bytes = vec![0; len];
            let root = sets::sound();
            if (ACPI_AT..ACPI_AT + 64).contains(&phys) {
                bytes.copy_from_slice(&root[..len]);
            } else {
                bytes[..8].copy_from_slice(b"XSDT\0\0\0\x01");
                let mut random = Random::new(phys);
                for entry in bytes[36..].chunks_exact_mut(8) {
                    entry.copy_from_slice(&(random.next() >> 24).to_le_bytes());
                }
                if len > 9 {
                    let sum = bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
                    bytes[9] = bytes[9].wrapping_sub(sum);
                }
            }
            Some(bytes)
        }
    }
    let platform = tables::read(Some(ACPI_AT), &Endless, &map());
    let bytes: usize = platform.list.iter().map(|table| table.2).sum();
    assert!(
        !platform.list.is_empty() && bytes <= 64 << 20,
        "{:#x?}",
        platform.list
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Bytes of sets that are others than they were, whose sums may be right by chance alone.
    #[test]
    fn torn_images_are_survived(
        number in 0usize..10_000,
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..40),
        cut in any::<proptest::sample::Index>(),
        rsdp in prop_oneof![3 => Just(ACPI_AT), 1 => any::<u64>(), 1 => ACPI_AT..ACPI_AT + 0x1000],
    ) {
        let (_, mut image) = sets::set(number);
        for (at, byte) in edits {
            let at = at.index(image.len());
            image[at] = byte;
        }
        image.truncate(cut.index(2 * image.len()));
        read(&image, rsdp);
    }
}

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_longshore-qemu"))
}

/// Boots a set: it says what is wrong, and comes to run commands.
#[track_caller]
fn boot(name: &str, says: &str, image: &[u8]) {
    let path = std::env::temp_dir().join(format!(
        "longshore-acpi-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::write(&path, image).unwrap();
    let commands = "version; cpus; irqs; lspci; mem";
    let mut machine = bench().start(&[
        ("ACPI", path.to_str().unwrap()),
        ("CMD", commands),
        ("CPUS", "2"),
        ("IOAT", "0"),
        ("IOMMU", "on"),
        ("TIMEOUT", "60"),
    ]);
    println!("{name}");
    if !says.is_empty() {
        machine.await_text(says, PATIENCE);
    }
    // Whether it can power off is up to the tables.
    machine.await_text("run: commands=5 failed=0", PATIENCE);
    drop(machine);
    std::fs::remove_file(&path).unwrap();
}

/// One of each kind; `half` of them, to have two tests side by side.
fn boot_all(half: usize) {
    for number in (half..KINDS.len()).step_by(2) {
        let (
            Kind {
                name, on_machines, ..
            },
            image,
        ) = sets::set(number);
        boot(name, on_machines, &image);
    }
}

#[test]
fn a_machine_with_the_sound_set_runs() {
    boot("a sound set", "2 CPUs", &sets::sound());
}

#[test]
fn machines_with_malformed_sets_run() {
    assert!(KINDS.len() >= 50);
    boot_all(0);
}

#[test]
fn machines_with_other_malformed_sets_run() {
    boot_all(1);
}
