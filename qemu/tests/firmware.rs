//! The bootable image and the boards that it may meet: BIOS and UEFI, CD and USB stick, i440fx, old
//! CPUs, missing timers. On each, engines copy, leave and come back, and nothing stays behind.

#![forbid(unsafe_code)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use longshore_qemu::qmp::Qmp;
use longshore_qemu::scenario::{Bench, Ended, PATIENCE, can_boot, field};
use longshore_qemu::transcript::Transcript;
use longshore_qemu::{child, iso, qemu};

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_longshore-qemu"))
}

/// An engine at `address` copies, leaves while a client uses it, and comes back: nothing fails, nothing is
/// lost, nothing leaks.
#[track_caller]
fn works(address: &str, variables: &[(&str, &str)]) -> Ended {
    let mut machine = bench().start(variables);
    machine.await_prompt();
    let remove = format!("pci remove {address}");
    for command in [
        "version",
        "cpus",
        "lspci",
        "dmatest iterations=20",
        "dmatest channel=dma0chan0 iterations=0 &",
        &remove,
        "dmatest channel=dma1chan0 iterations=20",
        "pci rescan",
        "stop 1",
        "dmatest iterations=3",
    ] {
        machine.ok(command);
    }
    machine.await_rest();
    machine.type_text("poweroff\r");
    let ended = machine.finish(PATIENCE);
    ended.expect_success();
    let tests = ended.lines_starting("dmatest: dma");
    let summaries = tests.iter().filter(|line| line.contains(" summary "));
    let failed = summaries.clone().any(|line| !line.contains(" 0 failures "));
    assert!(
        summaries.count() >= 8 + 1 + 8 && !failed,
        "{variables:?}: {tests:#?}"
    );
    for state in ["detached", "live"] {
        let start = format!("hot: {address} {state} ");
        let lines = ended.lines_starting(&start);
        assert!(
            lines.len() == 1 && field(lines[0], "lost") == Some("0"),
            "{variables:?}: {lines:?}\n{}",
            ended.all()
        );
    }
    ended
}

#[track_caller]
fn by_firmware(firmware: &str, media: &str) {
    if !can_boot(&bench(), &format!("the image by {firmware} from {media}")) {
        return;
    }
    let ended = works("01:00.0", &[("FIRMWARE", firmware), ("MEDIA", media)]);
    assert!(
        ended.console.contains("(x86_64, multiboot2)"),
        "{}",
        ended.all()
    );
    assert!(!ended.console.contains("WARN"), "{}", ended.all());
    let stick = ended.console.contains("USB controller");
    assert_eq!(stick, media == "usb", "{}", ended.all());
    // UEFI tells the serial port what it loads.
    let uefi = ended.console.contains("BdsDxe: starting");
    assert_eq!(uefi, firmware == "uefi", "{}", ended.all());
}

#[test]
fn a_bios_boots_the_image_from_a_cd() {
    by_firmware("bios", "cd");
}

#[test]
fn a_bios_boots_the_image_from_a_usb_stick() {
    by_firmware("bios", "usb");
}

#[test]
fn uefi_boots_the_image_from_a_cd() {
    by_firmware("uefi", "cd");
}

#[test]
fn uefi_boots_the_image_from_a_usb_stick() {
    by_firmware("uefi", "usb");
}

#[test]
fn words_reach_the_kernel_as_they_were_given() {
    if !can_boot(&bench(), "words for the kernel") {
        return;
    }
    let append = r#"bogus='it\'s' loglevel=loud run="version; dmatest bogus=\"$a\"""#;
    let ended = bench()
        .start(&[("FIRMWARE", "bios"), ("IOAT", "0"), ("APPEND", append)])
        .finish(PATIENCE);
    for text in [
        r#""bogus='it's'""#,
        r#""loglevel=loud""#,
        "longshore> dmatest bogus=\"$a\"",
        "run: commands=2 failed=1",
    ] {
        assert!(ended.console.contains(text), "no {text}\n{}", ended.all());
    }
}

/// As on a machine of one's own, where nobody gives words: an entry of the menu is chosen, or after a
/// while the first one boots.
#[test]
fn the_menu_boots_what_is_chosen_or_the_first() {
    if !can_boot(&bench(), "the menu") {
        return;
    }
    let bench = bench();
    std::env::set_current_dir(bench.root()).unwrap();
    iso::ensure(bench.root(), "build/longshore.elf").unwrap();
    let qemu = qemu::find(bench.root(), None).unwrap();
    for (keys, wanted) in [("", "longshore> "), ("\x0e\r", "=== longshore report end")] {
        let mut machine = Command::new(&qemu)
            .args(["-machine", "q35", "-m", "256", "-nodefaults"])
            .args(["-display", "none", "-no-reboot"])
            .args(["-cdrom", iso::ISO, "-serial", "stdio"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let console = Transcript::follow(machine.stdout.take());
        let menu = console.find(b"Longshore, engines confined", 0, PATIENCE);
        let mut keyboard = machine.stdin.take().unwrap();
        keyboard.write_all(keys.as_bytes()).unwrap();
        let found = menu.and_then(|menu| console.find(wanted.as_bytes(), menu, PATIENCE));
        let _ = child::end(&mut machine, PATIENCE);
        assert!(found.is_some(), "no {wanted:?} in\n{}", console.text());
    }
}

/// Configuration space by ports alone: engines that need more of it are refused, others work.
#[test]
fn an_i440fx_has_no_extended_configuration_space() {
    for cbver in ["3.2", "3.3"] {
        let ended = bench().run("dma; audit", &[("MACHINE", "pc"), ("CBVER", cbver)]);
        ended.expect_success();
        for engine in ["00:02.0", "00:03.0"] {
            let reason =
                format!("{engine}: not used: extended configuration space is out of reach");
            let said = ended.console.matches(&reason).count();
            assert_eq!(said, 1, "{cbver} {engine}\n{}", ended.all());
        }
        assert!(ended.output_of("dma").contains(&"dma: devices=0"));
        let audit = ended.lines_starting("audit: ");
        assert!(audit[0].starts_with("audit: chans=0 ") && audit[0].ends_with("leaked=0"));
    }
    for firmware in ["direct", "bios"] {
        if firmware == "bios" && !can_boot(&bench(), "an i440fx by its BIOS") {
            return;
        }
        let pc = [("MACHINE", "pc"), ("CBVER", "3.4"), ("FIRMWARE", firmware)];
        let ended = works("00:02.0", &pc);
        assert!(ended.console.contains("440FX"), "{}", ended.all());
    }
}

/// How the CPUs' interrupt controllers are addressed, and what the clock was measured against.
#[track_caller]
fn modes(ended: &Ended) -> (&str, &str) {
    let cpus = ended.lines_starting("cpus: online=4 found=4 ");
    let clock = ended.lines_starting("clock: TSC at ");
    assert!(cpus.len() == 1 && clock.len() == 1, "{}", ended.all());
    let against = clock[0].split("against the ").nth(1).unwrap_or_default();
    (
        field(cpus[0], "mode").unwrap_or_default(),
        against.split(';').next().unwrap_or_default(),
    )
}

/// The oldest model of an x86-64 CPU that QEMU has, the plainest, and one with all that it knows.
#[test]
fn cpus_old_and_new() {
    for (model, mode) in [
        ("Opteron_G1", "xapic"),
        ("qemu64", "xapic"),
        ("max", "x2apic"),
    ] {
        let ended = works("01:00.0", &[("CPU", model)]);
        assert_eq!(modes(&ended).0, mode, "{model}");
    }
    // By firmware as well, which has its own ideas of a CPU's features.
    if can_boot(&bench(), "an old CPU by its BIOS") {
        works("01:00.0", &[("CPU", "Opteron_G1"), ("FIRMWARE", "bios")]);
    }
}

#[test]
fn with_and_without_x2apic_and_hpet() {
    for (x2apic, hpet, firmware, expected) in [
        ("on", "off", "direct", ("x2apic", "ACPI PM timer")),
        ("off", "on", "direct", ("xapic", "HPET")),
        ("off", "off", "uefi", ("xapic", "ACPI PM timer")),
    ] {
        if firmware == "uefi" && !can_boot(&bench(), "UEFI without x2APIC and HPET") {
            return;
        }
        let settings = [("X2APIC", x2apic), ("HPET", hpet), ("FIRMWARE", firmware)];
        assert_eq!(
            modes(&works("01:00.0", &settings)),
            expected,
            "{settings:?}"
        );
    }
}

/// Nobody hears the machine, for it has no serial port: it does what it was told, and powers itself off.
#[test]
fn without_a_serial_port() {
    let bench = bench();
    let qemu = qemu::find(bench.root(), None).unwrap();
    let script = r#"#!/bin/bash
args=()
while (($#)); do
    [[ $1 = -serial ]] && shift || args+=("$1")
    shift
done
exec "$REAL_QEMU" "${args[@]}" -qmp "unix:$(dirname "$0")/own,server=on,wait=on"
"#;
    let run = "run=\"dmatest iterations=20; pci remove 01:00.0; dmatest iterations=20; pci rescan; \
               dmatest channel=dma0chan0 iterations=20\"";
    for firmware in ["direct", "bios"] {
        if firmware == "bios" && !can_boot(&bench, "a BIOS without a serial port") {
            return;
        }
        let name = format!("longshore-mute-{firmware}-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        let wrapper = dir.join("qemu");
        let text = script.replace("$REAL_QEMU", &qemu.to_string_lossy());
        fs::write(&wrapper, text).unwrap();
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
        let machine = bench.start(&[
            ("QEMU", &wrapper.to_string_lossy()),
            ("FIRMWARE", firmware),
            ("APPEND", run),
        ]);
        let mut qmp = Qmp::connect(&dir.join("own"), PATIENCE).unwrap();
        let off = qmp.await_event(PATIENCE, |event, data| {
            event == "SHUTDOWN" && data["reason"] == "guest-shutdown"
        });
        let ended = machine.finish(PATIENCE);
        assert!(
            off == Ok(true) && ended.status == Some(0),
            "{}",
            ended.all()
        );
        // What was said tells nothing, what the engines did does: four channels with 20 copies each; of
        // the engine that stayed, twice; of the one that came back, one channel once more.
        for (engine, copies) in [(0, 100), (1, 160)] {
            let done = ended.stats(engine).get("descriptors");
            assert!(done >= copies, "{firmware}: {done} of {copies}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}

/// A machine with neither GRUB's tools nor apt: one line that names the packages.
#[test]
fn without_the_tools_it_is_said_what_to_install() {
    let home = std::env::temp_dir().join(format!("longshore-no-grub-{}", std::process::id()));
    let _ = fs::remove_dir_all(&home);
    fs::create_dir_all(home.join("bin")).unwrap();
    for tool in [
        "env", "bash", "dirname", "readlink", "ls", "sort", "mkdir", "flock", "rm",
    ] {
        let found = ["/usr/bin", "/bin"].map(|dir| Path::new(dir).join(tool));
        let found = found.iter().find(|path| path.exists()).expect(tool);
        symlink(found, home.join("bin").join(tool)).unwrap();
    }
    let output = bench()
        .launcher("iso", &[])
        .env("PATH", home.join("bin"))
        .env("HOME", &home)
        .env("XDG_CACHE_HOME", home.join("cache"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    let names = "install grub-common grub-pc-bin grub-efi-amd64-bin xorriso mtools\n";
    assert!(
        said.lines().count() == 1 && said.starts_with("get-grub: ") && said.ends_with(names),
        "{said}"
    );
    fs::remove_dir_all(&home).unwrap();
}
