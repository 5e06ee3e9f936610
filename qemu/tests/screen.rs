//! The console where it is not on COM1: on the port that firmware's tables name.

#![forbid(unsafe_code)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use longshore_qemu::console::PROMPT;
use longshore_qemu::qemu;
use longshore_qemu::scenario::{Bench, PATIENCE};

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_longshore-qemu"))
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
