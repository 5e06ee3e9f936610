//! Reading lines, running commands.

use alloc::string::String;
use core::future::poll_fn;
use core::pin::pin;
use core::task::Poll;

use super::commands::{self, CommandResult};
use super::input::Input;
use super::jobs;
use super::line::{Editor, Event};
use super::parse::{self, Parsed};

const PROMPT: &str = "longshore> ";

/// The console for people: forever.
pub async fn interactive(mut input: Input) {
    let mut editor = Editor::new(PROMPT);
    loop {
        crate::print!("{PROMPT}");
        let line = read_line(&mut editor, &mut input).await;
        for command in parse::line(&line) {
            let finished = {
                let mut run = pin!(run(command));
                let mut interrupt = pin!(input.interrupt());
                poll_fn(|cx| {
                    if run.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(true);
                    }
                    interrupt.as_mut().poll(cx).map(|()| false)
                })
                .await
            };
            if !finished {
                crate::println!("^C\nerror: interrupted");
                break;
            }
        }
    }
}

/// The commands of `run=`: each after its prompt, then a summary for machines, then power-off.
pub async fn batch(line: &str) {
    let (mut commands, mut failed) = (0, 0);
    for command in parse::line(line) {
        crate::println!("{PROMPT}{}", command.text);
        commands += 1;
        if run(command).await.is_err() {
            failed += 1;
        }
    }
    crate::machine_line!("run: commands={commands} failed={failed}");
    crate::power::off()
}

async fn read_line(editor: &mut Editor, input: &mut Input) -> String {
    loop {
        let byte = input.byte().await;
        let mut out = String::new();
        let event = editor.byte(byte, &mut out, &commands::complete);
        crate::print!("{out}");
        match event {
            Event::None => {}
            Event::Line(line) => return line,
            Event::Interrupt => return String::new(),
        }
    }
}

/// Runs one command to its last line.
async fn run(command: Parsed) -> CommandResult {
    let result = match commands::find(&command.words[0]) {
        None => Err(alloc::format!(
            "no command {:?}; help lists them",
            command.words[0]
        )),
        Some(found) => {
            let future = (found.run)(command.words[1..].to_vec());
            if command.background {
                let number = jobs::start(command.text, future);
                crate::println!("[{number}]");
                Ok(())
            } else {
                future.await
            }
        }
    };
    match &result {
        Ok(()) => crate::println!("ok"),
        Err(what) => crate::println!("error: {what}"),
    }
    result
}
