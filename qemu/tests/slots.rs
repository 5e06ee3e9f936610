//! Engines that leave and come by their slots while they copy: by the button, and with their power
//! cut. Clients notice nothing, nothing is lost and nothing stays behind.

#![forbid(unsafe_code)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use longshore_qemu::control::{self, Verb};
use longshore_qemu::qemu;
use longshore_qemu::qmp::Qmp;
use longshore_qemu::scenario::{Bench, Ended, Machine, PATIENCE, confined, number};
use serde_json::json;

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_longshore-qemu"))
}

/// The button's window is short, and engines take long: there is always work in flight.
const SETTINGS: [(&str, &str); 3] = [
    ("APPEND", "hotplug_window=100"),
    ("CHANNELS", "2"),
    ("FAULT", "slow=30000"),
];

#[track_caller]
fn start(more: &[(&str, &str)]) -> Machine {
    let mut settings = SETTINGS.to_vec();
    settings.extend(more);
    let mut machine = bench().start(&settings);
    machine.await_prompt();
    machine
}

/// Runs a subcommand of the launcher on the machine; whether it succeeded, and all that it said.
fn launcher(machine: &Machine, subcommand: &str, variables: &[(&str, &str)]) -> (bool, String) {
    let (status, said) = bench().on(machine, subcommand, variables);
    (status == Some(0), said)
}

#[track_caller]
fn press(machine: &Machine, engine: &str) {
    let (done, said) = launcher(machine, "hot-remove", &[("DEV", engine)]);
    assert!(done, "{said}");
}

#[track_caller]
fn cut(machine: &Machine, engine: &str) {
    let how = [("DEV", engine), ("HOW", "power")];
    let (done, said) = launcher(machine, "yank", &how);
    assert!(done, "{said}");
}

#[track_caller]
fn add(machine: &mut Machine, engine: &str, address: &str) {
    let (done, said) = launcher(machine, "hot-add", &[("DEV", engine)]);
    assert!(done, "{said}");
    machine.await_text(&format!("hot: {address} live "), PATIENCE);
}

/// Asks until one of a command's lines is as wanted.
#[track_caller]
fn await_line(machine: &mut Machine, command: &str, wanted: impl Fn(&str) -> bool) {
    let begin = Instant::now();
    loop {
        let lines = machine.ok(command);
        if lines.iter().any(|line| wanted(line)) {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "{command}: {lines:#?}");
    }
}

/// Waits until the slot of this number is in `state`.
#[track_caller]
fn await_slot(machine: &mut Machine, number: u32, state: &str) {
    let start = format!("slot {number} ");
    let end = format!(" state={state}");
    await_line(machine, "slots", |line| {
        line.starts_with(&start) && line.ends_with(&end)
    });
}

/// The case in which Linux panics: a client on a channel of the first engine, for ever. And others
/// on all channels.
#[track_caller]
fn load(machine: &mut Machine) {
    machine.ok("dmatest channel=dma0chan0 iterations=0 threads_per_chan=8 &");
    machine.ok("dmatest iterations=0 threads_per_chan=2 test_buf_size=32768 &");
    machine.ok("dmatest channel=cpu iterations=20");
}

/// Stops the tests of [`load`] and the machine. Nothing may have failed, be lost or be left.
#[track_caller]
fn end(mut machine: Machine) -> Ended {
    machine.ok("stop 1");
    machine.ok("stop 2");
    machine.await_rest();
    machine.type_text("poweroff\r");
    let ended = machine.finish(PATIENCE);
    let all = ended.all();
    for bad in ["WARN", "PANIC", "error: ", "result #"] {
        assert!(!all.contains(bad), "{bad} in\n{all}");
    }
    for line in ended
        .console
        .lines()
        .filter(|line| line.contains(": summary "))
    {
        assert!(line.contains(", 0 failures "), "{line}\n{all}");
    }
    ended
}

/// The `hot:` lines of `address` in `state`, `lost=0` in each.
#[track_caller]
fn hot(ended: &Ended, address: &str, state: &str) -> Vec<String> {
    let lines = ended.lines_starting(&format!("hot: {address} {state} "));
    for line in &lines {
        assert_eq!(number(line, "lost"), 0, "{line}");
    }
    lines.into_iter().map(String::from).collect()
}

/// An engine leaves twice and comes twice.
fn in_and_out(cpus: &str) {
    let mut machine = start(&[("CPUS", cpus)]);
    load(&mut machine);
    press(&machine, "ioat0");
    machine.await_text("hot: 01:00.0 detached ", PATIENCE);
    await_slot(&mut machine, 1, "off");
    machine.ok("dmatest channel=dma1chan0 iterations=10");
    add(&mut machine, "ioat0", "01:00.0");
    await_slot(&mut machine, 1, "on");
    machine.ok("dmatest channel=dma0chan1 iterations=10");
    // What works now is on its channels again.
    machine.ok("dmatest channel=dma0chan0 iterations=0 threads_per_chan=4 &");
    machine.ok("dmatest channel=cpu iterations=20");
    cut(&machine, "ioat0");
    machine.await_text("hot: 01:00.0 gone ", PATIENCE);
    machine.await_text("hot: 01:00.0 detached ", PATIENCE);
    add(&mut machine, "ioat0", "01:00.0");
    machine.ok("dmatest channel=dma0chan0 iterations=10");
    machine.ok("stop 3");
    let ended = end(machine);
    let gone = hot(&ended, "01:00.0", "detached");
    assert_eq!(gone.len(), 2, "{}", ended.all());
    for line in gone {
        // Mappings are taken back one by one where engines are confined, and meanwhile work ends.
        assert!(confined() || number(&line, "failed_over") > 0, "{line}");
    }
    assert_eq!(hot(&ended, "01:00.0", "draining").len(), 1);
    assert_eq!(hot(&ended, "01:00.0", "gone").len(), 1);
}

#[test]
fn an_engine_in_use_leaves_by_its_slot_and_comes_back() {
    ["1", "4", "16"].into_iter().for_each(in_and_out);
}

/// Connected, for more than one request at a time.
fn qmp(machine: &Machine) -> Qmp {
    Qmp::connect(&machine.run_dir().qmp(), PATIENCE).unwrap()
}

#[test]
fn both_engines_leave_at_once_and_the_cpu_goes_on() {
    let mut machine = start(&[]);
    load(&mut machine);
    let mut qmp = qmp(&machine);
    for engine in ["ioat0", "ioat1"] {
        qmp.execute("device_del", json!({ "id": engine })).unwrap();
    }
    for _ in 0..2 {
        let deleted = qmp.await_event(PATIENCE, |event, data| {
            event == "DEVICE_DELETED" && data["device"].is_string()
        });
        assert!(deleted.unwrap());
    }
    drop(qmp);
    for engine in [0, 1] {
        control::ask(&machine.run_dir().control(), Verb::End, engine).unwrap();
    }
    await_line(&mut machine, "dma", |line| line == "dma: devices=0");
    machine.ok("dmatest channel=cpu iterations=50");
    add(&mut machine, "ioat1", "02:00.0");
    add(&mut machine, "ioat0", "01:00.0");
    await_line(&mut machine, "dma", |line| line == "dma: devices=2");
    machine.ok("dmatest iterations=10");
    let ended = end(machine);
    let mut lines = hot(&ended, "01:00.0", "detached");
    lines.extend(hot(&ended, "02:00.0", "detached"));
    assert_eq!(lines.len(), 2);
    // Who was second had nobody but the CPU left; at once neither had.
    assert!(
        lines.iter().any(|line| number(line, "cpu") > 0),
        "{lines:#?}"
    );
}

/// Surprise down is told by error reporting; presence and link stay as they were.
#[test]
fn a_link_that_goes_down_takes_its_engine_out_and_in_again() {
    let mut machine = start(&[]);
    load(&mut machine);
    let mut qmp = qmp(&machine);
    let said = qmp.monitor("pcie_aer_inject_error port0 SDN").unwrap();
    assert!(said.starts_with("OK"), "{said}");
    drop(qmp);
    machine.await_text("hot: 01:00.0 gone ", PATIENCE);
    machine.await_text("hot: 01:00.0 detached ", PATIENCE);
    machine.await_text("hot: 01:00.0 live ", PATIENCE);
    await_slot(&mut machine, 1, "on");
    machine.ok("dmatest channel=dma0chan0 iterations=10");
    end(machine);
}

/// It was pressed for; it goes before it has left.
#[test]
fn power_that_is_lost_within_the_window_is_a_surprise() {
    let mut machine = start(&[("APPEND", "hotplug_window=60000")]);
    load(&mut machine);
    let mut pressing = qmp(&machine);
    pressing
        .execute("device_del", json!({ "id": "ioat0" }))
        .unwrap();
    drop(pressing);
    await_slot(&mut machine, 1, "blinking-off");
    cut(&machine, "ioat0");
    machine.await_text("hot: 01:00.0 gone ", PATIENCE);
    machine.await_text("hot: 01:00.0 detached ", PATIENCE);
    await_slot(&mut machine, 1, "off");
    add(&mut machine, "ioat0", "01:00.0");
    let ended = end(machine);
    assert!(hot(&ended, "01:00.0", "draining").is_empty());
}

/// A killed engine is found out by its driver, its slot knows nothing; pressed for, it leaves.
#[test]
fn an_engine_that_was_killed_leaves_its_slot_and_another_comes() {
    let mut machine = start(&[]);
    load(&mut machine);
    let (done, said) = launcher(&machine, "yank", &[("DEV", "ioat0"), ("HOW", "kill")]);
    assert!(done, "{said}");
    machine.await_text("hot: 01:00.0 detached ", PATIENCE);
    await_slot(&mut machine, 1, "on");
    let (_, said) = launcher(&machine, "hot-remove", &[("DEV", "ioat0")]);
    assert!(!said.contains("has not let go"), "{said}");
    await_slot(&mut machine, 1, "off");
    add(&mut machine, "ioat0", "01:00.0");
    machine.ok("dmatest channel=dma0chan0 iterations=10");
    end(machine);
}

#[test]
fn what_is_no_engine_comes_and_leaves_too() {
    let mut machine = start(&[]);
    load(&mut machine);
    let mut qmp = qmp(&machine);
    let device = json!({ "driver": "virtio-rng-pci", "id": "rng", "bus": "port2" });
    qmp.execute("device_add", device).unwrap();
    machine.await_text("03:00.0: found, no driver for it", PATIENCE);
    await_slot(&mut machine, 3, "on");
    let lspci = machine.ok("lspci");
    assert!(
        lspci.iter().any(|line| line.starts_with("03:00.0 ")),
        "{lspci:#?}"
    );
    qmp.execute("device_del", json!({ "id": "rng" })).unwrap();
    let deleted = qmp.await_event(PATIENCE, |event, data| {
        event == "DEVICE_DELETED" && data["device"] == "rng"
    });
    assert!(deleted.unwrap());
    await_slot(&mut machine, 3, "off");
    let lspci = machine.ok("lspci");
    assert!(
        !lspci.iter().any(|line| line.starts_with("03:00.0 ")),
        "{lspci:#?}"
    );
    end(machine);
}

/// It reads all ones from the start, but for QEMU, which else would not take it.
#[test]
fn an_engine_without_a_word_gets_no_power_until_another_comes() {
    let mut machine = start(&[]);
    load(&mut machine);
    let engine = Engine::start(machine.run_dir().path(), "mute.sock");
    // What comes while the power falls is looked at a second later.
    cut(&machine, "ioat0");
    machine.await_text("slot 1 port=00:01.0: powering-off", PATIENCE);
    let mut qmp = qmp(&machine);
    let device = json!({
        "driver": "vfio-user-pci", "id": "mute", "bus": "port0",
        "socket": { "type": "unix", "path": engine.socket.to_string_lossy() },
    });
    qmp.execute("device_add", device).unwrap();
    let pid = engine.process.id().to_string();
    let status = Command::new("kill").args(["-USR1", &pid]).status().unwrap();
    assert!(status.success());
    machine.await_text("slot 1 port=00:01.0: the card does not answer", PATIENCE);
    machine.await_text("slot 1 port=00:01.0: failed", PATIENCE);
    // QEMU takes out by itself what has neither power nor a lit indicator.
    let deleted = qmp.await_event(PATIENCE, |event, data| {
        event == "DEVICE_DELETED" && data["device"] == "mute"
    });
    assert!(deleted.unwrap());
    drop(qmp);
    await_slot(&mut machine, 1, "off");
    add(&mut machine, "ioat0", "01:00.0");
    machine.ok("dmatest channel=dma0chan0 iterations=5");
    end(machine);
}

#[test]
fn an_absent_engine_is_not_removed_again() {
    let mut machine = start(&[]);
    press(&machine, "ioat0");
    await_slot(&mut machine, 1, "off");
    for (subcommand, how) in [("hot-remove", ""), ("yank", "power")] {
        let (done, said) = launcher(&machine, subcommand, &[("DEV", "ioat0"), ("HOW", how)]);
        assert!(!done && said.trim_end().lines().count() == 1, "{said}");
    }
    machine.ok("dmatest channel=dma1chan0 iterations=5");
    machine.ok("audit");
}

/// `pci remove` and `pci rescan` know slots, and slots know them.
#[test]
fn software_removal_and_slots_agree() {
    let mut machine = start(&[]);
    load(&mut machine);
    machine.ok("pci remove 01:00.0");
    press(&machine, "ioat0");
    await_slot(&mut machine, 1, "off");
    let rescan = machine.ok("pci rescan");
    assert!(
        rescan.iter().any(|line| line == "pci: found=0"),
        "{rescan:#?}"
    );
    add(&mut machine, "ioat0", "01:00.0");
    machine.ok("pci remove 01:00.0");
    machine.ok("pci rescan");
    cut(&machine, "ioat0");
    await_slot(&mut machine, 1, "off");
    await_line(&mut machine, "dma", |line| line == "dma: devices=1");
    add(&mut machine, "ioat0", "01:00.0");
    let removed = machine.ok("pci remove 00:03.0");
    assert!(removed.iter().any(|line| line == "ok"));
    let slots = machine.ok("slots");
    assert!(slots.iter().any(|line| line == "slots: 2"), "{slots:#?}");
    machine.ok("pci rescan");
    await_slot(&mut machine, 3, "off");
    end(machine);
}

/// An engine that comes, and is pulled at some moment of its coming.
#[test]
fn what_comes_and_goes_in_a_hurry_leaves_the_slot_as_it_is() {
    let mut machine = start(&[]);
    load(&mut machine);
    cut(&machine, "ioat0");
    machine.await_text("slot 1 port=00:01.0: off", PATIENCE);
    for wait in [0, 20, 50, 80, 100, 110, 120, 150] {
        let (done, said) = launcher(&machine, "hot-add", &[("DEV", "ioat0")]);
        assert!(done, "{said}");
        machine.await_text("slot 1 port=00:01.0: powering-on", PATIENCE);
        // Link, settling, enumeration and probe take about so long.
        std::thread::sleep(Duration::from_millis(wait));
        cut(&machine, "ioat0");
        machine.await_text("slot 1 port=00:01.0: off", PATIENCE);
    }
    add(&mut machine, "ioat0", "01:00.0");
    await_slot(&mut machine, 1, "on");
    await_line(&mut machine, "dma", |line| line == "dma: devices=2");
    machine.ok("dmatest iterations=5");
    end(machine);
}

/// An engine beside those of the launcher.
struct Engine {
    process: Child,
    socket: PathBuf,
}

impl Engine {
    fn start(dir: &Path, name: &str) -> Self {
        let socket = dir.join(name);
        let process = Command::new(bench().root().join("build/ioat-model"))
            .args(["--channels", "1", "--irq", "msi", "--socket"])
            .arg(&socket)
            .spawn()
            .unwrap();
        let begin = Instant::now();
        while !socket.exists() {
            assert!(begin.elapsed() < PATIENCE, "{name} does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { process, socket }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Functions leave and come together.
#[test]
fn a_card_with_two_engines_comes_and_leaves_as_one() {
    let mut machine = start(&[]);
    let dir = machine.run_dir().path().to_path_buf();
    let engines = [
        Engine::start(&dir, "one.sock"),
        Engine::start(&dir, "other.sock"),
    ];
    let mut qmp = qmp(&machine);
    // The slot tells when function 0 has come.
    for (function, engine) in engines.iter().enumerate().rev() {
        let device = json!({
            "driver": "vfio-user-pci", "id": format!("function{function}"), "bus": "port2",
            "addr": format!("0.{function}"), "multifunction": true,
            "socket": { "type": "unix", "path": engine.socket.to_string_lossy() },
        });
        qmp.execute("device_add", device).unwrap();
    }
    machine.await_text("hot: 03:00.0 live ", PATIENCE);
    machine.await_text("hot: 03:00.1 live ", PATIENCE);
    await_line(&mut machine, "dma", |line| line == "dma: devices=4");
    load(&mut machine);
    qmp.execute("device_del", json!({ "id": "function0" }))
        .unwrap();
    for _ in 0..2 {
        let gone = qmp.await_event(PATIENCE, |event, data| {
            event == "DEVICE_DELETED" && data["device"].is_string()
        });
        assert!(gone.unwrap());
    }
    await_slot(&mut machine, 3, "off");
    await_line(&mut machine, "dma", |line| line == "dma: devices=2");
    let ended = end(machine);
    for address in ["03:00.0", "03:00.1"] {
        assert_eq!(hot(&ended, address, "detached").len(), 1);
    }
}

/// A QEMU with a switch in the empty port, and an engine behind each of its two ports.
fn with_switch(dir: &Path, engines: &[Engine]) -> PathBuf {
    let real = qemu::find(bench().root(), None).unwrap();
    let mut script = format!(
        "#!/bin/sh\nexec {} \"$@\" -device x3130-upstream,id=switch,bus=port2",
        real.display()
    );
    for (port, engine) in engines.iter().enumerate() {
        let device = json!({
            "driver": "vfio-user-pci", "bus": format!("down{port}"),
            "socket": { "type": "unix", "path": engine.socket.to_string_lossy() },
        });
        script += &format!(
            " -device xio3130-downstream,id=down{port},bus=switch,chassis=1{port},slot=1{port} \
              -device '{device}'"
        );
    }
    let path = dir.join("qemu");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_switch_with_its_engines_leaves_as_one() {
    let dir = std::env::temp_dir().join(format!("longshore-switch-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let engines = [
        Engine::start(&dir, "one.sock"),
        Engine::start(&dir, "other.sock"),
    ];
    let path = with_switch(&dir, &engines);
    let mut machine = start(&[("QEMU", &path.to_string_lossy())]);
    await_line(&mut machine, "dma", |line| line == "dma: devices=4");
    await_line(&mut machine, "slots", |line| line == "slots: 5");
    load(&mut machine);
    let mut qmp = qmp(&machine);
    qmp.execute("device_del", json!({ "id": "switch" }))
        .unwrap();
    let gone = qmp.await_event(PATIENCE, |event, data| {
        event == "DEVICE_DELETED" && data["device"] == "switch"
    });
    assert!(gone.unwrap());
    await_slot(&mut machine, 3, "off");
    await_line(&mut machine, "slots", |line| line == "slots: 3");
    await_line(&mut machine, "dma", |line| line == "dma: devices=2");
    let ended = end(machine);
    assert_eq!(ended.lines_starting("hot: ").len(), 6, "three a piece");
    let _ = std::fs::remove_dir_all(&dir);
}

#[test]
fn a_slot_takes_one_engine() {
    let mut machine = start(&[]);
    let (done, said) = launcher(&machine, "hot-add", &[("DEV", "ioat0")]);
    assert!(!done && said.contains("already"), "{said}");
    let device = json!({ "driver": "virtio-rng-pci", "bus": "port0" });
    let refused = qmp(&machine).execute("device_add", device);
    assert!(refused.is_err());
    await_slot(&mut machine, 1, "on");
    machine.ok("dmatest iterations=5");
}
