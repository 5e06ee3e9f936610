//! `run` and `debug`: a machine from start to end.
//!
//! Engines first, then QEMU, whose console passes through here to the terminal. Nothing waits
//! without a limit except the person at the console.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::child::{self, Spawner};
use crate::console::{Frame, Piece, Watch};
use crate::control;
use crate::engines::Engines;
use crate::failure::{Context, Failure};
use crate::firmware;
use crate::machine::{arguments, engine_id, shell_line};
use crate::passthrough::Host;
use crate::qemu;
use crate::qmp::Qmp;
use crate::run_dir::RunDir;
use crate::settings::{Serial, Settings};
use crate::source_lines::SourceLines;
use crate::terminal::{TerminalState, write_through};

/// QEMU answers on QMP when all devices are there. An engine that does not answer holds it up.
const QEMU_START_LIMIT: Duration = Duration::from_secs(15);
/// How long a report may take from its first line on, before a machine with `CMD` is ended.
const PANIC_GRACE: Duration = Duration::from_secs(5);
/// How long a machine with `CMD` may take to its prompt: firmware that gives up says nothing.
const PROMPT_LIMIT: Duration = Duration::from_secs(60);
/// How long QEMU may take to end.
const QEMU_END_LIMIT: Duration = Duration::from_secs(3);
/// Half a prompt is held back for this long.
const TICK: Duration = Duration::from_millis(50);

/// Where things are; paths are relative to the repository.
pub struct Place<'a> {
    /// The repository.
    pub root: &'a Path,
    /// The run directory.
    pub run_dir: RunDir,
    /// Starts children.
    pub spawner: Spawner,
    /// The engine's program.
    pub engine: &'a Path,
}

enum Event {
    Output(Vec<u8>),
    OutputEnds,
    Started(Result<(), Failure>),
}

/// Runs a machine to its end; gives the launcher's exit status.
pub fn run(place: &Place<'_>, settings: &Settings, for_gdb: bool) -> Result<u8, Failure> {
    if !Path::new(&settings.kernel).is_file() {
        return Err(Failure::run(format!(
            "no kernel {}: run `make build`",
            settings.kernel
        )));
    }
    if let Some(address) = &settings.passthrough {
        Host::default().check(address, settings.mem_mib)?;
    }
    let qemu = qemu::find(place.root, settings.qemu.as_deref())?;
    if let Some(model) = &settings.cpu {
        qemu::check_cpu(&qemu, model)?;
    }
    let run_dir = &place.run_dir;
    fs::create_dir_all(run_dir.path()).context(run_dir.path().display())?;
    let lock = File::create(run_dir.lock()).context(run_dir.lock().display())?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => Failure::run(format!(
            "a machine runs in {} already",
            run_dir.path().display()
        )),
        TryLockError::Error(error) => {
            Failure::run(format!("{}: {error}", run_dir.lock().display()))
        }
    })?;
    run_dir.prepare()?;
    let json = serde_json::to_vec_pretty(settings).context("settings")?;
    fs::write(run_dir.settings(), json).context(run_dir.settings().display())?;

    let mut args = arguments(settings, run_dir, for_gdb);
    args.extend(firmware::prepare(place.root, settings, run_dir)?);
    let mut engines = Engines::new(place.spawner.clone(), place.engine, settings, run_dir);
    if settings.verbose {
        (0..settings.engines).for_each(|engine| eprintln!("{}", engines.shell_line(engine)));
        eprintln!("{}", shell_line(&qemu.to_string_lossy(), &args));
    }
    if for_gdb {
        let (kernel, port) = (&settings.kernel, settings.gdb_port);
        eprintln!("the machine waits for gdb: gdb {kernel} -ex 'target remote localhost:{port}'");
    }
    match settings.serial {
        Serial::Terminal => {}
        Serial::Socket => eprintln!("the console is on {}", run_dir.serial().display()),
        Serial::None => eprintln!("no serial port: QMP on {}", run_dir.qmp().display()),
    }
    engines.start_all()?;
    let engines = Arc::new(Mutex::new(engines));
    control::serve(&run_dir.control(), engines.clone())?;

    let terminal = TerminalState::remember();
    let start = Instant::now();
    let mut child = place
        .spawner
        .command(&qemu)
        .args(&args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start QEMU")?;
    let silent_engine = Arc::new(Mutex::new(None));
    let messages = child.stderr.take().map(|stderr| {
        let silent_engine = silent_engine.clone();
        std::thread::spawn(move || pass_messages(stderr, &silent_engine))
    });
    let mut source_lines = LazySourceLines {
        elf: Path::new(&settings.kernel),
        root: place.root,
        lines: None,
    };
    let mut session = Session {
        settings,
        start,
        watch: Watch::new(|frame: Frame| source_lines.find(frame)),
        // Whoever debugs has all the time in the world.
        limited: settings.commands.is_some() && !for_gdb,
        started: false,
        prompt_seen: false,
        engines: &engines,
        gone: vec![false; settings.engines as usize],
    };
    let result = session.follow(&mut child, run_dir);
    let (summary, panicked) = (session.watch.summary(), session.watch.panicked());
    let started = session.started;
    let status = match &result {
        Ok(()) => child::wait_for(&mut child, QEMU_END_LIMIT).ok().flatten(),
        Err(_) => None,
    };
    let status = status.map_or_else(|| quit(&mut child, run_dir), Ok);
    // Whoever inherited the pipe could hold it open: do not wait for its end for ever.
    let deadline = Instant::now() + Duration::from_secs(1);
    while messages
        .as_ref()
        .is_some_and(|thread| !thread.is_finished())
        && Instant::now() < deadline
    {
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(terminal);
    engines
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .end_all();
    if !started
        && let Some(engine) = silent_engine
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    {
        return Err(Failure::run(format!(
            "{} does not answer on {}",
            engine_id(engine),
            run_dir.engine_socket(engine).display()
        )));
    }
    result?;
    let status = status.context("QEMU")?;
    if !started && !status.success() {
        let how = child::describe(status);
        return Err(Failure::run(format!(
            "QEMU ended with {how} before the machine started"
        )));
    }

    if settings.commands.is_some() {
        return match summary {
            _ if panicked => Err(Failure::run("the kernel panicked")),
            None => Err(Failure::run(format!(
                "the machine ended ({}) before all commands had run",
                child::describe(status)
            ))),
            Some(summary) if summary.failed > 0 => Err(Failure::run(format!(
                "{} of {} commands failed",
                summary.failed, summary.commands
            ))),
            Some(_) => Ok(0),
        };
    }
    match status.success() {
        true => Ok(0),
        false => Err(Failure::run(format!(
            "QEMU ended with {}",
            child::describe(status)
        ))),
    }
}

/// Ends QEMU: quietly by its own command, and by force if that does not help.
fn quit(child: &mut Child, run_dir: &RunDir) -> io::Result<ExitStatus> {
    let asked = Qmp::connect(&run_dir.qmp(), Duration::from_secs(1))
        .and_then(|mut qmp| qmp.execute("quit", serde_json::json!({})));
    if asked.is_ok()
        && let Some(status) = child::wait_for(child, QEMU_END_LIMIT)?
    {
        return Ok(status);
    }
    child::end(child, QEMU_END_LIMIT)
}

struct Session<'a, S> {
    settings: &'a Settings,
    start: Instant,
    watch: Watch<S>,
    limited: bool,
    started: bool,
    prompt_seen: bool,
    engines: &'a Mutex<Engines>,
    gone: Vec<bool>,
}

impl<S: FnMut(Frame) -> Option<String>> Session<'_, S> {
    /// Passes the console through until QEMU closes it.
    fn follow(&mut self, child: &mut Child, run_dir: &RunDir) -> Result<(), Failure> {
        let (tx, rx) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            let tx = tx.clone();
            std::thread::spawn(move || read_output(stdout, &tx));
        }
        let socket = run_dir.qmp();
        std::thread::spawn(move || {
            let started = Qmp::connect(&socket, QEMU_START_LIMIT).map(drop);
            let _ = tx.send(Event::Started(started));
        });
        let limit = Duration::from_secs(self.settings.timeout_s);
        let deadline = self.limited.then(|| self.start + limit);
        let mut panic_deadline = None;
        loop {
            match rx.recv_timeout(TICK) {
                Ok(Event::Output(bytes)) => {
                    for piece in self.watch.feed(&bytes) {
                        self.show(&piece)?;
                    }
                }
                Ok(Event::OutputEnds) | Err(RecvTimeoutError::Disconnected) => {
                    let held = self.watch.release();
                    return self.show(&Piece::Bytes(held));
                }
                Ok(Event::Started(Ok(()))) => self.started = true,
                Ok(Event::Started(Err(failure))) => {
                    // A QEMU that ends closes its sockets first.
                    if child::wait_for(child, QEMU_END_LIMIT)
                        .ok()
                        .flatten()
                        .is_none()
                    {
                        let seconds = QEMU_START_LIMIT.as_secs();
                        return Err(Failure::run(format!(
                            "QEMU has not started the machine within {seconds} s: {failure}"
                        )));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let held = self.watch.release();
                    self.show(&Piece::Bytes(held))?;
                    self.report_dead_engines();
                }
            }
            let now = Instant::now();
            if self.limited && !self.prompt_seen && now >= self.start + PROMPT_LIMIT {
                return Err(Failure::run(format!(
                    "no prompt after {} s: firmware or kernel are stuck",
                    PROMPT_LIMIT.as_secs()
                )));
            }
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Err(Failure::run(format!(
                    "the commands have not ended after {} s (TIMEOUT)",
                    self.settings.timeout_s
                )));
            }
            if self.limited && self.watch.panicked() {
                let limit = *panic_deadline.get_or_insert(now + PANIC_GRACE);
                if now >= limit {
                    return Ok(());
                }
            }
        }
    }

    fn show(&mut self, piece: &Piece) -> Result<(), Failure> {
        match piece {
            Piece::Bytes(bytes) => {
                write_through(&mut io::stdout().lock(), bytes).context("standard output")
            }
            Piece::FirstPrompt => {
                self.prompt_seen = true;
                self.started = true;
                let line = format!("prompt after {:.2} s\n", self.start.elapsed().as_secs_f64());
                write_through(&mut io::stderr().lock(), line.as_bytes()).context("standard error")
            }
        }
    }

    fn report_dead_engines(&mut self) {
        let Ok(mut engines) = self.engines.try_lock() else {
            return;
        };
        for engine in 0..self.settings.engines {
            let ended = engines.ended(engine);
            let gone = &mut self.gone[engine as usize];
            if let (Some(status), false) = (ended, *gone) {
                let line = format!(
                    "{} has ended with {}\n",
                    engine_id(engine),
                    child::describe(status)
                );
                let _ = write_through(&mut io::stderr().lock(), line.as_bytes());
            }
            *gone = ended.is_some();
        }
    }
}

fn read_output(mut stdout: ChildStdout, tx: &mpsc::Sender<Event>) {
    let mut buffer = [0; 4096];
    loop {
        match stdout.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) if tx.send(Event::Output(buffer[..len].to_vec())).is_err() => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    let _ = tx.send(Event::OutputEnds);
}

/// Passes QEMU's messages on, but for what means nothing here, and what is said better at the end.
fn pass_messages(stderr: ChildStderr, silent_engine: &Mutex<Option<u32>>) {
    for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
        let text = String::from_utf8_lossy(&line);
        match Message::classify(&text) {
            Message::Noise => {}
            Message::SilentEngine(engine) => {
                *silent_engine.lock().unwrap_or_else(PoisonError::into_inner) = Some(engine);
            }
            Message::Other => {
                let _ = write_through(&mut io::stderr().lock(), format!("{text}\n").as_bytes());
            }
        }
    }
}

/// What a line of QEMU's standard error is about.
#[derive(Debug, PartialEq, Eq)]
enum Message {
    /// Means nothing for machines as these.
    Noise,
    /// This engine has not answered when its device was made.
    SilentEngine(u32),
    /// For people to read.
    Other,
}

impl Message {
    fn classify(line: &str) -> Self {
        // PCI error recovery is for devices of the host.
        if line.contains("Could not enable error recovery for the device") {
            return Self::Noise;
        }
        let engine = line
            .split_once("\"id\":\"")
            .and_then(|(_, rest)| rest.split_once('"'))
            .and_then(|(id, _)| control::parse_engine(id));
        match engine {
            Some(engine) if line.contains("timed out waiting for reply") => {
                Self::SilentEngine(engine)
            }
            _ => Self::Other,
        }
    }
}

/// Reads the line table when the first frame needs it.
struct LazySourceLines<'a> {
    elf: &'a Path,
    root: &'a Path,
    lines: Option<Option<SourceLines>>,
}

impl LazySourceLines<'_> {
    fn find(&mut self, frame: Frame) -> Option<String> {
        let lines = self
            .lines
            .get_or_insert_with(|| SourceLines::load(self.elf, self.root).ok());
        lines.as_ref()?.find(frame.lookup_address())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_qemu_are_told_apart() {
        let device = r#"qemu: -device {"bus":"port1","driver":"vfio-user-pci","id":"ioat1"}: "#;
        let classify = |text: &str| Message::classify(&format!("{device}{text}"));
        assert_eq!(
            classify("warning: vfio: Could not enable error recovery for the device"),
            Message::Noise
        );
        assert_eq!(
            classify("vfio x.sock: timed out waiting for reply: Connection timed out"),
            Message::SilentEngine(1)
        );
        assert_eq!(classify("no such bus"), Message::Other);
        assert_eq!(
            Message::classify("timed out waiting for reply"),
            Message::Other
        );
    }
}
