//! The machine: what the kernel finds on machines of many shapes, what it costs, how it fails.

#![forbid(unsafe_code)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use longshore_qemu::console::Frame;
use longshore_qemu::scenario::{Bench, Ended, PATIENCE, field, number};
use object::read::elf::{ElfFile64, ProgramHeader};

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_longshore-qemu"))
}

const IDENTITY: &str = "version; cpus; mem; irqs; lspci -v; slots";

/// The last line of a command that begins with `NAME: `.
#[track_caller]
fn closing_line<'a>(ended: &'a Ended, command: &str, start: &str) -> &'a str {
    let lines = ended.output_of(command);
    let line = lines.iter().rfind(|line| line.starts_with(start));
    line.unwrap_or_else(|| panic!("no {start:?} in {lines:#?}"))
}

#[track_caller]
fn identity(cpus: u64, engines: usize, irq: &str, mem: &str) {
    let (cpus_text, engines_text) = (cpus.to_string(), engines.to_string());
    let variables = [
        ("CPUS", &*cpus_text),
        ("IOAT", &*engines_text),
        ("IRQ", irq),
        ("MEM", mem),
    ];
    let ended = bench().run(IDENTITY, &variables);
    ended.expect_success();
    assert!(
        !ended.console.contains("WARN"),
        "{variables:?}\n{}",
        ended.all()
    );

    let line = closing_line(&ended, "cpus", "cpus: ");
    assert_eq!(
        (number(line, "online"), number(line, "found")),
        (cpus, cpus),
        "{line}"
    );

    let total = number(closing_line(&ended, "mem", "mem: total="), "total");
    let mib = if mem == "6G" {
        6144
    } else {
        mem.trim_end_matches('M').parse().unwrap()
    };
    assert!(
        (mib * 1024 - 4096..=mib * 1024).contains(&total),
        "{mem}: {total} KiB"
    );

    let lspci = ended.output_of("lspci -v");
    let is_engine = |line: &&&str| line.contains("8086:2021");
    assert_eq!(
        lspci.iter().filter(is_engine).count(),
        engines,
        "{lspci:#?}"
    );
    // What the registers themselves say: interrupt delivery, version, channels.
    let registers = |line: &&&str| {
        line.contains("CBVER=3.2")
            && line.contains("CHANCNT=4")
            && line.contains(&format!("irq={irq}"))
    };
    assert_eq!(
        lspci.iter().filter(registers).count(),
        engines,
        "{lspci:#?}"
    );

    let slots = ended.output_of("slots");
    let state = |word: &str| slots.iter().filter(|line| line.contains(word)).count();
    assert_eq!(
        (state(" occupied "), state(" empty ")),
        (engines, 1),
        "{slots:#?}"
    );
    assert_eq!(
        ended
            .output_of("version")
            .first()
            .map(|line| line.starts_with("longshore ")),
        Some(true)
    );
}

/// All of `IOAT` 0, 2, 8; `IRQ` msi, msix; `MEM` 256M, 6G.
fn identities(cpus: u64) {
    for engines in [0, 2, 8] {
        for irq in ["msi", "msix"] {
            for mem in ["256M", "6G"] {
                identity(cpus, engines, irq, mem);
            }
        }
    }
}

#[test]
fn everything_is_found_with_1_cpu() {
    identities(1);
}

#[test]
fn everything_is_found_with_4_cpus() {
    identities(4);
}

#[test]
fn everything_is_found_with_16_cpus() {
    identities(16);
}

#[test]
fn cpus_and_engines_know_their_nodes() {
    let ended = bench().run("cpus; dma; mem", &[("NUMA", "2"), ("MEM", "1G")]);
    ended.expect_success();
    let node = |command: &str, start: &str| {
        let line = *ended
            .output_of(command)
            .iter()
            .find(|line| line.starts_with(start))
            .unwrap_or_else(|| panic!("no {start:?}\n{}", ended.all()));
        field(line, "node").map(str::to_string)
    };
    let nodes = |command, starts: &[&str]| -> Vec<_> {
        starts.iter().map(|start| node(command, start)).collect()
    };
    let expected = ["0", "0", "1", "1"].map(|node| Some(node.to_string()));
    let cpus = nodes("cpus", &["cpu0 ", "cpu1 ", "cpu2 ", "cpu3 "]);
    assert_eq!(cpus, expected);
    assert_eq!(nodes("dma", &["dma0 ", "dma1 "]), expected[1..3]);
    let total = number(closing_line(&ended, "mem", "mem: total="), "total");
    assert!(total > 1000 << 10, "the memory of both: {total} KiB");
}

#[test]
fn engines_of_every_version_are_known_by_their_names() {
    for (cbver, id) in [
        ("3.2", "8086:2021"),
        ("3.3", "8086:6f50"),
        ("3.4", "8086:0b00"),
    ] {
        let ended = bench().run(
            "lspci -v",
            &[("CBVER", cbver), ("IRQ", "intx"), ("CHANNELS", "2")],
        );
        ended.expect_success();
        let lspci = ended.output_of("lspci -v");
        let found = lspci
            .iter()
            .filter(|line| line.contains(id) && !line.contains("unknown"));
        assert_eq!(found.count(), 2, "{lspci:#?}");
        let registers = [
            format!("CBVER={cbver}"),
            "CHANCNT=2".into(),
            "irq=intx".into(),
        ];
        let all = |line: &&&str| registers.iter().all(|word| line.contains(word));
        assert_eq!(lspci.iter().filter(all).count(), 2, "{lspci:#?}");
    }
}

#[test]
fn firmware_may_leave_pci_to_the_kernel() {
    let ended = bench().run("lspci -v; slots", &[("BIOS", "qboot.rom"), ("IOAT", "1")]);
    ended.expect_success();
    let lspci = ended.output_of("lspci -v");
    assert!(
        lspci.iter().any(|line| line.contains("8086:2021")),
        "{lspci:#?}"
    );
}

#[test]
fn at_the_prompt_at_most_16_mib_of_ram_are_in_use() {
    let ended = bench().run("mem", &[]);
    let line = closing_line(ended.expect_success(), "mem", "mem: total=");
    let (used, free, total) = (
        number(line, "used"),
        number(line, "free"),
        number(line, "total"),
    );
    assert!(used > 0 && used <= 16 * 1024, "{line}");
    assert_eq!(used + free, total, "{line}");
}

#[test]
fn the_image_has_at_most_1_mib_to_load() {
    let path = bench().root().join("build/longshore.elf");
    let image = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = ElfFile64::<object::Endianness>::parse(image.as_slice()).unwrap();
    let loads = file
        .elf_program_headers()
        .iter()
        .filter(|header| header.p_type(file.endian()) == object::elf::PT_LOAD);
    let bytes: u64 = loads.map(|header| header.p_filesz(file.endian())).sum();
    assert!(bytes > 0 && bytes <= 1 << 20, "{bytes} bytes");
}

#[test]
fn the_prompt_comes_within_2_seconds_and_the_time_is_said() {
    let time = |_| {
        let ended = bench().start_alone(&[("CMD", "version")]).finish(PATIENCE);
        ended.expect_success();
        let line = ended
            .errors
            .lines()
            .find_map(|line| line.strip_prefix("prompt after "));
        let seconds = line.and_then(|line| line.strip_suffix(" s")?.parse::<f64>().ok());
        seconds.unwrap_or_else(|| panic!("no time in\n{}", ended.all()))
    };
    let best = (0..3).map(time).fold(f64::MAX, f64::min);
    assert!(best > 0.0 && best < 2.0, "{best} s");
}

/// Fails unless a frame of the report names `function` and a line inside that function.
#[track_caller]
fn expect_line_in(ended: &Ended, function: &str) {
    let frames: Vec<_> = ended
        .console
        .lines()
        .filter(|line| Frame::parse(line).is_some())
        .collect();
    assert!(frames.len() >= 3, "{}", ended.all());
    let frame = frames
        .iter()
        .find(|line| line.contains(&format!("::{function}+0x")));
    let frame = frame.unwrap_or_else(|| panic!("no frame of {function} in {frames:#?}"));
    let place = frame
        .split(['(', ' ', ')'])
        .rfind(|word| word.starts_with("kernel/src/"))
        .unwrap_or_else(|| panic!("no source line in {frame:?}"));
    let (file, line) = place.rsplit_once(':').unwrap();
    let line: usize = line.parse().unwrap();
    let source = fs::read_to_string(bench().root().join(file)).unwrap();
    let start = source.lines().take(line).enumerate().filter(|(_, text)| {
        let text = text.trim_start();
        text.starts_with("fn ") || text.contains(" fn ") && !text.starts_with("//")
    });
    let (_, around) = start.last().unwrap();
    assert!(
        around.contains(&format!("fn {function}(")),
        "{place} is in {around:?}"
    );
}

#[track_caller]
fn crash(how: &str, message: &str, function: &str) {
    let ended = bench().run(&format!("crash {how}; version"), &[("IOAT", "0")]);
    assert_eq!(ended.status, Some(1), "{}", ended.all());
    let panics = ended.lines_starting("PANIC cpu=");
    assert!(
        panics.len() == 1 && panics[0].contains(message),
        "{}",
        ended.all()
    );
    assert!(
        !ended.console.contains("longshore> version"),
        "life goes on\n{}",
        ended.all()
    );
    expect_line_in(&ended, function);
}

#[test]
fn crash_panic_leads_to_its_line() {
    crash(
        "panic",
        "kernel/src/console/commands/crash.rs:",
        "panic_on_purpose",
    );
}

#[test]
fn crash_stack_is_caught_by_the_guard_page() {
    crash("stack", "stack overflow", "overflow_the_stack");
}

#[test]
fn crash_fault_leads_to_its_line() {
    crash("fault", "page fault", "touch_nothing");
}

#[test]
fn the_console_edits_completes_and_remembers() {
    let mut machine = bench().start(&[("IOAT", "0")]);
    machine.await_prompt();
    // Backspace, Tab, the arrow up: each ends in the same command.
    for typed in ["versionx\x7f\r", "vers\t\r", "\x1b[A\r"] {
        machine.type_text(typed);
        machine.await_text("longshore 0.", PATIENCE);
        machine.await_text("\nok", PATIENCE);
        machine.await_prompt();
    }
    // Ctrl-C gives the prompt back, whatever has been typed.
    machine.type_text("poweroff\x03");
    machine.await_prompt();
    let lines = machine.command("jobs", PATIENCE);
    assert_eq!(lines.last().map(String::as_str), Some("ok"), "{lines:?}");
    machine.type_text("poweroff\r");
    let ended = machine.finish(PATIENCE);
    assert_eq!(ended.status, Some(0), "{}", ended.all());
}

/// Connects to a socket of a machine that is about to make it.
#[track_caller]
fn connect(path: &std::path::Path) -> UnixStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                return stream;
            }
            Err(error) if Instant::now() > deadline => panic!("{}: {error}", path.display()),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Reads until `wanted` has come.
#[track_caller]
fn read_until(stream: &mut UnixStream, wanted: &str) -> String {
    let (mut text, mut buffer) = (Vec::new(), [0; 1024]);
    while !String::from_utf8_lossy(&text).contains(wanted) {
        match stream.read(&mut buffer) {
            Ok(len @ 1..) => text.extend_from_slice(&buffer[..len]),
            end => panic!(
                "{end:?} before {wanted:?} in {:?}",
                String::from_utf8_lossy(&text)
            ),
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn console_and_machine_lines_on_sockets() {
    let machine = bench().start(&[("SERIAL", "socket"), ("IOAT", "1")]);
    let mut lines = connect(&machine.run_dir().machine());
    let mut console = connect(&machine.run_dir().serial());
    // What was said before somebody listened is gone: ask for a prompt until there is one.
    console
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("longshore> ") {
        assert!(
            Instant::now() < deadline,
            "no prompt: {}",
            String::from_utf8_lossy(&seen)
        );
        console.write_all(b"\r").unwrap();
        let mut buffer = [0; 1024];
        let len = console.read(&mut buffer).unwrap_or(0);
        seen.extend_from_slice(&buffer[..len]);
    }
    console.set_read_timeout(Some(PATIENCE)).unwrap();
    console.write_all(b"audit\r").unwrap();
    read_until(&mut console, "\r\naudit: chans=4 ");
    let line = read_until(&mut lines, "leaked=0");
    assert!(
        line.starts_with("audit: chans=4 "),
        "nothing but whole lines: {line:?}"
    );
    console.write_all(b"poweroff\r").unwrap();
    let ended = machine.finish(PATIENCE);
    assert!(
        ended.status == Some(0) && ended.console.is_empty(),
        "{}",
        ended.all()
    );
}

#[test]
fn debug_waits_for_gdb() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut machine = bench().start_debug(&[("GDB", &port.to_string()), ("IOAT", "0")]);
    machine.await_error_text(&format!("target remote localhost:{port}"), PATIENCE);
    let deadline = Instant::now() + PATIENCE;
    let mut gdb = loop {
        match std::net::TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    // `c` lets it go on: the remote protocol's packet is `$c#63`.
    gdb.write_all(b"+$c#63").unwrap();
    machine.await_prompt();
}

#[test]
fn ctrl_a_x_ends_qemu() {
    let mut machine = bench().start(&[]);
    machine.await_prompt();
    machine.type_text("\x01x");
    let ended = machine.finish(PATIENCE);
    assert_eq!(ended.status, Some(0), "{}", ended.all());
    ended.stats(1);
}

/// Processes whose parent is `pid`: name and id.
fn children_of(pid: u32) -> Vec<u32> {
    let parent = |stat: &str| {
        stat.rsplit_once(')')?
            .1
            .split_whitespace()
            .nth(1)?
            .parse()
            .ok()
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        parent(&stat) == Some(pid)
    })
    .collect()
}

/// Does it run, other than as a zombie that its new parent has not reaped?
fn runs(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| !rest.starts_with(" Z"))
    })
}

#[test]
fn nothing_outlives_a_launcher_that_is_killed() {
    let mut machine = bench().start(&[]);
    machine.await_prompt();
    let launcher = machine.launcher_pid();
    let children = children_of(launcher);
    assert_eq!(children.len(), 3, "QEMU and two engines");
    let killed = std::process::Command::new("kill")
        .args(["-9", &launcher.to_string()])
        .status();
    assert!(killed.is_ok_and(|status| status.success()));
    let run_dir = machine.run_dir().clone();
    let ended = machine.finish(PATIENCE);
    for _ in 0..100 {
        if !children.iter().any(|child| runs(*child)) {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let left: Vec<_> = children.iter().filter(|child| runs(**child)).collect();
    assert!(left.is_empty(), "{left:?} still run");

    // What it left behind does not disturb the next machine in the same place.
    let again = bench()
        .launcher("run", &[("CMD", "version")])
        .env("RUN_DIR", run_dir.path())
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert!(
        again.status.success(),
        "{}",
        String::from_utf8_lossy(&again.stderr)
    );
    ended.stats(0);
}

#[test]
fn a_second_machine_in_the_same_place_is_refused() {
    let mut machine = bench().start(&[("IOAT", "0")]);
    machine.await_prompt();
    let second = bench()
        .launcher("run", &[])
        .env("RUN_DIR", machine.run_dir().path())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("a machine runs in"));
    let lines = machine.command("version", PATIENCE);
    assert_eq!(
        lines.last().map(String::as_str),
        Some("ok"),
        "the first one is not disturbed"
    );
}

#[test]
fn the_launcher_measures_and_ends_within_its_limit() {
    let ended = bench().start(&[
        ("IOAT", "0"),
        ("CMD", "version; poweroff"),
        ("TIMEOUT", "60"),
    ]);
    // Powering off by itself leaves commands without a verdict.
    let ended = ended.finish(PATIENCE);
    assert_eq!(ended.status, Some(1), "{}", ended.all());
    assert!(
        ended.errors.contains("before all commands had run"),
        "{}",
        ended.all()
    );
}
