//! `make demo`: engines leave while they copy, told as it happens.

use std::time::Duration;

use crate::console::PROMPT;
use crate::failure::Failure;
use crate::hotplug::How;
use crate::session::{Place, Session};
use crate::settings::Settings;

/// The attention button's window, shorter than people need.
const WINDOW: &str = "hotplug_window=1000";
/// Engines take so many microseconds more for a copy: there is always work in flight.
const SLOW: &str = "slow=3000";
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
    let variables = [("APPEND", WINDOW), ("FAULT", SLOW)];
    let mut machine = Machine(Session::start(place, &variables)?);
    say(
        "A machine boots, with Intel I/OAT engines that are a program of ours (QEMU over vfio-user).",
    );
    machine.0.prompt()?;
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
    let mark = machine.0.mark();
    machine.0.running("ioat0")?.remove()?;
    machine.show("detached", mark)?;
    std::thread::sleep(PAUSE);

    say("An engine is put back into the slot.");
    let mark = machine.0.mark();
    machine.0.running("ioat0")?.add()?;
    machine.show("live", mark)?;
    std::thread::sleep(PAUSE);

    say("ioat1 is torn out: its slot loses power.");
    let mark = machine.0.mark();
    machine.0.running("ioat1")?.yank(How::Power)?;
    machine.show("detached", mark)?;
    std::thread::sleep(PAUSE);

    say(
        "ioat0 dies without a word: its process is killed, no slot tells. No engine is left, and the\n\
         CPU goes on.",
    );
    let mark = machine.0.mark();
    machine.0.running("ioat0")?.yank(How::Kill)?;
    machine.show("detached", mark)?;
    std::thread::sleep(PAUSE);

    say("One comes back into the other slot.");
    let mark = machine.0.mark();
    machine.0.running("ioat1")?.add()?;
    machine.show("live", mark)?;
    std::thread::sleep(PAUSE);

    say("The clients are asked how it was. Each copy was compared with its source.");
    let mark = machine.0.mark();
    machine.command("stop 1", &[])?;
    machine.command("stop 2", &[])?;
    let summaries = machine.summaries(mark, 8)?;
    let audit = machine.command("audit", &["audit:"])?;
    let status = machine.0.power_off()?;

    let hot = machine.0.text();
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

/// The machine, shown.
struct Machine(Session);

impl Machine {
    /// Types a command, and shows it with those of its lines that contain one of these words. Gives
    /// all that it printed.
    fn command(&mut self, command: &str, words: &[&str]) -> Result<String, Failure> {
        println!("  {PROMPT}{command}");
        let text = self.0.command(command)?;
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
        self.0.rewind(mark);
        for _ in 0..count {
            self.0.await_text(": summary ")?;
        }
        self.0.await_text("\n")?;
        let text = self.0.since(mark);
        let lines = text.lines().filter(|line| line.contains(": summary "));
        lines.for_each(|line| println!("  {line}"));
        Ok(text)
    }

    /// Waits for a line `hot: … STATE` after `mark`, and shows all such lines up to it.
    fn show(&mut self, state: &str, mark: usize) -> Result<(), Failure> {
        self.0.rewind(mark);
        self.0.await_text(&format!(" {state} t="))?;
        self.0.await_text("\n")?;
        let text = self.0.since(mark);
        for line in text.lines().filter(|line| line.starts_with("hot: ")) {
            println!("  {line}");
        }
        Ok(())
    }
}
