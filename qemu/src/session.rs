//! A machine that is talked to by a program: what it is told, and what it says.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::child::{self, Spawner};
use crate::console::PROMPT;
use crate::failure::{Context, Failure};
use crate::hotplug::Running;
use crate::run_dir::RunDir;
use crate::transcript::Transcript;

/// For something that takes a second where nothing else runs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Where things are.
#[derive(Clone, Debug)]
pub struct Place {
    /// The repository.
    pub root: PathBuf,
    /// The launcher's own program.
    pub launcher: PathBuf,
    /// The machine's sockets.
    pub run_dir: RunDir,
}

/// A machine, by its launcher. Ends with it.
pub struct Session {
    child: Child,
    stdin: Option<ChildStdin>,
    console: Arc<Transcript>,
    run_dir: RunDir,
    /// Up to where the console was read.
    read: usize,
}

impl Session {
    /// Starts one, with these variables besides those of the environment.
    pub fn start(place: &Place, variables: &[(&str, &str)]) -> Result<Self, Failure> {
        let mut child = Spawner::new(&place.launcher)
            .command(&place.launcher)
            .arg("run")
            .current_dir(&place.root)
            .env_remove("CMD")
            .env("RUN_DIR", place.run_dir.path())
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("the launcher")?;
        Ok(Self {
            stdin: child.stdin.take(),
            console: Transcript::follow(child.stdout.take()),
            child,
            run_dir: place.run_dir.clone(),
            read: 0,
        })
    }

    /// The slot of `device`, such as `ioat0`.
    pub fn running(&self, device: &str) -> Result<Running, Failure> {
        Running::find(&self.run_dir, device)
    }

    /// Its sockets.
    pub fn run_dir(&self) -> &RunDir {
        &self.run_dir
    }

    /// All that it has said.
    pub fn text(&self) -> String {
        self.console.text()
    }

    /// How much it has said.
    pub fn mark(&self) -> usize {
        self.console.printed()
    }

    /// How much of it was read.
    pub fn mark_read(&self) -> usize {
        self.read
    }

    /// What it has said since `mark`, as far as it was read.
    pub fn since(&self, mark: usize) -> String {
        self.console.part(mark..self.read)
    }

    /// Reads on from `mark`.
    pub fn rewind(&mut self, mark: usize) {
        self.read = mark;
    }

    /// Reads to the end of `wanted`.
    pub fn await_text(&mut self, wanted: &str) -> Result<(), Failure> {
        let found = self.console.find(wanted.as_bytes(), self.read, PATIENCE);
        self.read = found.ok_or_else(|| {
            let console = self.console.text();
            Failure::run(format!("{wanted:?} has not come:\n{console}"))
        })?;
        Ok(())
    }

    /// Reads to the prompt.
    pub fn prompt(&mut self) -> Result<(), Failure> {
        self.await_text(PROMPT)
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) -> Result<(), Failure> {
        let stdin = self.stdin.as_mut();
        let stdin = stdin.ok_or_else(|| Failure::run("the console is closed"))?;
        stdin
            .write_all(format!("{line}\r").as_bytes())
            .and_then(|()| stdin.flush())
            .context("the console")
    }

    /// Types a command at the prompt; gives all that comes before the next.
    pub fn command(&mut self, command: &str) -> Result<String, Failure> {
        self.type_line(command)?;
        self.await_text("\n")?;
        let start = self.read;
        self.await_text(&format!("\n{PROMPT}"))?;
        Ok(self.since(start))
    }

    /// Has it end.
    pub fn power_off(&mut self) -> Result<Option<ExitStatus>, Failure> {
        self.type_line("poweroff")?;
        child::wait_for(&mut self.child, PATIENCE).context("the launcher")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = child::end(&mut self.child, Duration::from_secs(10));
    }
}
