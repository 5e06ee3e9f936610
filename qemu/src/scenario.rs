//! Machines under test: the launcher itself, run as `make run` runs it, in a directory of its own.
//!
//! For tests only: what does not happen as expected is a panic that shows the console so far.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::child;
use crate::console::PROMPT;
use crate::firmware;
use crate::run_dir::RunDir;
use crate::transcript::Transcript;

/// How long a machine may take for something that takes a second where nothing else runs.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at what ends in its own time.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Variables that tests set or leave; none may come in from outside.
const VARIABLES: [&str; 35] = [
    "CPUS",
    "MEM",
    "IOAT",
    "CHANNELS",
    "WHERE",
    "CBVER",
    "IRQ",
    "IOMMU",
    "FIRMWARE",
    "MEDIA",
    "MACHINE",
    "CPU",
    "X2APIC",
    "HPET",
    "NUMA",
    "EDU",
    "ACCEL",
    "ICOUNT",
    "PASSTHROUGH",
    "ENGINE",
    "BIOS",
    "ACPI",
    "KERNEL",
    "V",
    "CMD",
    "SERIAL",
    "SCREEN",
    "FAULT",
    "ANSWER",
    "APPEND",
    "TIMEOUT",
    "GDB",
    "RUN_DIR",
    "DEV",
    "HOW",
];

/// Set, each machine has `IOMMU=on`, unless its test says otherwise.
pub const CONFINED: &str = "LONGSHORE_CONFINED";

/// Whether machines have `IOMMU=on` unless their tests say otherwise.
pub fn confined() -> bool {
    std::env::var_os(CONFINED).is_some()
}

/// Machines run side by side, except one whose time is taken.
static QUIET: RwLock<()> = RwLock::new(());

enum Quiet {
    Shared(#[expect(dead_code, reason = "held, not read")] RwLockReadGuard<'static, ()>),
    Alone(#[expect(dead_code, reason = "held, not read")] RwLockWriteGuard<'static, ()>),
}

/// Where machines are started from.
#[derive(Clone, Debug)]
pub struct Bench {
    launcher: PathBuf,
    root: PathBuf,
}

impl Bench {
    /// With the launcher's program: `env!("CARGO_BIN_EXE_longshore-qemu")`.
    pub fn new(launcher: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .unwrap_or(Path::new("."));
        Self {
            launcher: launcher.into(),
            root: root.into(),
        }
    }

    /// The repository.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The launcher with a subcommand and nothing but these variables.
    pub fn launcher(&self, subcommand: &str, variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new(&self.launcher);
        command.arg(subcommand).current_dir(&self.root);
        for name in VARIABLES {
            command.env_remove(name);
        }
        // `make test` runs scenarios twice: the second time, each machine confines its devices.
        if confined() {
            command.env("IOMMU", "on");
        }
        command.envs(variables.iter().copied());
        command
    }

    /// Starts a machine.
    #[track_caller]
    pub fn start(&self, variables: &[(&str, &str)]) -> Machine {
        let quiet = QUIET.read().unwrap_or_else(PoisonError::into_inner);
        self.start_with("run", variables, Quiet::Shared(quiet))
    }

    /// Starts a machine that waits for gdb.
    #[track_caller]
    pub fn start_debug(&self, variables: &[(&str, &str)]) -> Machine {
        let quiet = QUIET.read().unwrap_or_else(PoisonError::into_inner);
        self.start_with("debug", variables, Quiet::Shared(quiet))
    }

    /// Starts a machine while no other one of this test program runs.
    #[track_caller]
    pub fn start_alone(&self, variables: &[(&str, &str)]) -> Machine {
        let quiet = QUIET.write().unwrap_or_else(PoisonError::into_inner);
        self.start_with("run", variables, Quiet::Alone(quiet))
    }

    #[track_caller]
    fn start_with(&self, subcommand: &str, variables: &[(&str, &str)], quiet: Quiet) -> Machine {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "longshore-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let dir = std::env::temp_dir().join(name);
        let mut child = self
            .launcher(subcommand, variables)
            .env("RUN_DIR", &dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start the launcher: {error}"));
        let console = Transcript::follow(child.stdout.take());
        let errors = Transcript::follow(child.stderr.take());
        let stdin = child.stdin.take();
        Machine {
            child,
            stdin,
            console,
            errors,
            run_dir: RunDir::new(dir),
            read: 0,
            _quiet: quiet,
        }
    }

    /// Runs a subcommand of the launcher on a machine that runs; gives its exit status and all that
    /// it said.
    pub fn on(
        &self,
        machine: &Machine,
        subcommand: &str,
        variables: &[(&str, &str)],
    ) -> (Option<i32>, String) {
        let output = self
            .launcher(subcommand, variables)
            .env("RUN_DIR", machine.run_dir().path())
            .output()
            .expect("the launcher");
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    /// Runs console commands on a machine and waits for its end.
    #[track_caller]
    pub fn run(&self, commands: &str, variables: &[(&str, &str)]) -> Ended {
        let mut all = vec![("CMD", commands)];
        all.extend(variables);
        self.start(&all).finish(PATIENCE)
    }
}

/// A machine that runs.
pub struct Machine {
    child: Child,
    stdin: Option<ChildStdin>,
    console: Arc<Transcript>,
    errors: Arc<Transcript>,
    run_dir: RunDir,
    read: usize,
    _quiet: Quiet,
}

impl Machine {
    /// Sockets and statistics.
    pub fn run_dir(&self) -> &RunDir {
        &self.run_dir
    }

    /// The process id of the launcher.
    pub fn launcher_pid(&self) -> u32 {
        self.child.id()
    }

    /// Types something on the console.
    #[track_caller]
    pub fn type_text(&mut self, text: &str) {
        let written = self.stdin.as_mut().map(|stdin| {
            stdin
                .write_all(text.as_bytes())
                .and_then(|()| stdin.flush())
        });
        assert!(
            matches!(written, Some(Ok(()))),
            "the console is closed\n{}",
            self.so_far()
        );
    }

    /// Waits for text on the console after what was awaited before.
    #[track_caller]
    pub fn await_text(&mut self, wanted: &str, patience: Duration) {
        match self.console.find(wanted.as_bytes(), self.read, patience) {
            Some(end) => self.read = end,
            None => panic!("{wanted:?} has not come\n{}", self.so_far()),
        }
    }

    /// The rest of the line that ends what was awaited last.
    #[track_caller]
    pub fn rest_of_line(&mut self) -> String {
        let start = self.read;
        self.await_text("\n", PATIENCE);
        self.console.part(start..self.read).trim_end().into()
    }

    /// Waits for text on the launcher's standard error.
    #[track_caller]
    pub fn await_error_text(&mut self, wanted: &str, patience: Duration) {
        let found = self.errors.find(wanted.as_bytes(), 0, patience);
        assert!(
            found.is_some(),
            "{wanted:?} has not come\n{}",
            self.so_far()
        );
    }

    /// Waits for the prompt.
    #[track_caller]
    pub fn await_prompt(&mut self) {
        self.await_text(PROMPT, PATIENCE);
    }

    /// Types a command at the prompt; gives its lines, the last of which is `ok` or `error: …`.
    #[track_caller]
    pub fn command(&mut self, command: &str, patience: Duration) -> Vec<String> {
        self.type_text(&format!("{command}\r"));
        self.await_text("\n", PATIENCE);
        let start = self.read;
        self.await_text(&format!("\n{PROMPT}"), patience);
        let text = self.console.part(start..self.read);
        text.trim_end_matches(PROMPT)
            .lines()
            .map(String::from)
            .collect()
    }

    /// Waits until no client of a test is left, and engines have nothing to do and reach nothing: who
    /// was stopped ends in its own time.
    #[track_caller]
    pub fn await_rest(&mut self) {
        let begin = Instant::now();
        loop {
            let tasks = self.ok("tasks");
            let clients = tasks.iter().filter(|line| line.ends_with(" dmatest"));
            let clients = clients.count();
            let lines = self.ok("audit");
            let audit = lines.iter().find(|line| line.starts_with("audit: "));
            let audit = audit.unwrap_or_else(|| panic!("no audit: {lines:#?}"));
            let at_rest = |name: &&str| number(audit, name) == 0;
            if clients == 0 && ["rings", "iova", "leaked"].iter().all(at_rest) {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "{clients} clients, {audit}");
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// As [`Machine::command`], of a command that must end in `ok`; lines of tasks in the background may
    /// come after it.
    #[track_caller]
    pub fn ok(&mut self, command: &str) -> Vec<String> {
        let lines = self.command(command, PATIENCE);
        assert!(
            lines.iter().any(|line| line == "ok"),
            "{command}: {lines:#?}\n{}",
            self.so_far()
        );
        lines
    }

    /// Waits for the machine's end; a machine that does not end is a failure.
    #[track_caller]
    pub fn finish(mut self, patience: Duration) -> Ended {
        let status = child::wait_for(&mut self.child, patience).ok().flatten();
        let Some(status) = status else {
            panic!("the machine does not end\n{}", self.so_far())
        };
        self.console.await_end(PATIENCE);
        self.errors.await_end(PATIENCE);
        Ended {
            status: status.code(),
            console: self.console.text(),
            errors: self.errors.text(),
            run_dir: self.run_dir.clone(),
            _machine: self,
        }
    }

    fn so_far(&self) -> String {
        format!(
            "--- console\n{}\n--- errors\n{}",
            self.console.text(),
            self.errors.text()
        )
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = child::end(&mut self.child, Duration::from_secs(10));
        if std::thread::panicking() {
            eprintln!("kept: {}", self.run_dir.path().display());
        } else {
            let _ = std::fs::remove_dir_all(self.run_dir.path());
        }
    }
}

/// A machine that has ended.
pub struct Ended {
    /// The launcher's exit status.
    pub status: Option<i32>,
    /// All that the console said, without carriage returns.
    pub console: String,
    /// All that the launcher, QEMU and engines said.
    pub errors: String,
    run_dir: RunDir,
    _machine: Machine,
}

impl Ended {
    /// Fails unless every command ended in `ok` and nobody panicked.
    #[track_caller]
    pub fn expect_success(&self) -> &Self {
        assert!(
            self.status == Some(0),
            "status {:?}\n{}",
            self.status,
            self.all()
        );
        assert!(self.lines_starting("PANIC").is_empty(), "{}", self.all());
        self
    }

    /// The lines that a command printed, `run=` having echoed it.
    #[track_caller]
    pub fn output_of(&self, command: &str) -> Vec<&str> {
        let echo = format!("{PROMPT}{command}");
        let mut lines = self
            .console
            .lines()
            .skip_while(|line| line.trim_end() != echo);
        assert!(lines.next().is_some(), "no {echo:?} in\n{}", self.all());
        lines
            .take_while(|line| !line.starts_with(PROMPT) && !line.starts_with("run: "))
            .collect()
    }

    /// The lines of the console that start with this.
    pub fn lines_starting(&self, start: &str) -> Vec<&str> {
        self.console
            .lines()
            .filter(|line| line.starts_with(start))
            .collect()
    }

    /// An engine's statistics.
    #[track_caller]
    pub fn stats(&self, engine: u32) -> Stats {
        let path = self.run_dir.engine_stats(engine);
        let text = std::fs::read(&path)
            .unwrap_or_else(|error| panic!("{}: {error}\n{}", path.display(), self.all()));
        let value = serde_json::from_slice(&text)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Stats(value)
    }

    /// Everything, for messages.
    pub fn all(&self) -> String {
        format!("--- console\n{}\n--- errors\n{}", self.console, self.errors)
    }
}

/// The statistics of one engine.
#[derive(Clone, Debug)]
pub struct Stats(Value);

impl Stats {
    /// One number, by the contract's name.
    #[track_caller]
    pub fn get(&self, name: &str) -> u64 {
        self.0[name]
            .as_u64()
            .unwrap_or_else(|| panic!("no number {name:?} in {}", self.0))
    }
}

/// The value of `name=` among the words of a line.
pub fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// The number behind `name=` among the words of a line.
#[track_caller]
pub fn number(line: &str, name: &str) -> u64 {
    let value = field(line, name).and_then(|value| value.parse().ok());
    value.unwrap_or_else(|| panic!("no number {name} in {line:?}"))
}

/// Prints `SKIP name: reason` past the test program's capture, so that the suite counts it.
pub fn skip(name: &str, reason: &str) {
    let _ = writeln!(std::io::stdout(), "\nSKIP {name}: {reason}");
}

/// Whether there is what machines boot by their firmware with, found or fetched; else `test` is
/// skipped.
pub fn can_boot(bench: &Bench, test: &str) -> bool {
    static FETCHED: OnceLock<bool> = OnceLock::new();
    let fetched = *FETCHED.get_or_init(|| firmware::fetch(bench.root()).is_ok());
    if !fetched {
        skip(
            test,
            "neither found nor fetched: GRUB's tools, or UEFI for QEMU",
        );
    }
    fetched
}

/// Prints `LEFT OUT name: reason` past the capture: what this way of running the tests is not for,
/// and another is.
pub fn left_out(name: &str, reason: &str) {
    let _ = writeln!(std::io::stdout(), "\nLEFT OUT {name}: {reason}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let line = "mem: total=5 KiB used=1234 KiB free=7";
        assert_eq!(field(line, "used"), Some("1234"));
        assert_eq!(field(line, "sed"), None);
        assert_eq!(field(line, "use"), None);
    }
}
