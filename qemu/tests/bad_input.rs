//! Bad input from people and from engines: one clear line each, nothing hangs, the exit status tells.

#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;

use longshore_qemu::scenario::{Bench, Ended, PATIENCE};

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_longshore-qemu"))
}

/// Lines of the launcher itself and of `get-qemu.sh`.
fn said(ended: &Ended) -> Vec<&str> {
    let own = |line: &&str| line.starts_with("longshore: ") || line.starts_with("get-qemu: ");
    ended.errors.lines().filter(own).collect()
}

/// The machine does not come up: this status, one line with this in it, and nothing on the console.
#[track_caller]
fn refused(variables: &[(&str, &str)], status: i32, message: &str) {
    let mut all = vec![("CMD", "version")];
    all.extend(variables);
    let ended = bench().start(&all).finish(PATIENCE);
    assert_eq!(ended.status, Some(status), "{variables:?}\n{}", ended.all());
    let said = said(&ended);
    assert!(
        said.len() == 1 && said[0].contains(message),
        "{variables:?}\n{}",
        ended.all()
    );
}

#[test]
fn bad_variables() {
    refused(&[("CPUS", "none")], 2, "CPUS=none");
    refused(&[("MEM", "12")], 2, "MEM=12");
    refused(&[("CBVER", "2.0")], 2, "CBVER=2.0");
    refused(&[("IRQ", "gpio")], 2, "IRQ=gpio");
    refused(&[("IOMMU", "maybe")], 2, "IOMMU");
    refused(&[("WHERE", "slot")], 2, "WHERE=slot");
    refused(&[("PASSTHROUGH", "4")], 2, "PASSTHROUGH=4");
    let real = ("PASSTHROUGH", "fe:1f.7");
    refused(&[real], 1, "no PCI function 0000:fe:1f.7");
    refused(&[real, ("ACCEL", "tcg")], 2, "goes by KVM");
    refused(&[("FIRMWARE", "coreboot")], 2, "FIRMWARE=coreboot");
    refused(&[("MEDIA", "usb")], 2, "MEDIA=usb");
    refused(&[("MACHINE", "isapc")], 2, "MACHINE=isapc");
    refused(&[("CPU", "80486")], 2, "CPU=80486");
    refused(&[("X2APIC", "yes")], 2, "X2APIC=yes");
    refused(&[("HPET", "maybe")], 2, "HPET=maybe");
    refused(&[("FAULT", "nonsense@7")], 2, "nonsense@7");
    refused(&[("KERNEL", "build/none.elf")], 1, "build/none.elf");
}

/// A program of a few lines of shell.
fn script(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("longshore-{name}-{}", std::process::id()));
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_missing_or_too_old_qemu() {
    refused(&[("QEMU", "/nonexistent/qemu")], 2, "no such program");
    refused(&[("QEMU", "/bin/true")], 2, "does not run as a QEMU");
    let old = script(
        "old-qemu",
        "case $1 in --version) echo 'QEMU emulator version 7.2.17';; *) echo 'name \"e1000\"';; esac",
    );
    refused(&[("QEMU", old.to_str().unwrap())], 2, "version 7.2.17");
    fs::remove_file(old).unwrap();
}

#[test]
fn an_engine_that_does_not_answer() {
    refused(&[("FAULT", "ioat1:silent")], 1, "ioat1 does not answer on ");
    refused(&[("ENGINE", "/nonexistent/engine")], 1, "no engine program");
    let mute = script("mute-engine", "exec sleep 100");
    refused(
        &[("ENGINE", mute.to_str().unwrap()), ("IOAT", "1")],
        1,
        "ioat0 does not listen on ",
    );
    fs::remove_file(mute).unwrap();
    let dying = script("dying-engine", "echo 'error: out of paint' >&2; exit 3");
    refused(
        &[("ENGINE", dying.to_str().unwrap())],
        1,
        "ended with status 3: error: out of paint",
    );
    fs::remove_file(dying).unwrap();
}

#[test]
fn a_machine_that_never_gets_to_its_end() {
    // Firmware gives up over a BAR that does not fit, and says nothing.
    refused(
        &[("FAULT", "bar=1T"), ("TIMEOUT", "5")],
        1,
        "have not ended after 5 s",
    );
}

/// QEMU reads the capability lists before the kernel can, and follows the loop for ever: it is ended.
/// What the kernel makes of such lists is under test where it reads them (drivers/hal/src/pci.rs).
#[test]
fn an_engine_whose_capability_lists_loop() {
    refused(
        &[("FAULT", "ioat0:caploop")],
        1,
        "QEMU has not started the machine within ",
    );
}

#[test]
fn unknown_console_commands_and_parameters() {
    let bad = [
        "bogus",
        "lspci -x",
        "lspci -v -v",
        "version now",
        "help bogus",
        "stop 99",
        "stop x",
        "crash",
        "crash gently",
        "dmatest bogus=1",
        "dmatest iterations",
        "bench bogus",
        "dma all",
    ];
    let ended = bench().run(&format!("{}; version", bad.join("; ")), &[]);
    assert_eq!(ended.status, Some(1), "{}", ended.all());
    assert!(ended.lines_starting("PANIC").is_empty(), "{}", ended.all());
    for command in bad {
        let lines = ended.output_of(command);
        assert!(
            lines.last().is_some_and(|line| line.starts_with("error: ")),
            "{command}: {lines:?}"
        );
        assert_eq!(lines.len(), 1, "{command}: {lines:?}");
    }
    assert_eq!(ended.output_of("version").last(), Some(&"ok"));
    let summary = format!("run: commands={} failed={}", bad.len() + 1, bad.len());
    assert!(ended.console.contains(&summary), "{}", ended.all());
}

#[test]
fn strange_keys_and_long_lines_on_the_console() {
    let mut machine = bench().start(&[("IOAT", "0")]);
    machine.await_prompt();
    machine.type_text("\x00\x02\x1b[99~\x1b[Z\x1bOP\u{fffd}\u{00e4}\x7f\x7f\x03");
    machine.await_prompt();
    machine.type_text(&"x".repeat(5000));
    machine.type_text("\x03");
    machine.await_prompt();
    machine.type_text("\r");
    machine.await_prompt();
    machine.type_text(" ; ;; &\r");
    machine.await_prompt();
    machine.type_text("version\r");
    machine.await_text("longshore 0.", PATIENCE);
    machine.type_text("poweroff\r");
    let ended = machine.finish(PATIENCE);
    assert!(
        ended.status == Some(0) && ended.lines_starting("PANIC").is_empty(),
        "{}",
        ended.all()
    );
}

#[test]
fn a_malformed_kernel_command_line() {
    let append =
        "bogus loglevel=loud cpus=zero hotplug_window= iommu=perhaps acpi_rsdp=7 = console=x";
    let ended = bench().run("version", &[("APPEND", append), ("IOAT", "0")]);
    ended.expect_success();
    for word in ["bogus", "loglevel=loud", "cpus=zero", "acpi_rsdp=7"] {
        let reports = ended
            .console
            .lines()
            .filter(|line| line.contains(&format!("{word:?}")));
        assert_eq!(reports.count(), 1, "{word}\n{}", ended.all());
    }
    // A quote that stays open, and a root pointer that points nowhere.
    let ended = bench().start(&[("APPEND", "loglevel=debug run=\"version"), ("IOAT", "0")]);
    let mut machine = ended;
    machine.await_text("longshore> version", PATIENCE);
    machine.await_text("\nok", PATIENCE);
    let ended = machine.finish(PATIENCE);
    assert!(ended.lines_starting("PANIC").is_empty(), "{}", ended.all());
}

/// One engine is broken so, the other is sound: one complaint, and the machine goes on with the other.
#[track_caller]
fn broken_engine(variables: &[(&str, &str)], word: &str) {
    let ended = bench().run("lspci -v; dma; dmatest iterations=5; audit", variables);
    ended.expect_success();
    let complaints: Vec<_> = ended
        .console
        .lines()
        .filter(|line| {
            ["] error ", "] warn ", "WARN"]
                .iter()
                .any(|level| line.contains(level))
        })
        .collect();
    assert_eq!(complaints.len(), 1, "{variables:?}\n{}", ended.all());
    assert!(
        complaints[0].contains(word) && complaints[0].contains("01:00.0"),
        "{complaints:?}"
    );
    let sound = ended
        .output_of("dma")
        .iter()
        .filter(|line| line.starts_with("dma0chan"))
        .count();
    assert_eq!(sound, 4, "{variables:?}\n{}", ended.all());
}

#[test]
fn engines_that_cannot_be() {
    broken_engine(&[("FAULT", "ioat0:chancnt=0")], "CHANCNT");
    broken_engine(&[("FAULT", "ioat0:xfercap=0")], "XFERCAP");
    broken_engine(&[("FAULT", "ioat0:noreset")], "RESET");
}

#[test]
fn bars_that_do_not_fit() {
    // Firmware that leaves PCI to the kernel lets the kernel meet such an engine.
    let ended = bench().run(
        "lspci -v; dma",
        &[("FAULT", "ioat0:bar=1T"), ("BIOS", "qboot.rom")],
    );
    ended.expect_success();
    assert_eq!(
        ended
            .console
            .lines()
            .filter(|line| line.contains("1073741824 KiB finds no room"))
            .count(),
        1,
        "{}",
        ended.all()
    );
}

#[test]
fn make_passes_variables_and_says_what_is_not_there_yet() {
    let make = |args: &[&str]| {
        let output = std::process::Command::new("make")
            .args(args)
            .current_dir(bench().root())
            .env_remove("MAKEFLAGS")
            .env_remove("MAKELEVEL")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    };
    let (status, text) = make(&["fuzz"]);
    assert!(
        status == Some(2) && text.contains("not there yet"),
        "{text}"
    );
    let (status, text) = make(&["help"]);
    assert!(status == Some(0) && text.contains("CBVER=3.2"), "{text}");
}
