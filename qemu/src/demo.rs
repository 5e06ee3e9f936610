//! `make demo`: engines leave while they copy, told as it happens.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::child::{self, Spawner};
use crate::console::PROMPT;
use crate::failure::{Context, Failure};
use crate::hotplug::{How, Running};
use crate::run_dir::RunDir;
use crate::settings::Settings;
use crate::transcript::Transcript;

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

/// The attention button's window, shorter than people need.
const WINDOW: &str = "hotplug_window=1000";
/// Engines take so many microseconds more for a copy: there is always work in flight.
const SLOW: &str = "slow=3000";
/// For something that takes a second where nothing else runs.
const PATIENCE: Duration = Duration::from_secs(60);
/// So long copies run between two events.
const PAUSE: Duration = Duration::from_secs(2);

/// The tour; its exit status is 0 where nothing was lost.
pub fn run(place: &Place, settings: &Settings) -> Result<u8, Failure> {
    for (wrong, why) in [
        (
            settings.commands.is_some(),
            "CMD=…: demo has commands of its own",
        ),
        (
            settings.engines < 2,
            "demo wants two engines at least: IOAT=2",
        ),
    ] {
        if wrong {
            return Err(Failure::usage(why));
        }
    }
    let mut machine = Machine::start(place)?;
    say(
        "A machine boots, with Intel I/OAT engines that are a program of ours (QEMU over vfio-user).",
    );
    machine.prompt()?;
    machine.command("lspci", &["8086:2021", "I/OAT", "DMA engine"])?;

    say("Eight clients copy, compare and start over, four on a channel of each engine.");
    machine.command(
        "dmatest channel=dma0chan0 iterations=0 threads_per_chan=4 test_buf_size=65536 &",
        &[],
    )?;
    machine.command(
        "dmatest channel=dma1chan0 iterations=0 threads_per_chan=4 test_buf_size=65536 &",
        &[],
    )?;
    std::thread::sleep(PAUSE);

    say(
        "The attention button of ioat0's slot is pressed. Its copies go on elsewhere.\n\
         (Linux 6.12 and 7.2 panic here: the watchdog of a channel in use runs on freed registers.)",
    );
    let mark = machine.mark();
    machine.running("ioat0")?.remove()?;
    machine.show("detached", mark)?;
    std::thread::sleep(PAUSE);

    say("An engine is put back into the slot.");
    let mark = machine.mark();
    machine.running("ioat0")?.add()?;
    machine.show("live", mark)?;
    std::thread::sleep(PAUSE);

    say("ioat1 is torn out: its slot loses power.");
    let mark = machine.mark();
    machine.running("ioat1")?.yank(How::Power)?;
    machine.show("detached", mark)?;
    std::thread::sleep(PAUSE);

    say(
        "ioat0 dies without a word: its process is killed, no slot tells. No engine is left, and the\n\
         CPU goes on.",
    );
    let mark = machine.mark();
    machine.running("ioat0")?.yank(How::Kill)?;
    machine.show("detached", mark)?;
    std::thread::sleep(PAUSE);

    say("One comes back into the other slot.");
    let mark = machine.mark();
    machine.running("ioat1")?.add()?;
    machine.show("live", mark)?;
    std::thread::sleep(PAUSE);

    say("The clients are asked how it was. Each copy was compared with its source.");
    let mark = machine.mark();
    machine.command("stop 1", &[])?;
    machine.command("stop 2", &[])?;
    let summaries = machine.summaries(mark, 8)?;
    let audit = machine.command("audit", &["audit:"])?;
    machine.type_line("poweroff")?;
    let status = child::wait_for(&mut machine.child, PATIENCE).context("the launcher")?;

    let hot = machine.console.text();
    let lost = hot
        .lines()
        .filter(|line| line.starts_with("hot: ") && !line.ends_with("lost=0"));
    let clean = summaries.matches(" 0 failures").count() == 8
        && audit.contains("leaked=0")
        && lost.count() == 0
        && status.is_some_and(|status| status.success());
    say(if clean {
        "Nothing was lost, nothing leaked, no client noticed."
    } else {
        "That was not as it should be."
    });
    Ok(u8::from(!clean))
}

fn say(text: &str) {
    println!("\n{text}");
}

/// The machine, by its launcher.
struct Machine {
    child: Child,
    stdin: Option<ChildStdin>,
    console: Arc<Transcript>,
    run_dir: RunDir,
    /// Up to where the console was read.
    read: usize,
}

impl Machine {
    fn start(place: &Place) -> Result<Self, Failure> {
        let mut child = Spawner::new(&place.launcher)
            .command(&place.launcher)
            .arg("run")
            .current_dir(&place.root)
            .env("RUN_DIR", place.run_dir.path())
            .env("APPEND", WINDOW)
            .env("FAULT", SLOW)
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

    fn running(&self, device: &str) -> Result<Running, Failure> {
        Running::find(&self.run_dir, device)
    }

    fn mark(&self) -> usize {
        self.console.printed()
    }

    fn await_text(&mut self, wanted: &str) -> Result<(), Failure> {
        let found = self.console.find(wanted.as_bytes(), self.read, PATIENCE);
        self.read = found.ok_or_else(|| {
            let console = self.console.text();
            Failure::run(format!("{wanted:?} has not come:\n{console}"))
        })?;
        Ok(())
    }

    fn prompt(&mut self) -> Result<(), Failure> {
        self.await_text(PROMPT)
    }

    fn type_line(&mut self, line: &str) -> Result<(), Failure> {
        let stdin = self.stdin.as_mut();
        let stdin = stdin.ok_or_else(|| Failure::run("the console is closed"))?;
        stdin
            .write_all(format!("{line}\r").as_bytes())
            .and_then(|()| stdin.flush())
            .context("the console")
    }

    /// Types a command, and shows it with those of its lines that contain one of these words. Gives
    /// all that it printed.
    fn command(&mut self, command: &str, words: &[&str]) -> Result<String, Failure> {
        println!("  {PROMPT}{command}");
        self.type_line(command)?;
        self.await_text("\n")?;
        let start = self.read;
        self.await_text(&format!("\n{PROMPT}"))?;
        let text = self.console.part(start..self.read);
        for line in text
            .lines()
            .filter(|line| words.iter().any(|word| line.contains(word)))
        {
            println!("  {line}");
        }
        Ok(text)
    }

    /// Waits for the closing lines of `count` tests after `mark`, and shows them.
    fn summaries(&mut self, mark: usize, count: usize) -> Result<String, Failure> {
        self.read = mark;
        for _ in 0..count {
            self.await_text(": summary ")?;
        }
        self.await_text("\n")?;
        let text = self.console.part(mark..self.read);
        let lines = text.lines().filter(|line| line.contains(": summary "));
        lines.for_each(|line| println!("  {line}"));
        Ok(text)
    }

    /// Waits for a line `hot: … STATE` after `mark`, and shows all such lines up to it.
    fn show(&mut self, state: &str, mark: usize) -> Result<(), Failure> {
        self.read = mark;
        self.await_text(&format!(" {state} t="))?;
        self.await_text("\n")?;
        let text = self.console.part(mark..self.read);
        for line in text.lines().filter(|line| line.starts_with("hot: ")) {
            println!("  {line}");
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = child::end(&mut self.child, Duration::from_secs(10));
    }
}
