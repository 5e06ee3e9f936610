//! Machines as they are: many CPUs and few, old ones and absent ones, missing timers, memory far up;
//! and what a machine says of itself when it fails or stands still.

#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use longshore_qemu::qemu;
use longshore_qemu::qmp::Qmp;
use longshore_qemu::scenario::{Bench, Ended, Machine, PATIENCE, field, number};

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_longshore-qemu"))
}

/// A directory that goes with its owner.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("longshore-machines-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    /// A QEMU that takes `arguments` after all others: what the launcher has no variable for.
    fn qemu(&self, arguments: &str) -> String {
        let chosen = std::env::var("QEMU").ok();
        let real = qemu::find(bench().root(), chosen.as_deref()).unwrap();
        let path = self.0.join("qemu.sh");
        let script = format!("#!/bin/sh\nexec '{}' \"$@\" {arguments}\n", real.display());
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().into()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs commands on a machine for which QEMU takes further arguments.
#[track_caller]
fn run_with(arguments: &str, commands: &str, variables: &[(&str, &str)]) -> Ended {
    let dir = Dir::new();
    let qemu = dir.qemu(arguments);
    let mut all = vec![("QEMU", qemu.as_str())];
    all.extend(variables);
    bench().run(commands, &all)
}

/// The APIC IDs of the CPUs that are online.
#[track_caller]
fn online(ended: &Ended) -> Vec<&str> {
    let lines = ended.output_of("cpus").into_iter();
    let online = lines.filter(|line| line.contains(" online polls="));
    online.map(|line| field(line, "apic").unwrap()).collect()
}

#[track_caller]
fn expect_no_warning(ended: &Ended) {
    ended.expect_success();
    assert!(ended.lines_starting("WARN").is_empty(), "{}", ended.all());
}

/// Fails unless so many copies were made and compared, all of them well.
#[track_caller]
fn expect_copies(ended: &Ended, tests: u64) {
    let summaries = ended.lines_starting("dmatest: ");
    let summaries = summaries.iter().filter(|line| line.contains(": summary "));
    let well = summaries.map(|line| {
        let (_, rest) = line.split_once(": summary ").unwrap();
        assert!(rest.contains(" tests, 0 failures "), "{line}");
        rest.split(' ').next().unwrap().parse::<u64>().unwrap()
    });
    assert_eq!(well.sum::<u64>(), tests, "{}", ended.all());
    let audit = ended.lines_starting("audit: ");
    assert!(
        audit.iter().all(|line| number(line, "leaked") == 0),
        "{audit:?}"
    );
}

/// Boots that many CPUs, each with a thread that copies and waits for each copy that many milliseconds.
/// Gives the seconds up to the last one.
#[track_caller]
fn many_cpus(cpus: u64, timeout: u64) -> f64 {
    let commands = format!(
        "cpus; dmatest threads_per_chan=32 iterations=3 test_buf_size=4096 timeout={timeout}; tasks; audit"
    );
    let text = cpus.to_string();
    let variables = [
        ("CMD", commands.as_str()),
        ("CPUS", text.as_str()),
        ("MEM", "1G"),
        ("TIMEOUT", "600"),
    ];
    let ended = bench().start_alone(&variables).finish(10 * PATIENCE);
    expect_no_warning(&ended);
    assert_eq!(online(&ended).len() as u64, cpus);
    expect_copies(&ended, 8 * 32 * 3);
    // Tasks went round all CPUs, and all of them ran some.
    let started = format!(" {cpus} CPUs");
    let line = ended.console.lines().find(|line| line.ends_with(&started));
    let seconds = line.and_then(|line| line.strip_prefix('[')?.split(']').next());
    seconds.unwrap().trim().parse().unwrap()
}

#[test]
fn sixty_four_cpus_start_and_copy() {
    let seconds = many_cpus(64, 3000);
    assert!(seconds < 30.0, "{seconds} s until all run");
}

/// For `make soak`: on two CPUs of the host QEMU alone takes a while for so many, and whoever waits for
/// a copy waits for the host to come round to it, not for the engine.
#[test]
#[ignore = "run by make soak"]
fn soak_255_cpus_start_and_copy() {
    let seconds = many_cpus(255, 60_000);
    println!("255 CPUs run after {seconds} s");
    assert!(seconds < 60.0, "{seconds} s until all run");
}

#[test]
fn holes_in_apic_ids_and_no_x2apic() {
    let ended = run_with(
        "-smp 6,sockets=2,cores=3,threads=1 -cpu max,-x2apic",
        "cpus; dmatest iterations=5; audit",
        &[],
    );
    expect_no_warning(&ended);
    assert_eq!(online(&ended), ["0x0", "0x1", "0x2", "0x4", "0x5", "0x6"]);
    let modes = ended.lines_starting("cpus: online=6 found=6 mode=xapic");
    assert_eq!(modes.len(), 1, "{}", ended.all());
    expect_copies(&ended, 8 * 5);
}

#[test]
fn apic_ids_above_255_get_no_messages() {
    let ended = run_with(
        "-smp 2,maxcpus=512,sockets=512,cores=1,threads=1 -global intel-iommu.eim=on \
         -device max-x86_64-cpu,socket-id=300,core-id=0,thread-id=0",
        "cpus; irqs; dmatest iterations=5; audit",
        &[("IOMMU", "on"), ("IRQ", "msix")],
    );
    expect_no_warning(&ended);
    assert_eq!(online(&ended), ["0x0", "0x1", "0x12c"]);
    let vectors = ended.lines_starting("vector=");
    assert!(vectors.len() >= 8, "{vectors:#?}");
    let elsewhere = vectors.iter().all(|line| number(line, "cpu") < 2);
    assert!(elsewhere, "{vectors:#?}");
    expect_copies(&ended, 8 * 5);
}

/// The oldest that has 64 bits, and one without anything that may be left out.
#[test]
fn no_feature_is_taken_for_granted() {
    for (model, features) in [
        ("Opteron_G1", "features=mce,nx "),
        ("qemu64,-nx,-mce,-mca,-pat,-pge,-cx16,-sse3", "features= "),
    ] {
        let commands = "version; cpus; dmatest iterations=5; crash fault";
        let ended = run_with(&format!("-cpu {model}"), commands, &[]);
        assert_eq!(ended.status, Some(1), "{}", ended.all());
        assert!(ended.lines_starting("WARN").is_empty(), "{}", ended.all());
        let cpus = ended.output_of("cpus");
        assert!(cpus.iter().any(|line| line.contains(features)), "{cpus:#?}");
        expect_copies(&ended, 8 * 5);
        // What lies under it all, traps, works as well.
        assert_eq!(ended.lines_starting("PANIC").len(), 1, "{}", ended.all());
    }
}

#[test]
fn a_machine_without_hpet_has_another_timer() {
    let ended = run_with("-machine hpet=off", "version", &[("IOAT", "0")]);
    expect_no_warning(&ended);
    let clock = ended.lines_starting("clock: ");
    assert!(clock[0].contains("against the ACPI PM timer"), "{clock:?}");
}

/// What QEMU has of the host's memory for its guest, in KiB.
fn resident(machine: &Machine) -> u64 {
    let pid = machine.launcher_pid().to_string();
    let parent = |status: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        line.map(|line| line.trim().to_string())
    };
    let shared = |status: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssShmem:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let statuses =
        processes.filter_map(|entry| fs::read_to_string(entry.path().join("status")).ok());
    let children = statuses.filter(|status| parent(status).as_ref() == Some(&pid));
    children.filter_map(|status| shared(&status)).max().unwrap()
}

/// Memory is described, not touched.
#[track_caller]
fn sparse(gib: u64, cpu: &str) {
    let (dir, size) = (Dir::new(), format!("{gib}G"));
    let qemu = dir.qemu(&format!("-cpu {cpu}"));
    let mut machine = bench().start(&[("MEM", &size), ("QEMU", &qemu)]);
    machine.await_prompt();
    let lines = machine.ok("mem");
    let line = lines
        .iter()
        .find(|line| line.starts_with("mem: total="))
        .unwrap();
    let total = number(line, "total");
    assert!(
        (gib * (1 << 20) - 4096..=gib << 20).contains(&total),
        "{line}"
    );
    let lines = machine.ok("dmatest iterations=20");
    assert!(
        lines
            .iter()
            .all(|line| !line.contains(", 0 failures ") || !line.contains("WARN"))
    );
    let touched = resident(&machine);
    println!("{gib} GiB: {touched} KiB of the host's");
    assert!(touched < 256 << 10, "{touched} KiB");
    machine.type_text("poweroff\r");
    let ended = machine.finish(PATIENCE);
    expect_no_warning(&ended);
    let summaries = ended.console.matches(" 20 tests, 0 failures ").count();
    assert_eq!(summaries, 8, "{}", ended.all());
}

#[test]
fn sixty_four_gib_are_not_touched() {
    sparse(64, "max");
}

/// Without pages of 1 GiB, and with memory above 512 GiB, which is another entry of the top table.
#[test]
fn memory_may_lie_above_512_gib() {
    sparse(600, "qemu64,phys-bits=41,host-phys-bits=off");
}

#[test]
fn four_nodes() {
    let ended = bench().run(
        "cpus; dma; mem",
        &[("NUMA", "4"), ("IOAT", "4"), ("MEM", "1G")],
    );
    expect_no_warning(&ended);
    let nodes = |command: &str, start: &str| -> Vec<_> {
        let lines = ended.output_of(command).into_iter();
        let lines = lines.filter(|line| line.starts_with(start) && line.contains(" node="));
        lines.map(|line| number(line, "node")).collect()
    };
    assert_eq!(nodes("cpus", "cpu"), [0, 1, 2, 3]);
    assert_eq!(nodes("dma", "dma"), [0, 1, 2, 3]);
}

/// Where tables of a test's own lie: SeaBIOS clears what is below, and no table may lie in memory that the
/// kernel uses.
const TABLES: u64 = 0x9_0000;

/// A table with its sum.
fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut table = signature.to_vec();
    table.extend((36 + body.len() as u32).to_le_bytes());
    table.extend([4, 0]);
    table.extend(b"LONGSHTEST    ");
    table.resize(36, 0);
    table.extend(body);
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    table[9] = sum.wrapping_neg();
    table
}

/// Firmware's tables as they have to lie at `base`: CPUs as given by APIC ID and flags, power-off,
/// and nothing else: no HPET, no power management timer, no windows of configuration space.
fn tables(base: u64, cpus: &[(u8, u8)]) -> Vec<u8> {
    let mut madt = 0xfee0_0000u32.to_le_bytes().to_vec();
    madt.extend(1u32.to_le_bytes());
    for &(id, flags) in cpus {
        madt.extend([0, 8, id, id, flags, 0, 0, 0]);
    }
    madt.extend([1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    let mut fadt = vec![0; 96];
    // PM1a control of QEMU's q35.
    fadt[64 - 36..][..2].copy_from_slice(&0x604u16.to_le_bytes());
    let (madt, fadt) = (table(b"APIC", &madt), table(b"FACP", &fadt));
    let places = [base + 0x200, base + 0x400];
    let pointers: Vec<u8> = places.iter().flat_map(|at| at.to_le_bytes()).collect();
    let xsdt = table(b"XSDT", &pointers);
    let mut rsdp = b"RSD PTR \0LONGSH\x02".to_vec();
    rsdp.extend([0; 4]);
    rsdp.extend(36u32.to_le_bytes());
    rsdp.extend((base + 0x100).to_le_bytes());
    rsdp.resize(36, 0);
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    rsdp[8] = sum(&rsdp[..20]).wrapping_neg();
    rsdp[32] = sum(&rsdp).wrapping_neg();
    let mut all = vec![0; 0x600];
    for (at, bytes) in [(0, rsdp), (0x100, xsdt), (0x200, madt), (0x400, fadt)] {
        all[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    all
}

/// Runs commands on a machine whose ACPI tables tell of these CPUs alone, with more arguments for QEMU.
#[track_caller]
fn run_with_tables(
    cpus: &[(u8, u8)],
    arguments: &str,
    commands: &str,
    variables: &[(&str, &str)],
) -> Ended {
    let dir = Dir::new();
    let file = dir.0.join("tables");
    fs::write(&file, tables(TABLES, cpus)).unwrap();
    let qemu = dir.qemu(&format!(
        "{arguments} -device loader,file={},addr={TABLES:#x},force-raw=on",
        file.display()
    ));
    let append = format!("acpi_rsdp={TABLES:#x}");
    let own = [("QEMU", &*qemu), ("APPEND", &*append)];
    let ended = bench().run(commands, &[&own, variables].concat());
    ended.expect_success();
    ended
}

#[test]
fn cpus_that_do_not_start_are_left_out_and_the_pit_is_a_clock() {
    // 9 is not there; 2 could come later.
    let cpus = [(0, 1), (9, 1), (1, 1), (2, 2), (3, 1)];
    let commands = "version; cpus; lspci; dmatest iterations=5; audit";
    let ended = run_with_tables(&cpus, "", commands, &[("IOAT", "1"), ("CBVER", "3.4")]);
    let warnings = ended.lines_starting("WARN");
    assert_eq!(
        warnings,
        ["WARN CPU 1 (APIC 0x9) does not start"],
        "{}",
        ended.all()
    );
    assert_eq!(online(&ended), ["0x0", "0x1", "0x3"]);
    let found = ended.lines_starting("cpus: online=3 found=3 ");
    assert_eq!(
        found.len(),
        1,
        "its number went to the next\n{}",
        ended.all()
    );
    assert!(
        ended.console.contains("measured against the PIT"),
        "{}",
        ended.all()
    );
    assert!(ended.console.contains("no ECAM"), "{}", ended.all());
    expect_copies(&ended, 4 * 5);
}

#[test]
fn an_engine_that_needs_what_is_out_of_reach_is_refused_with_the_reason() {
    let variables = [("IOAT", "1"), ("CPUS", "1")];
    let ended = run_with_tables(&[(0, 1)], "", "lspci; audit", &variables);
    let refused = |line: &&str| line.contains("not used: ") && line.contains("configuration space");
    let lines: Vec<_> = ended.console.lines().filter(refused).collect();
    assert_eq!(lines.len(), 1, "{}", ended.all());
}

#[test]
fn a_machine_without_any_timer_has_a_guess() {
    let arguments = "-machine pit=off,hpet=off";
    let variables = [("IOAT", "0"), ("CPUS", "2")];
    let ended = run_with_tables(&[(0, 1), (1, 1)], arguments, "version; cpus", &variables);
    let warnings = ended.lines_starting("WARN no timer runs on this machine");
    assert_eq!(warnings.len(), 1, "{}", ended.all());
    assert!(
        ended
            .console
            .contains("measured against nothing: it is a guess")
    );
    assert_eq!(online(&ended), ["0x0", "0x1"]);
}

#[test]
fn a_boot_that_stands_still_says_where() {
    for stage in ["pci", "drivers"] {
        let append = format!("stall={stage}");
        let ended = bench().run("version", &[("APPEND", &append), ("IOAT", "0")]);
        ended.expect_success();
        let start = format!("WARN boot stands still in {stage} for ");
        let warnings = ended.lines_starting(&start);
        assert_eq!(warnings.len(), 1, "{}", ended.all());
        let mut after = ended
            .console
            .lines()
            .skip_while(|line| !line.starts_with(&start));
        let frames: Vec<_> = after.by_ref().skip(1).take(6).collect();
        // A function that has just been entered hides its caller, but not the caller's caller.
        let leads = |line: &&str| line.contains("kernel/src/start.rs:");
        assert!(frames.iter().any(leads), "{frames:#?}");
    }
}

fn qmp(machine: &Machine) -> Qmp {
    Qmp::connect(&machine.run_dir().qmp(), PATIENCE).unwrap()
}

/// Valid, enabled, with an address: a corrected error of the memory controller.
const CORRECTED: &str = "0x940000000000009f 0x0 0x12345000 0x0";
/// The same, uncorrected.
const UNCORRECTED: &str = "0xb40000000000009f 0x5 0x12345000 0x0";

#[test]
fn machine_checks_are_reported() {
    let mut machine = bench().start(&[("IOAT", "0")]);
    machine.await_prompt();
    // One that was corrected is found at the CPU's next start.
    qmp(&machine)
        .monitor(&format!("mce 1 3 {CORRECTED}"))
        .unwrap();
    machine.ok("cpu offline 1");
    machine.type_text("cpu online 1\r");
    machine.await_text(
        "WARN machine check before this start, CPU 1, bank 3: corrected: ",
        PATIENCE,
    );
    let rest = machine.rest_of_line();
    assert!(
        rest.starts_with("memory controller, code 0x009f, address 0x12345000"),
        "{rest}"
    );
    machine.await_prompt();
    // One that was not ends it all.
    qmp(&machine)
        .monitor(&format!("mce 2 4 {UNCORRECTED}"))
        .unwrap();
    machine.await_text("PANIC cpu=2 machine check", PATIENCE);
    machine.await_text(
        "bank 4: uncorrected: memory controller, code 0x009f",
        PATIENCE,
    );
    machine.await_text("halted", PATIENCE);
}

#[test]
fn interrupts_that_nobody_asked_for_are_counted() {
    let mut machine = bench().start(&[("IOAT", "0"), ("CPUS", "2")]);
    machine.await_prompt();
    let count = |machine: &mut Machine, name: &str| {
        let lines = machine.ok("irqs");
        number(
            lines
                .iter()
                .find(|line| line.starts_with("irqs: "))
                .unwrap(),
            name,
        )
    };
    assert_eq!(count(&mut machine, "nmi"), 0);
    qmp(&machine).monitor("nmi").unwrap();
    machine.await_text("WARN non-maskable interrupt on CPU ", PATIENCE);
    let rest = machine.rest_of_line();
    assert!(rest.ends_with(": no reason given"), "{rest}");
    assert!(count(&mut machine, "nmi") > 0);
    assert_eq!(count(&mut machine, "spurious"), 0);
}

#[test]
fn on_what_terms_slots_are_served_is_said() {
    let ended = bench().run("slots", &[("IOAT", "1")]);
    expect_no_warning(&ended);
    let slots = ended.output_of("slots");
    let said = slots.iter().any(|line| line.contains("_OSC"));
    assert!(
        said && ended.console.contains(" 2 slots: native hot-plug"),
        "{}",
        ended.all()
    );
}
