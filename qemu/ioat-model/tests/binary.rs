//! The program as a whole: a client of its own, other than QEMU, on its socket.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ioat_spec::{Control, Descriptor, channel, device};
use rustix::process::{Pid, Signal, kill_process};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_PCI_BAR0_REGION_INDEX,
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSI_IRQ_INDEX,
};
use vfio_user::Client;

const PATIENCE: Duration = Duration::from_secs(20);
/// Guest memory: one file of this size at this address.
const RAM: u64 = 0x4000_0000;
const RAM_LEN: u64 = 1 << 20;

struct Program {
    child: Child,
    dir: PathBuf,
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ioat-model"));
    command
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn directory(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("ioat-model-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

impl Program {
    fn start(name: &str, args: &[&str]) -> Self {
        let dir = directory(name);
        let (socket, stats) = (dir.join("sock"), dir.join("stats"));
        let mut all = vec!["--socket", socket.to_str().unwrap()];
        all.extend(["--stats", stats.to_str().unwrap()]);
        all.extend(args);
        let child = command(&all).spawn().unwrap();
        until("it listens", || listens(&socket));
        Self { child, dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("sock")
    }

    fn client(&self) -> Client {
        Client::new(&self.socket()).unwrap()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    fn end(&mut self) -> ExitStatus {
        let mut status = None;
        until("it ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    fn statistic(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(self.dir.join("stats")).unwrap();
        let object: serde_json::Value = serde_json::from_str(&text).unwrap();
        object[name]
            .as_u64()
            .unwrap_or_else(|| panic!("{name} in {text}"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Without connecting: an engine serves one client. Of the flags in the kernel's table, 10000h is a
/// socket that listens.
fn listens(socket: &std::path::Path) -> bool {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    table
        .lines()
        .any(|line| line.ends_with(socket.to_str().unwrap()) && line.contains(" 00010000 "))
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn ram(dir: &std::path::Path) -> File {
    let path = dir.join("ram");
    let options = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path);
    let file = options.unwrap();
    file.set_len(RAM_LEN).unwrap();
    file
}

fn put(ram: &File, addr: u64, descriptor: Descriptor) {
    let bytes: Vec<u8> = descriptor
        .0
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    ram.write_all_at(&bytes, addr - RAM).unwrap();
}

/// Bus mastering, messages and interrupts on; channel 0 armed at the first byte of memory, its
/// completion word in the second page.
fn start_channel(client: &mut Client) {
    let mut config = |at, bytes: &[u8]| {
        client
            .region_write(VFIO_PCI_CONFIG_REGION_INDEX, at, bytes)
            .unwrap();
    };
    config(4, &[6, 0]);
    config(0x82, &[1, 0]);
    let mut bar = |at: usize, bytes: &[u8]| {
        client
            .region_write(VFIO_PCI_BAR0_REGION_INDEX, at as u64, bytes)
            .unwrap();
    };
    let base = channel::base(0);
    bar(device::INTRCTRL, &[1]);
    bar(base + channel::CHANCTRL, &[0x1d, 0]);
    bar(base + channel::CHANCMP, &(RAM + 0x1000).to_le_bytes());
    bar(base + channel::CHAINADDR, &RAM.to_le_bytes());
}

#[test]
fn a_client_copies_through_its_own_memory() {
    let mut program = Program::start("copy", &["--channels", "2"]);
    let ram = ram(&program.dir);
    let mut client = program.client();
    client.dma_map(0, RAM, RAM_LEN, ram.as_raw_fd()).unwrap();
    let (mut end, event) = UnixStream::pair().unwrap();
    end.set_read_timeout(Some(PATIENCE)).unwrap();
    let flags = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD;
    client
        .set_irqs(VFIO_PCI_MSI_IRQ_INDEX, flags, 0, 1, &[event.as_raw_fd()])
        .unwrap();

    let data: Vec<u8> = (0..100_000u32).map(|n| ((n * 31) >> 3) as u8).collect();
    ram.write_all_at(&data, 0x1_0000).unwrap();
    let control = Control::COMPLETION | Control::INT_EN;
    let (src, dst) = (RAM + 0x1_0000, RAM + 0x8_0003);
    put(&ram, RAM, Descriptor::copy(control, 100_000, src, dst, 0));
    start_channel(&mut client);
    let doorbell = (channel::base(0) + channel::DMACOUNT) as u64;
    client
        .region_write(VFIO_PCI_BAR0_REGION_INDEX, doorbell, &[1, 0])
        .unwrap();

    // One trigger of the interrupt: eight bytes.
    end.read_exact(&mut [0; 8]).unwrap();
    let mut copied = vec![0; data.len()];
    ram.read_exact_at(&mut copied, 0x8_0003).unwrap();
    assert!(copied == data);
    let mut word = [0; 8];
    ram.read_exact_at(&mut word, 0x1000).unwrap();
    assert_eq!(u64::from_le_bytes(word), RAM | 1);
    let mut channels = [0];
    client
        .region_read(VFIO_PCI_BAR0_REGION_INDEX, 0, &mut channels)
        .unwrap();
    assert_eq!(channels, [2]);

    // Memory that was taken away is out of reach.
    client.dma_unmap(RAM, RAM_LEN).unwrap();
    client
        .region_write(VFIO_PCI_BAR0_REGION_INDEX, doorbell, &[2, 0])
        .unwrap();
    let chanerr = (channel::base(0) + channel::CHANERR) as u64;
    until("the error", || {
        let mut bits = [0; 4];
        client
            .region_read(VFIO_PCI_BAR0_REGION_INDEX, chanerr, &mut bits)
            .unwrap();
        bits != [0; 4]
    });

    drop(client);
    assert!(program.end().success());
    assert!(!program.socket().exists());
    for (name, value) in [
        ("doorbells", 2),
        ("descriptors", 1),
        ("completions", 1),
        ("bytes", 100_000),
        ("faults", 1),
        ("interrupts", 1),
        ("mmio_writes", 6),
        ("mmio_after_gone", 0),
    ] {
        assert_eq!(program.statistic(name), value, "{name}");
    }
    assert!(program.statistic("mmio_reads") >= 2);
}

#[test]
fn sigterm_writes_the_statistics_and_removes_the_socket() {
    let mut program = Program::start("term", &[]);
    program.signal(Signal::TERM);
    assert!(program.end().success());
    assert_eq!(program.statistic("mmio_reads"), 0);
    assert!(!program.socket().exists());
}

#[test]
fn sigusr1_makes_the_engine_vanish_and_counts_go_on() {
    let mut program = Program::start("usr1", &[]);
    let mut client = program.client();
    let read = |client: &mut Client| {
        let mut version = [0];
        client
            .region_read(
                VFIO_PCI_BAR0_REGION_INDEX,
                device::CBVER as u64,
                &mut version,
            )
            .unwrap();
        version[0]
    };
    assert_eq!(read(&mut client), 0x32);
    program.signal(Signal::USR1);
    until("all ones", || read(&mut client) == 0xff);
    drop(client);
    assert!(program.end().success());
    assert!(program.statistic("mmio_after_gone") >= 1);
}

/// A frozen engine, and a thread that has asked it for something: whether it was answered, and how.
fn frozen(name: &str) -> (Program, JoinHandle<Option<u8>>) {
    let mut program = Program::start(name, &["--log", "info"]);
    let mut client = program.client();
    let mut version = [0];
    let bar = VFIO_PCI_BAR0_REGION_INDEX;
    client
        .region_read(bar, device::CBVER as u64, &mut version)
        .unwrap();
    program.signal(Signal::USR2);
    let mut log = BufReader::new(program.child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("freezes") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "it ended");
    }
    let asked = std::thread::spawn(move || {
        let answer = client.region_read(bar, device::CBVER as u64, &mut version);
        answer.is_ok().then_some(version[0])
    });
    std::thread::sleep(Duration::from_millis(300));
    assert!(!asked.is_finished(), "answered");
    (program, asked)
}

#[test]
fn sigusr2_freezes_the_engine_and_a_signal_still_ends_it() {
    let (mut program, asked) = frozen("usr2");
    program.signal(Signal::TERM);
    assert!(program.end().success());
    assert_eq!(asked.join().unwrap(), None);
    assert!(program.statistic("mmio_after_gone") <= 1);
}

#[test]
fn a_frozen_engine_answers_all_ones_from_sigusr1_on() {
    let (mut program, asked) = frozen("usr2-usr1");
    program.signal(Signal::USR1);
    assert_eq!(asked.join().unwrap(), Some(0xff));
    assert!(program.end().success());
}

#[test]
fn late_answers_take_their_time() {
    let program = Program::start("late", &["--fault", "late=30000"]);
    let mut client = program.client();
    let start = Instant::now();
    let mut version = [0];
    let bar = VFIO_PCI_BAR0_REGION_INDEX;
    for _ in 0..3 {
        client
            .region_read(bar, device::CBVER as u64, &mut version)
            .unwrap();
    }
    assert_eq!(version, [0x32]);
    assert!(start.elapsed() >= Duration::from_millis(90));
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = directory("stale");
    let socket = dir.join("sock");
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let program = Program::start("stale", &[]);
    let second = command(&["--socket", socket.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains("another process serves it"), "{said}");
    assert_eq!(said.lines().count(), 1);
    drop(program.client());
}

#[test]
fn bad_options_end_in_one_line_and_status_2() {
    for args in [
        &["--socket", "x", "--channels", "many"][..],
        &["--socket", "x", "--fault", "gremlin"],
        &["--bogus"],
        &[],
    ] {
        let output = command(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.starts_with("ioat-model: ") && said.lines().count() == 1,
            "{said}"
        );
    }
    let help = command(&["--help"])
        .stdout(Stdio::piped())
        .output()
        .unwrap();
    assert!(help.status.success());
    let text = String::from_utf8(help.stdout).unwrap();
    for word in [
        "--socket",
        "--stats",
        "hang@N",
        "error@N",
        "SIGUSR1",
        "SIGUSR2",
        "freeze@N",
        "late=US",
        "mmio_after_gone",
    ] {
        assert!(text.contains(word), "{word}");
    }
}

#[test]
fn a_silent_engine_takes_the_connection_and_says_nothing() {
    let mut program = Program::start("silent", &["--fault", "silent"]);
    let mut stream = UnixStream::connect(program.socket()).unwrap();
    stream.write_all(&[0; 64]).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let answer = stream.read(&mut [0; 64]);
    assert!(answer.is_err(), "{answer:?}");
    drop(stream);
    assert!(program.end().success());
}

#[test]
fn a_client_that_talks_nonsense_ends_the_program_and_no_more() {
    let mut program = Program::start("nonsense", &[]);
    let mut stream = UnixStream::connect(program.socket()).unwrap();
    // A version message whose length is shorter than its header.
    let mut message = [0u8; 20];
    message[2] = 1;
    message[4] = 16;
    stream.write_all(&message).unwrap();
    drop(stream);
    program.end();
    assert_eq!(
        program.statistic("doorbells"),
        0,
        "the statistics are written"
    );
    assert!(!program.socket().exists());
}
