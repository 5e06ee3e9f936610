//! The console where it is not on COM1: on the screen and the keyboard, and on the port that
//! firmware's tables name.

#![forbid(unsafe_code)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use longshore_qemu::console::PROMPT;
use longshore_qemu::qemu;
use longshore_qemu::scenario::{Bench, Machine, PATIENCE, can_boot};
use longshore_qemu::screen::{CURSOR, Screen, UNKNOWN};

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_longshore-qemu"))
}

/// Waits for an empty prompt at the end of what the screen shows; gives its lines.
#[track_caller]
fn await_prompt(screen: &mut Screen) -> Vec<String> {
    let prompt = format!("{PROMPT}{CURSOR}");
    let is_last = |lines: &[String]| {
        let last = lines.iter().rfind(|line| !line.is_empty());
        last == Some(&prompt)
    };
    screen
        .await_lines(PATIENCE, is_last)
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Types a command on the keyboard; gives what the screen shows when it has ended.
#[track_caller]
fn command(screen: &mut Screen, command: &str) -> Vec<String> {
    screen
        .type_line(PROMPT, command, PATIENCE)
        .unwrap_or_else(|error| panic!("{error}"));
    await_prompt(screen)
}

#[track_caller]
fn screen_of(machine: &Machine) -> Screen {
    Screen::of(machine.run_dir(), PATIENCE).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn assert_shows(lines: &[String], wanted: &str) {
    let found = lines.iter().any(|line| line.contains(wanted));
    assert!(found, "no {wanted:?} on the screen:\n{}", lines.join("\n"));
}

#[test]
fn screen_and_keyboard_are_console_enough() {
    if !can_boot(&bench(), "screen and keyboard by BIOS") {
        return;
    }
    let machine = bench().start(&[
        ("FIRMWARE", "bios"),
        ("SCREEN", "on"),
        ("SERIAL", "none"),
        ("IOAT", "1"),
        ("CPUS", "2"),
    ]);
    let mut screen = screen_of(&machine);
    let version = concat!("longshore ", env!("CARGO_PKG_VERSION"));
    assert_shows(&await_prompt(&mut screen), version);
    let lines = command(&mut screen, "version");
    assert_shows(&lines, &format!("{version} (x86_64, multiboot2)"));
    assert_shows(&command(&mut screen, "audit"), "leaked=0");

    // What has left the screen is found, and typing leads back.
    let echo = format!("{PROMPT}version");
    let mut lines = command(&mut screen, "help");
    while lines.contains(&echo) {
        lines = command(&mut screen, "help");
    }
    let mut looked_back = 0;
    while !lines.contains(&echo) {
        screen.press(&["shift", "pgup"]).unwrap();
        lines = screen.await_lines(PATIENCE, |now| *now != *lines).unwrap();
        looked_back += 1;
        assert!(looked_back < 20, "{}", lines.join("\n"));
    }
    screen.press(&["x"]).unwrap();
    let typed = format!("{PROMPT}x{CURSOR}");
    screen
        .await_lines(PATIENCE, |lines| lines.contains(&typed))
        .unwrap();
    screen.press(&["ctrl", "c"]).unwrap();
    assert_shows(&await_prompt(&mut screen), &format!("{PROMPT}x^C"));

    // The line is edited as on a terminal.
    let mut press = |keys: &[&str], shown: &str| {
        for key in keys {
            screen.press(&[key]).unwrap();
        }
        let line = format!("{PROMPT}{shown}");
        screen
            .await_lines(PATIENCE, |lines| lines.contains(&line))
            .unwrap_or_else(|error| panic!("{line:?}: {error}"));
    };
    press(&["x", "v"], &format!("xv{CURSOR}"));
    press(&["home", "delete"], &UNKNOWN.to_string());
    press(&["end"], &format!("v{CURSOR}"));
    screen
        .type_line(&format!("{PROMPT}v"), "ersion", PATIENCE)
        .unwrap();
    assert_shows(&await_prompt(&mut screen), &echo);

    // What is long comes in pages, which a key turns and Ctrl-C ends.
    screen.type_line(PROMPT, "report", PATIENCE).unwrap();
    let more = format!("-- more: press a key, or wait --{CURSOR}");
    let page = screen
        .await_lines(PATIENCE, |lines| lines.contains(&more))
        .unwrap();
    assert_shows(&page, "=== longshore report begin");
    screen.press(&["spc"]).unwrap();
    screen
        .await_lines(PATIENCE, |lines| *lines != *page && lines.contains(&more))
        .unwrap();
    screen.press(&["ctrl", "c"]).unwrap();
    assert_shows(&await_prompt(&mut screen), "error: interrupted");

    // A panic is seen, with nothing but the screen to show it.
    screen.type_line(PROMPT, "crash panic", PATIENCE).unwrap();
    let ended = |lines: &[String]| lines.iter().any(|line| line.trim() == "halted");
    let report = screen.await_lines(PATIENCE, ended).unwrap();
    assert!(
        report.iter().any(|line| line.starts_with("PANIC cpu=")),
        "{}",
        report.join("\n")
    );
    assert_shows(&report, "#0 ");
}

#[test]
fn the_screen_shows_what_the_serial_port_says() {
    if !can_boot(&bench(), "the screen by UEFI") {
        return;
    }
    let mut machine = bench().start(&[("FIRMWARE", "uefi"), ("SCREEN", "on"), ("IOAT", "1")]);
    machine.await_prompt();
    let said = machine.ok("lspci");
    let shown = await_prompt(&mut screen_of(&machine));
    for line in said.iter().filter(|line| line.len() < 60) {
        assert_shows(&shown, line);
    }
}

/// A QEMU whose firmware has a table that names a UART at `port`, with 115200 baud.
fn qemu_with_console_at(port: u16) -> PathBuf {
    let bench = bench();
    let qemu = qemu::find(bench.root(), None).unwrap_or_else(|error| panic!("{error}"));
    let name = |what| {
        std::env::temp_dir().join(format!("longshore-{}-{port:x}-{what}", std::process::id()))
    };
    // From offset 36 on: interface, address, interrupt, rate. Revision 2.
    let mut table = [0u8; 44];
    table[4..8].copy_from_slice(&[1, 8, 0, 1]);
    table[8..10].copy_from_slice(&port.to_le_bytes());
    table[16..18].copy_from_slice(&[1, if port == 0x2f8 { 3 } else { 4 }]);
    table[22] = 7;
    let file = name("table");
    fs::write(&file, table).unwrap();
    let script = name("qemu");
    let text = format!(
        "#!/bin/sh\nexec '{}' \"$@\" -acpitable sig=SPCR,rev=2,data={}\n",
        qemu.display(),
        file.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

#[test]
fn the_console_is_where_firmware_has_its_own() {
    let qemu = qemu_with_console_at(0x2f8);
    let qemu = qemu.to_string_lossy();
    let machine = bench().start(&[("QEMU", &qemu), ("IOAT", "0"), ("CPUS", "1")]);
    // The second port, where else lines for machines are. What is said before somebody listens is
    // lost, so that the prompt is asked for.
    let deadline = Instant::now() + PATIENCE;
    let mut port = loop {
        match UnixStream::connect(machine.run_dir().machine()) {
            Ok(port) => break port,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    port.set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let mut said = String::new();
    let mut bytes = [0; 4096];
    while !said.contains("\nok\r\n") {
        assert!(Instant::now() < deadline, "{said:?}");
        port.write_all(b"version\r").unwrap();
        while let Ok(count @ 1..) = port.read(&mut bytes) {
            said.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    }
    assert!(said.contains(&format!("{PROMPT}version")), "{said:?}");

    // The command line has the last word.
    let variables = [("QEMU", &*qemu), ("IOAT", "0"), ("APPEND", "console=com1")];
    bench().run("version", &variables).expect_success();
}

#[test]
fn a_console_on_another_uart_is_told_and_left_alone() {
    let qemu = qemu_with_console_at(0x3e8);
    let ended = bench().run(
        "version",
        &[("QEMU", &qemu.to_string_lossy()), ("IOAT", "0")],
    );
    ended.expect_success();
    assert!(
        ended.console.contains("neither COM1 nor COM2"),
        "{}",
        ended.all()
    );
}
